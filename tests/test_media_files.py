"""Generated pictures in parts: what went in, what a broken part does, what an altered store says."""

# ruff: noqa: F811 - a fixture is imported and then is a parameter's name

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from s3_server import place, s3  # noqa: F401
from store_artifacts import artifact_of, cut, flip

from thinkdiff.schemas.errors import LockedError, StoreError
from thinkdiff.schemas.media import MediaSet
from thinkdiff.storage.media_files import PNG, MediaReader, MediaWriter, iterate
from thinkdiff.storage.root import Folder

METHODS = ("aligned", "text_bridge")
PARTS = 3


def pictures(method: str, part: int) -> list[tuple[str, bytes]]:
    names = [f"color-1/shot_2/{part}_{number}_café_" + "red" * 30 for number in range(2 + part)]
    return [(name, PNG + f"{method} {name}".encode() * (part + 1)) for name in reversed(names)]


def write(folder: Folder) -> MediaSet:
    writer = MediaWriter(folder)
    files = []
    for method in METHODS:
        for part in reversed(range(PARTS)):
            writer.commit(method, part, pictures(method, part))
        files += writer.files(method, PARTS)
    return artifact_of(MediaSet, folder, files)


def test_pictures_come_back_by_name_and_in_the_order_made(place: Folder):
    artifact = write(place)
    reader = MediaReader(artifact)
    for method in METHODS:
        expected = [pair for part in range(PARTS) for pair in pictures(method, part)]
        assert list(iterate(artifact, method)) == expected
        assert reader.names(method) == [name for name, _ in expected]
        assert [(name, reader.read(method, name)) for name in reader.names(method)] == expected
    assert reader.names("true_caption") == []
    with pytest.raises(StoreError, match="found no picture x of method aligned"):
        reader.read("aligned", "x")


def test_same_pictures_give_the_same_bytes_and_plain_tars(tmp_path: Path):
    one, other = write(Folder(str(tmp_path / "a"))), write(Folder(str(tmp_path / "b")))
    assert one.digest == other.digest
    with tarfile.open(one.path("aligned/00002.tar")) as tar:
        assert tar.getnames() == [f"{name}.png" for name, _ in pictures("aligned", 2)]


def test_commit_refuses_a_second_time_and_a_second_picture_of_a_name(tmp_path: Path):
    writer = MediaWriter(Folder(str(tmp_path)))
    with pytest.raises(StoreError, match="twice"):
        writer.commit("aligned", 0, [("a", PNG), ("a", PNG)])
    with pytest.raises(StoreError, match="stays below"):
        writer.commit("aligned", 0, [("../a", PNG)])
    assert writer.committed("aligned") == {}
    writer.commit("aligned", 0, [("a", PNG)])
    with pytest.raises(LockedError, match="committed"):
        writer.commit("aligned", 0, [("a", PNG)])
    with pytest.raises(StoreError, match="found 1 parts, expected 2"):
        writer.files("aligned", 2)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("aligned/00001.json", lambda folder, name: cut(folder, name, 50)),
        ("aligned/00001.json", lambda folder, name: folder.write(name, folder.read("aligned/00000.json"))),
        ("aligned/00001.json", lambda folder, name: folder.write(name, folder.read("text_bridge/00001.json"))),
        ("aligned/00001.tar", lambda folder, name: folder.delete(name)),
        ("aligned/00001.tar", lambda folder, name: cut(folder, name, 600)),
    ],
)
def test_broken_part_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, fault):
    folder = Folder(str(tmp_path))
    whole = write(folder)
    fault(folder, name)
    writer = MediaWriter(folder)
    assert set(writer.committed("aligned")) == {0, 2}
    assert set(writer.committed("text_bridge")) == {0, 1, 2}
    assert "aligned/00001.json" in caplog.text
    writer.commit("aligned", 1, pictures("aligned", 1))
    files = [entry for method in METHODS for entry in writer.files(method, PARTS)]
    assert artifact_of(MediaSet, folder, files).digest == whole.digest


def test_tar_without_a_record_is_overwritten(tmp_path: Path):
    folder = Folder(str(tmp_path / "b"))
    folder.write("aligned/00001.tar", b"half")
    assert write(folder).digest == write(Folder(str(tmp_path / "a"))).digest


def test_altered_tar_raises_where_it_is_read(tmp_path: Path):
    folder = Folder(str(tmp_path))
    artifact = write(folder)
    flip(folder, "aligned/00001.tar", folder.read("aligned/00001.tar").index(PNG) + 10)
    reader = MediaReader(artifact)
    with pytest.raises(StoreError, match=r"aligned/00001\.tar: found other bytes"):
        reader.read("aligned", pictures("aligned", 1)[0][0])
    assert reader.read("aligned", pictures("aligned", 2)[0][0]) == pictures("aligned", 2)[0][1]
    with pytest.raises(StoreError, match="other bytes"):
        list(iterate(artifact, "aligned"))
    folder.delete("aligned/00001.tar")
    with pytest.raises(StoreError, match="missing"):
        MediaReader(artifact)


def test_reader_of_a_set_without_a_record_reads_it_and_names_its_stage(tmp_path: Path):
    folder = Folder(str(tmp_path / "generate_media" / "0"))
    reader = MediaWriter(folder).reader(write(folder).files)
    name, data = pictures("aligned", 0)[0]
    assert reader.read("aligned", name) == data
    flip(folder, "aligned/00000.tar", folder.read("aligned/00000.tar").index(PNG) + 10)
    with pytest.raises(StoreError, match="re-run generate_media with --refresh"):
        reader.read("aligned", name)


@pytest.mark.parametrize(
    "change", [{"offset": 10**9}, {"offset": -1}, {"size": 10**9}, {"name": ""}, {"sha256": "x"}, {"more": 1}]
)
def test_record_that_contradicts_its_tar_raises(tmp_path: Path, change: dict):
    folder = Folder(str(tmp_path))
    artifact = write(folder)
    record = json.loads(folder.read("aligned/00001.json"))
    record["pictures"][1] |= change
    entry = folder.write("aligned/00001.json", json.dumps(record).encode())
    files = [entry if e.path == entry.path else e for e in artifact.files]
    with pytest.raises(StoreError, match=r"aligned/00001\.json"):
        MediaReader(artifact_of(MediaSet, folder, files)).names("aligned")
    without = [e for e in artifact.files if e.path != entry.path]
    with pytest.raises(StoreError, match="no readable record"):
        MediaReader(artifact_of(MediaSet, folder, without)).names("aligned")
