"""A feature store whose bytes are not those that were written: flipped, cut, missing, of another file; a full disk.

Whatever is read and however, it is what was written or a StoreError, never another number, a zero or a NaN.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from small_features import INPUTS, ROWS, SHARD, TOKENS, WIDTH, array_of, row, write, writer_of
from store_artifacts import artifact_of, cut, flip

from thinkdiff.schemas.errors import StoreError, ThinkDiffError
from thinkdiff.schemas.features import FeatureSet, TokenKind
from thinkdiff.storage.feature_shards import AXES, Layout
from thinkdiff.storage.feature_store import FeatureStore
from thinkdiff.storage.records import RECORD, write_record
from thinkdiff.storage.root import Folder

HOME = f"extract_features/{'0' * 32}"
HALF = slice(4, 8)  # the rows of shard 1
LAYOUTS: dict[str, Layout] = {
    "features": Layout(ROWS, TOKENS, WIDTH, "float32", SHARD),
    "input_features": Layout(ROWS, INPUTS, WIDTH, "float32", SHARD, AXES["input"]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A whole store with its record."""
    folder = Folder(str(tmp_path / "runs" / HOME))
    write_record(write(folder, inputs=True))
    return folder


def table_of(folder: Folder) -> str:
    """The name of the rows' table of shard 1."""
    return folder.glob("rows/000001-*.parquet")[0]


def reads(store: FeatureStore) -> dict[str, Callable[[], object]]:
    """Every way to rows of shard 1, and each compares what it gets with what was written."""
    wanted = [row(index, inputs=True) for index in range(ROWS)]

    def rows() -> None:
        for found, index in zip(store.rows(range(*HALF.indices(ROWS))), range(4, 8), strict=True):
            np.testing.assert_array_equal(found.features, wanted[index].features)
            np.testing.assert_array_equal(np.asarray(found.input_features), np.asarray(wanted[index].input_features))
            assert (found.key, found.text, found.eos) == (wanted[index].key, wanted[index].text, wanted[index].eos)

    def iterate() -> None:
        for found, expected in zip(store.iterate(), wanted, strict=True):
            np.testing.assert_array_equal(found.features, expected.features)
            np.testing.assert_array_equal(np.asarray(found.input_features), np.asarray(expected.input_features))

    def load(kind: TokenKind) -> None:
        for found, expected in zip(store.load(kind).features, wanted, strict=True):
            states = expected.features if kind == "generated" else np.asarray(expected.input_features)
            np.testing.assert_array_equal(found[: len(states)], states)

    def batches(kind: TokenKind) -> None:
        for batch in store.iter_batches(3, shuffle="exact", kind=kind):
            for found, index in zip(batch.features, batch.rows.tolist(), strict=True):
                states = wanted[index].features if kind == "generated" else np.asarray(wanted[index].input_features)
                np.testing.assert_array_equal(found[: len(states)], states)

    return {
        "rows": rows, "iterate": iterate,
        "load generated": lambda: load("generated"), "load input": lambda: load("input"),
        "batches generated": lambda: batches("generated"), "batches input": lambda: batches("input"),
    }  # fmt: skip


def ways_of(name: str) -> set[str]:
    """The reads that use a file."""
    kinds = {"features": "generated", "input_features": "input"}
    kind = kinds.get(name.split("/")[0])
    every = ["rows", "iterate", *(f"{way} {which}" for way in ("load", "batches") for which in ("generated", "input"))]
    return {way for way in every if kind is None or " " not in way or way.endswith(f" {kind}")}


def must_refuse(store: FeatureStore, ways: set[str]) -> None:
    """All of these reads raise one sentence; the others give what was written."""
    for way, read in reads(store).items():
        if way not in ways:
            read()
            continue
        with pytest.raises(StoreError) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert ": found " in str(caught.value)


def regions(layout: Layout) -> dict[str, tuple[int, int]]:
    """Where the regions of a full shard object begin and end."""
    found: dict[str, tuple[int, int]] = {}
    for place in range(SHARD):
        start = place * layout.chunk_bytes[0]
        found[f"row {place}"] = (start, start + layout.chunk_bytes[0] - 4)
        found[f"checksum of row {place}"] = (start + layout.chunk_bytes[0] - 4, start + layout.chunk_bytes[0])
    start = SHARD * layout.chunk_bytes[0]
    found["index"] = (start, start + layout.index_bytes - 4)
    found["checksum of the index"] = (start + layout.index_bytes - 4, start + layout.index_bytes)
    return found


