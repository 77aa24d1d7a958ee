"""The record of an artifact: what is a hit, what is a miss with a warning, what is refused."""

# ruff: noqa: F811 - a fixture is imported and then is a parameter's name

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from s3_server import place, s3  # noqa: F401
from store_artifacts import artifact_of, cut, flip

from thinkdiff.schemas.artifact import Artifact, Stage
from thinkdiff.schemas.errors import SpecError, StoreError
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage.records import (
    RECORD,
    altered_files,
    artifact_folder,
    checked_bytes,
    find_artifact,
    find_artifacts,
    missing_files,
    read_record,
    write_record,
)
from thinkdiff.storage.root import Folder

NAME = "0123456789abcdef" * 2


def made(root: str, name: str = NAME, stage: Stage = "extract_features") -> FeatureSet:
    folder = artifact_folder(root, stage, name)
    files = [folder.write("a/one.bin", b"one" * 100), folder.write("two.bin", b"two")]
    artifact = artifact_of(FeatureSet, folder, files, stage)
    write_record(artifact)
    return artifact


def test_record_is_read_back_as_it_was_written(place: Folder):
    artifact = made(place.uri)
    folder = artifact_folder(place.uri, "extract_features", NAME)
    assert read_record(folder, FeatureSet) == artifact
    assert missing_files(artifact) == altered_files(artifact) == []
    assert checked_bytes(artifact, "two.bin") == b"two"


def test_record_of_a_moved_root_names_the_new_place(tmp_path: Path):
    artifact = made(str(tmp_path / "old"))
    shutil.move(str(tmp_path / "old"), str(tmp_path / "new"))
    found = read_record(artifact_folder(str(tmp_path / "new"), "extract_features", NAME), FeatureSet)
    assert found is not None
    assert found.uri.startswith(str(tmp_path / "new"))
    assert found.digest == artifact.digest
    assert checked_bytes(found, "two.bin") == b"two"


def test_no_record_is_a_silent_miss(place: Folder, caplog: pytest.LogCaptureFixture):
    assert read_record(place / "nothing", FeatureSet) is None
    assert caplog.text == ""


def change_record(folder: Folder, **changes: object) -> None:
    record = json.loads(folder.read(RECORD)) | changes
    folder.write(RECORD, json.dumps(record).encode())


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda folder: cut(folder, RECORD, 100), "cannot be read"),
        (lambda folder: folder.write(RECORD, b""), "cannot be read"),
        (lambda folder: folder.write(RECORD, b"\xff\x00"), "cannot be read"),
        (lambda folder: change_record(folder, schema_version="one"), "cannot be read"),
        (lambda folder: change_record(folder, unknown=1, counts=[]), "cannot be read"),
        (lambda folder: change_record(folder, files=[]), "a digest that is not"),
        (lambda folder: change_record(folder, fingerprint="f" * 32), "another artifact's folder"),
        (lambda folder: change_record(folder, stage="fetch_images"), "another artifact's folder"),
        (lambda folder: folder.delete("two.bin"), "two.bin missing"),
        (lambda folder: cut(folder, "a/one.bin", 10), "a/one.bin with 10 bytes, expected 300"),
        (lambda folder: folder.write("two.bin", b"two and more"), "two.bin with 12 bytes"),
    ],
)
def test_record_that_cannot_be_trusted_is_a_miss_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault, says: str
):
    made(str(tmp_path))
    folder = artifact_folder(str(tmp_path), "extract_features", NAME)
    fault(folder)
    assert read_record(folder, FeatureSet) is None
    assert says in caplog.text


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../b", "a//b", "c:\\x"])
def test_record_whose_files_leave_the_folder_is_a_miss(tmp_path: Path, path: str):
    made(str(tmp_path))
    folder = artifact_folder(str(tmp_path), "extract_features", NAME)
    change_record(folder, files=[{"path": path, "size": 0, "sha256": "0" * 64}])
    assert read_record(folder, FeatureSet) is None


def test_altered_bytes_of_the_right_size_are_found_by_a_deep_look_only(tmp_path: Path):
    artifact = made(str(tmp_path))
    folder = Folder(artifact.uri)
    flip(folder, "a/one.bin", 5)
    assert read_record(folder, FeatureSet) is not None
    assert altered_files(artifact) == ["a/one.bin with other bytes than recorded"]
    with pytest.raises(StoreError, match=r"a/one\.bin: found other bytes"):
        checked_bytes(artifact, "a/one.bin")
    folder.delete("two.bin")
    with pytest.raises(StoreError, match=r"two\.bin: found other bytes than recorded \(0 bytes\)"):
        checked_bytes(artifact, "two.bin")
    with pytest.raises(StoreError, match=r"found no file three\.bin"):
        checked_bytes(artifact, "three.bin")


def test_artifacts_are_found_by_the_start_of_a_fingerprint_or_digest(place: Folder):
    one = made(place.uri, "a" * 32)
    other = made(place.uri, "ab" * 16, "fetch_images")
    broken = made(place.uri, "c" * 32)
    Folder(broken.uri).delete("two.bin")
    # In the order of the stages; the broken one is left out, and the type is the common one.
    assert [a.fingerprint for a in find_artifacts(place.uri)] == [other.fingerprint, one.fingerprint]
    assert all(type(a) is Artifact for a in find_artifacts(place.uri))
    assert find_artifact(place.uri, "aaa").fingerprint == one.fingerprint
    for reference, count in (("a", 2), (one.digest[:12], 2), ("f00", 0)):
        with pytest.raises(SpecError, match=f"found {count} under"):
            find_artifact(place.uri, reference)
