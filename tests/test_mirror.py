"""Roots looked after: artifacts mirrored to another root, unused ones and unfinished uploads found."""

from __future__ import annotations

from pathlib import Path

import pytest
from s3_server import place, s3  # noqa: F401
from small_run import thinkdiff
from store_artifacts import artifact_of, flip

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import Artifact, Parent
from thinkdiff.schemas.captions import CaptionSet
from thinkdiff.schemas.errors import LockedError, RootError, StoreError
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage import housekeeping
from thinkdiff.storage.lease import Lease
from thinkdiff.storage.mirror import mirror
from thinkdiff.storage.records import (
    INPUTS,
    RECORD,
    artifact_folder,
    find_artifacts,
    read_record,
    write_inputs,
    write_record,
)
from thinkdiff.storage.root import Folder

BIG = bytes(range(256)) * 20_000  # a piece and a bit


def parent(artifact: Artifact) -> Parent:
    return Parent(stage=artifact.stage, fingerprint=artifact.fingerprint, digest=artifact.digest, uri=artifact.uri)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Captions, features of them, an aligner of these, and other features that nothing was made of."""
    root = str(tmp_path / "root")

    def made(kind: type[Artifact], stage: str, digit: str, data: bytes, *parents: Artifact) -> Artifact:
        folder = artifact_folder(root, stage, digit * 32)  # pyright: ignore[reportArgumentType]
        files = [folder.write("sub/data.bin", data), folder.write("more.bin", b"more")]
        found = artifact_of(kind, folder, files, stage)  # pyright: ignore[reportArgumentType]
        found = found.model_copy(update={"parents": {one.stage: parent(one) for one in parents}})
        write_record(found)
        return found

    captions = made(CaptionSet, "sample_captions", "a", b"captions")
    features = made(FeatureSet, "extract_features", "b", BIG, captions)
    made(AlignerCheckpoint, "train_aligner", "c", b"aligner", features)
    made(FeatureSet, "extract_features", "d", b"unused", captions)
    return root


def test_mirror_copies_whole_artifacts_once_and_their_records_last(root: str, place: Folder):  # noqa: F811
    target = place.uri
    half = artifact_folder(target, "extract_features", "b" * 32)
    half.write("more.bin", b"more")  # of a copy that was broken off
    first = list(mirror(root, target))
    assert [copied.size for copied in first] == [12, len(BIG), 10, 11]
    for copied in first:
        folder = artifact_folder(target, copied.artifact.stage, copied.artifact.fingerprint)
        there = read_record(folder, Artifact)
        assert there is not None
        assert (there.digest, there.files) == (copied.artifact.digest, copied.artifact.files)
        assert all(one.uri.startswith(target) for one in there.parents.values())
    assert [copied.size for copied in mirror(root, target)] == [None] * 4
    assert housekeeping.verify_root(target, deep=True) == (4, [])


def test_mirror_copies_no_damaged_file_and_says_which(root: str, tmp_path: Path):
    target = str(tmp_path / "target")
    flip(artifact_folder(root, "extract_features", "b" * 32), "sub/data.bin", 7)
    with pytest.raises(
        StoreError, match=r"sub/data.bin: found 5120000 bytes of sha256 .*, expected 5120000 of .*as its"
    ):
        list(mirror(root, target))
    there = artifact_folder(target, "extract_features", "b" * 32)
    assert not there.exists(RECORD)
    assert not there.exists("sub/data.bin")


def test_mirror_leaves_another_artifact_of_the_same_fingerprint_alone(root: str, tmp_path: Path):
    target = str(tmp_path / "target")
    folder = artifact_folder(target, "sample_captions", "a" * 32)
    write_record(artifact_of(CaptionSet, folder, [folder.write("x", b"x")], "sample_captions"))
    with pytest.raises(StoreError, match=r"found an artifact of digest .*, expected .* as in"):
        list(mirror(root, target))
    assert folder.read("x") == b"x"


def test_mirror_of_one_artifact_brings_what_it_was_made_of(root: str, tmp_path: Path):
    done = thinkdiff("mirror", root, str(tmp_path / "target"), "--artifact", "ccc")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "3 artifacts copied (5.1 MB), 0 there already"
    assert not (tmp_path / "target" / "extract_features" / ("d" * 32)).exists()


def test_gc_removes_what_nothing_was_made_of_when_it_is_old_and_asked_for(root: str):
    unused = f"extract_features/{'d' * 32}"
    assert unused not in thinkdiff("gc", "--root", root).stdout
    assert unused not in thinkdiff("gc", "--root", root, "--unreferenced", "--days", "1e5").stdout
    assert unused in thinkdiff("gc", "--root", root, "--unreferenced").stdout
    assert (Path(root) / unused / RECORD).exists()
    done = thinkdiff("gc", "--root", root, "--unreferenced", "--delete")
    assert done.stdout.splitlines()[-1] == "0 files, 0 uploads, 1 artifacts, 0.0 MB removed"
    assert not (Path(root) / unused).exists()
    assert housekeeping.verify_root(root, deep=True) == (3, [])


def test_gc_keeps_what_a_run_works_on_or_was_making_something_of(root: str):
    unused = f"extract_features/{'d' * 32}"
    child = artifact_folder(root, "train_aligner", "e" * 32)
    (artifact,) = (one for one in find_artifacts(root) if one.fingerprint == "d" * 32)
    write_inputs(child, [artifact])
    child.write("checkpoints/00001000.json", b"{}")
    done = thinkdiff("gc", "--root", root, "--unreferenced", "--delete")
    assert done.stdout.splitlines()[-1] == "0 files, 0 uploads, 0 artifacts, 0.0 MB removed"
    for broken in (b"{", b"7", b"[7]"):
        child.write(INPUTS, broken)
        assert unused in thinkdiff("gc", "--root", root, "--unreferenced").stdout
    with Lease(Folder(artifact.uri), 30.0), pytest.raises(LockedError):
        housekeeping.discard(artifact, root)
    assert (Path(root) / unused / RECORD).exists()
    housekeeping.discard(artifact, root)
    assert not (Path(root) / unused).exists()


def test_gc_ends_uploads_that_were_abandoned(s3: str, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    folder = Folder.at(f"{s3}/uploads")
    bucket = s3.removeprefix("s3://")
    for key in ("uploads/one.bin", "elsewhere/two.bin"):
        folder.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    assert thinkdiff("gc", "--root", folder.uri).stdout.startswith("0 files, 0 uploads")  # not a week old
    done = thinkdiff("gc", "--root", folder.uri, "--days", "0", "--delete")
    assert done.stdout.splitlines() == [
        f"{'upload':>12} uploads/one.bin", "0 files, 1 uploads, 0 artifacts, 0.0 MB removed"
    ]  # fmt: skip
    assert housekeeping.abandoned_uploads(folder.uri, 0) == []
    assert len(housekeeping.abandoned_uploads(f"{s3}/elsewhere", 0)) == 1
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RootError, match="elsewhere"):
        housekeeping.abandoned_uploads(f"{s3}/elsewhere", 0)