@pytest.mark.parametrize("array", ["features", "input_features"])
def test_a_flipped_byte_in_any_region_of_a_shard_is_refused_by_every_read(folder: Folder, array: str):
    name, places = f"{array}/c/1/0/0", regions(LAYOUTS[array])
    assert max(end for _, end in places.values()) == folder.size(name)
    for start, end in places.values():
        for at in {start, (start + end) // 2, end - 1}:
            flip(folder, name, at)
            must_refuse(FeatureStore.open(folder.uri), ways_of(name))
            flip(folder, name, at)
    must_refuse(FeatureStore.open(folder.uri), set())


def test_every_flipped_byte_of_a_table_or_metadata_is_refused(folder: Folder):
    for name in (table_of(folder), "features/zarr.json", "input_features/zarr.json"):
        for at in range(0, folder.size(name), 17):
            flip(folder, name, at)
            with pytest.raises(StoreError, match="found other bytes than recorded"):
                FeatureStore.open(folder.uri).rows([5])
            flip(folder, name, at)
    must_refuse(FeatureStore.open(folder.uri), set())


def test_no_flipped_byte_of_the_record_changes_a_row(folder: Folder):
    read = 0
    for at in range(0, folder.size(RECORD), 23):
        flip(folder, RECORD, at)
        try:
            store = FeatureStore.open(folder.uri)
        except StoreError:
            pass
        else:
            must_refuse(store, set())
            read += 1
        flip(folder, RECORD, at)
    assert read < folder.size(RECORD) // 46


def test_every_flipped_byte_of_a_commit_is_found_by_the_next_run(folder: Folder):
    name, whole = "commits/000001.json", FeatureStore.open(folder.uri)
    data = folder.read(name)
    for at in range(0, len(data), 5):
        flip(folder, name, at)
        must_refuse(whole, set())  # who reads needs it no more
        writer = writer_of(folder, inputs=True, prepared=False)
        assert set(writer.committed()) == {0, 2}
        folder.write(name, data)
    assert set(writer_of(folder, inputs=True, prepared=False).committed()) == {0, 1, 2}


def test_a_digit_of_a_commit_that_became_another_is_found_by_the_next_run(folder: Folder):
    name = "commits/000001.json"
    data = folder.read(name)
    layout = data.index(b"1", data.index(b"schema_version"))
    for at, byte in enumerate(data):
        if chr(byte).isdigit():
            folder.write(name, data[:at] + (b"1" if byte == ord("2") else b"2") + data[at + 1 :])
            if at == layout:  # as a later version of thinkdiff would write it
                with pytest.raises(StoreError, match="found schema_version 2"):
                    writer_of(folder, inputs=True, prepared=False).committed()
                continue
            assert set(writer_of(folder, inputs=True, prepared=False).committed()) == {0, 2}, at
            folder.write(name, data)


@pytest.mark.parametrize("array", ["features", "input_features"])
def test_a_shard_that_was_cut_anywhere_is_refused_before_and_after_opening(folder: Folder, array: str):
    name, layout = f"{array}/c/1/0/0", LAYOUTS[array]
    data = folder.read(name)
    for size in (
        0,
        1,
        layout.chunk_bytes[0],
        3 * layout.chunk_bytes[0] + 7,
        len(data) - layout.index_bytes,
        len(data) - 1,
    ):
        cut(folder, name, size)
        with pytest.raises(StoreError, match="found no whole feature set"):
            FeatureStore.open(folder.uri)
        folder.write(name, data)
        store = FeatureStore.open(folder.uri)
        cut(folder, name, size)
        must_refuse(store, ways_of(name))
        folder.write(name, data)


@pytest.mark.parametrize("which", ["features/c/1/0/0", "input_features/c/1/0/0", "rows"])
def test_a_file_that_is_gone_is_refused_before_and_after_opening(folder: Folder, which: str):
    name, store = table_of(folder) if which == "rows" else which, FeatureStore.open(folder.uri)
    folder.delete(name)
    with pytest.raises(StoreError, match="found no whole feature set"):
        FeatureStore.open(folder.uri)
    for way, read in reads(store).items():
        if way in ways_of(name):
            with pytest.raises(StoreError):
                read()


def another(tmp_path: Path) -> Folder:
    """A store of the same shape with other numbers."""
    folder = Folder(str(tmp_path / "another"))
    writer = writer_of(folder, inputs=True)
    for shard in range(writer.shards):
        rows = [row(index, inputs=True) for index in writer.span(shard)]
        for one in rows:
            one.features[:] += 1
            assert one.input_features is not None
            one.input_features[:] += 1
        writer.commit(shard, rows)
    return folder


@pytest.mark.parametrize("array", ["features", "input_features"])
def test_a_foreign_shard_in_the_place_of_one_is_refused_by_every_read(folder: Folder, tmp_path: Path, array: str):
    name, elsewhere = f"{array}/c/1/0/0", another(tmp_path)
    other = {"another shard's": folder.read(f"{array}/c/0/0/0"), "another store's": elsewhere.read(name)}
    data = folder.read(name)
    for whose, foreign in other.items():
        assert len(foreign) == len(data), whose
        assert foreign != data
        folder.write(name, foreign)
        must_refuse(FeatureStore.open(folder.uri), ways_of(name))
        folder.write(name, data)
    must_refuse(FeatureStore.open(folder.uri), set())


def test_a_row_in_the_place_of_a_shorter_neighbour_is_refused(folder: Folder):
    name, size = "features/c/1/0/0", LAYOUTS["features"].chunk_bytes[0]
    data = folder.read(name)
    folder.write(name, data[:size] + data[2 * size : 3 * size] + data[2 * size :])
    must_refuse(FeatureStore.open(folder.uri), ways_of(name))


def test_an_empty_shard_of_zarrs_own_is_refused_before_and_after_opening(folder: Folder, tmp_path: Path):
    name, store = "features/c/1/0/0", FeatureStore.open(folder.uri)
    array_of(zarr.open_group(folder.uri))[4:8] = np.nan  # the fill value: zarr removes the object
    assert not folder.exists(name)
    must_refuse(store, ways_of(name))
    empty = np.full(SHARD * 2, 2**64 - 1, "<u8").tobytes()
    for size in (0, store.folder.size("features/c/0/0/0") - len(empty) - 4):
        folder.write(name, bytes(size) + empty + bytes(4))
        must_refuse(store, ways_of(name))


@pytest.mark.parametrize("which", ["rows", "features/zarr.json"])
def test_a_foreign_table_or_metadata_in_its_place_is_refused(folder: Folder, tmp_path: Path, which: str):
    elsewhere = another(tmp_path)
    name = table_of(folder) if which == "rows" else which
    foreign = elsewhere.read(table_of(elsewhere)) if which == "rows" else folder.read("input_features/zarr.json")
    folder.write(name, foreign[: folder.size(name)].ljust(folder.size(name)))
    with pytest.raises(StoreError, match="other bytes than recorded"):
        FeatureStore.open(folder.uri).rows([5])


SHORT_OF_ROOM = """
import resource, sys
sys.path.insert(0, {tests!r})
from small_features import row, writer_of
from thinkdiff.schemas.errors import RootError
from thinkdiff.storage.root import Folder

writer = writer_of(Folder(sys.argv[1]), inputs=True)
writer.commit(0, [row(index, inputs=True) for index in writer.span(0)])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    writer.commit(1, [row(index, inputs=True) for index in writer.span(1)])
except RootError as error:
    print(error)
"""


@pytest.mark.parametrize("room", [0, 100, 500, 700])
def test_a_disk_that_is_full_is_refused_and_a_later_run_ends_the_same(tmp_path: Path, room: int):
    whole, folder = write(Folder(str(tmp_path / "whole")), inputs=True), Folder(str(tmp_path / "full"))
    program = SHORT_OF_ROOM.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", program, folder.uri, str(room)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "not writable (File too large)" in done.stdout
    assert done.stdout.count("\n") == 1
    writer = writer_of(folder, inputs=True)
    assert set(writer.committed(deep=True)) == {0}
    for shard in (1, 2):
        writer.commit(shard, [row(index, inputs=True) for index in writer.span(shard)])
    assert artifact_of(FeatureSet, folder, writer.files()).digest == whole.digest
    assert set(folder.sizes()) == set(whole.names(""))


def test_a_file_that_cannot_be_read_is_refused_in_a_sentence(folder: Folder):
    store = FeatureStore.open(folder.uri)
    path = folder.full("features/c/1/0/0")
    os.unlink(path)
    os.symlink("/proc/self/mem", path)  # its first pages are mapped to nothing: the kernel answers EIO
    for way, read in reads(store).items():
        if way in ways_of("features"):
            with pytest.raises(ThinkDiffError, match=r"features/c/1/0/0: found"):
                read()
