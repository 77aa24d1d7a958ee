"""The feature store: what went in comes out, faults of every file, kill -9. Its bytes are test_feature_shards.py."""

# ruff: noqa: F811 - a fixture is imported and then is a parameter's name

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
import zarr
from s3_server import place, s3  # noqa: F401
from small_features import INPUTS, ROWS, SHARD, TOKENS, WIDTH, array_of, row, write, writer_of
from store_artifacts import artifact_of, cut, flip

from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.features import FeatureSet, TokenKind
from thinkdiff.storage.feature_shards import NATIVE, Layout, StoredType
from thinkdiff.storage.feature_store import FeatureReader, FeatureRow, FeatureWriter
from thinkdiff.storage.root import Folder


def assert_same(found: FeatureRow, expected: FeatureRow) -> None:
    for name in ("key", "prompt", "token_ids", "eos", "text"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.features.dtype == expected.features.dtype
    np.testing.assert_array_equal(found.features, expected.features)
    assert (found.input_features is None) == (expected.input_features is None)
    if found.input_features is not None and expected.input_features is not None:
        np.testing.assert_array_equal(found.input_features, expected.input_features)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("inputs", [False, True])
def test_store_gives_back_what_went_in(place: Folder, dtype: StoredType, inputs: bool):
    reader = FeatureReader(write(place, inputs, dtype))
    expected = [row(index, inputs, dtype) for index in range(ROWS)]
    assert (len(reader), reader.shape) == (ROWS, (ROWS, TOKENS, WIDTH))
    asked = [9, 0, 3, 3, 4, 7, 1]
    for found, index in zip(reader.rows(asked), asked, strict=True):
        assert_same(found, expected[index])
    for found, wanted in zip(reader.iterate(), expected, strict=True):
        assert_same(found, wanted)
    assert_same(reader.row(5), expected[5])
    loaded = reader.load()
    for index, wanted in enumerate(expected):
        np.testing.assert_array_equal(loaded.features[index, : wanted.length], wanted.features)
    assert reader.keys == [wanted.key for wanted in expected]
    assert reader.texts() == [wanted.text for wanted in expected]
    assert reader.token_ids == [list(wanted.token_ids) for wanted in expected]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_pads_what_rows_cut(tmp_path: Path, dtype: StoredType):
    reader = FeatureReader(write(Folder(str(tmp_path)), inputs=True, dtype=dtype))
    kinds: list[tuple[TokenKind, int]] = [("generated", TOKENS), ("input", INPUTS)]
    for kind, tokens in kinds:
        loaded = reader.load(kind)
        assert loaded.features.shape == (ROWS, tokens, WIDTH)
        assert loaded.features.dtype == NATIVE[dtype]
        for index in range(ROWS):
            wanted = row(index, True, dtype)
            states = wanted.features if kind == "generated" else wanted.input_features
            assert states is not None
            assert loaded.lengths[index] == len(states)
            np.testing.assert_array_equal(loaded.features[index, : len(states)], states)
            assert (loaded.features[index, len(states) :].astype(np.float32) == 0).all()
            assert loaded.token_ids[index].tolist() == [*wanted.token_ids, *[-1] * (TOKENS - wanted.length)]
            assert (loaded.keys[index], loaded.texts[index], loaded.prompts[index], loaded.eos[index]) == (
                wanted.key, wanted.text, wanted.prompt, wanted.eos,
            )  # fmt: skip


def test_wide_features_are_rounded_to_nearest_even(tmp_path: Path):
    folder = Folder(str(tmp_path))
    writer = FeatureWriter(folder, rows=1, tokens=1, width=4, dtype="bfloat16")
    writer.prepare()
    wide = np.array([[1.00390625, 1.01171875, 3.14159265, -1e-3]], np.float32)
    writer.commit(0, [FeatureRow("k", "p", (1,), 0, "t", wide)])
    found = FeatureReader(artifact_of(FeatureSet, folder, writer.files())).row(0).features
    np.testing.assert_array_equal(found, wide.astype(ml_dtypes.bfloat16))


def test_same_rows_give_the_same_bytes(tmp_path: Path):
    one = write(Folder(str(tmp_path / "one")), inputs=True)
    other = write(Folder(str(tmp_path / "other")), inputs=True)
    assert one.digest == other.digest
    assert {entry.path for entry in one.files} == set(Folder(one.uri).sizes())


def test_prepare_refuses_a_store_of_another_shape(tmp_path: Path):
    folder = Folder(str(tmp_path))
    writer_of(folder)
    writer_of(folder)
    with pytest.raises(StoreError, match="another shape or type"):
        FeatureWriter(folder, rows=ROWS + 1, tokens=TOKENS, width=WIDTH, dtype="float32", shard_size=SHARD).prepare()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features": np.ones((2, WIDTH + 1), np.float32)}, "shape"),
        ({"features": np.ones((1, WIDTH), np.float32)}, "one feature for each token"),
        ({"features": np.full((2, WIDTH), np.nan, np.float32)}, "NaN or infinity"),
        ({"features": np.full((2, WIDTH), np.inf, np.float32)}, "NaN or infinity"),
        ({"eos": 2}, "the end at 2"),
        ({"eos": -2}, "the end at -2"),
        ({"key": "key 000"}, "twice"),
        ({"input_features": np.ones((1, WIDTH), np.float32)}, "no room"),
        ({"token_ids": (1,) * 6, "features": np.ones((6, WIDTH), np.float32)}, "expected at most"),
    ],
)
def test_commit_refuses_rows_that_do_not_fit(tmp_path: Path, change: dict, says: str):
    writer = writer_of(Folder(str(tmp_path)))
    rows = [row(index) for index in range(SHARD)]
    rows[1] = FeatureRow(**({"key": "key 001", "prompt": "p", "token_ids": (1, 2), "eos": 1, "text": "t",
                             "features": np.ones((2, WIDTH), np.float32)} | change))  # fmt: skip
    with pytest.raises(StoreError, match=says):
        writer.commit(0, rows)
    assert writer.committed() == {}


def test_commit_of_too_few_rows_is_refused_and_a_second_one_changes_nothing(tmp_path: Path):
    writer = writer_of(Folder(str(tmp_path)))
    with pytest.raises(StoreError, match="found 3 rows, expected 4"):
        writer.commit(0, [row(index) for index in range(3)])
    with pytest.raises(StoreError, match="expected 0"):
        writer.commit(3, [row(0)])
    part = writer.commit(2, [row(8), row(9)])
    assert writer.commit(2, [row(8), row(3)]) == part  # the first one stays
    with pytest.raises(StoreError, match="found 1 parts, expected 3"):
        writer.files()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("commits/000001.json", lambda folder, name: cut(folder, name, 40)),
        ("commits/000001.json", lambda folder, name: folder.write(name, b"{}")),
        ("commits/000001.json", lambda folder, name: folder.write(name, folder.read("commits/000000.json"))),
        ("features/c/1/0/0", lambda folder, name: cut(folder, name, 100)),
        ("features/c/1/0/0", lambda folder, name: folder.delete(name)),
        ("rows/000001.parquet", lambda folder, name: folder.delete(name)),
        ("rows/000001.parquet", lambda folder, name: folder.write(name, folder.read(name) + b"x")),
        ("input_features/c/1/0/0", lambda folder, name: folder.write(name, b"")),
    ],
)  # fmt: skip
def test_broken_part_is_reported_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, fault):
    folder = Folder(str(tmp_path))
    whole = write(folder, inputs=True)
    fault(folder, real_name(folder, name))
    writer = writer_of(folder, inputs=True, prepared=False)
    assert set(writer.prepare()) == {0, 2}
    assert set(writer.rejected) == {1}
    assert "commits/000001.json: found" in caplog.text
    assert "made again" in caplog.text
    assert not folder.exists("commits/000001.json")
    writer.commit(1, [row(index, True) for index in writer.span(1)])
    assert artifact_of(FeatureSet, folder, writer.files()).digest == whole.digest


def test_altered_part_of_the_right_size_is_found_by_a_deep_look(tmp_path: Path):
    folder = Folder(str(tmp_path))
    write(folder)
    flip(folder, "features/c/2/0/0", 10)
    writer = writer_of(folder)
    assert set(writer.committed()) == {0, 1, 2}
    assert set(writer.committed(deep=True)) == {0, 1}


def test_reader_of_an_altered_store_raises_and_never_returns_other_numbers(tmp_path: Path):
    folder = Folder(str(tmp_path))
    artifact = write(folder)
    size = len(folder.read("features/c/1/0/0"))
    for at in (*range(0, size, 61), size - 1, size - 40):
        flip(folder, "features/c/1/0/0", at)
        reader = FeatureReader(artifact)
        assert_same(reader.row(0), row(0))
        with pytest.raises(StoreError, match="features/c/1/0/0"):
            reader.rows([4, 5, 6, 7])
        with pytest.raises(StoreError, match="features/c/1/0/0"):
            reader.load()
        with pytest.raises(StoreError, match="features/c/1/0/0"):
            list(reader.iterate())
        flip(folder, "features/c/1/0/0", at)
    FeatureReader(artifact).load()


@pytest.mark.parametrize("name", ["features/c/1/0/0", "rows/000001.parquet", "features/zarr.json"])
def test_reader_of_a_store_with_a_lost_or_cut_file_raises(tmp_path: Path, name: str):
    folder = Folder(str(tmp_path))
    artifact = write(folder)
    name = real_name(folder, name)
    whole = folder.read(name)
    cut(folder, name, 60)
    with pytest.raises(StoreError, match="re-run extract_features"):
        FeatureReader(artifact)
    folder.delete(name)
    with pytest.raises(StoreError, match="missing"):
        FeatureReader(artifact)
    folder.write(name, whole)
    FeatureReader(artifact).load()
    unlisted = artifact.model_copy(update={"files": tuple(e for e in artifact.files if e.path != name)})
    with pytest.raises(StoreError, match="found no file"):
        FeatureReader(unlisted)


def rewritten(folder: Folder, artifact: FeatureSet, name: str, data: bytes) -> FeatureSet:
    """The artifact with a file exchanged and its record made to agree: an attack, or another program's write."""
    entry = folder.write(name, data)
    return artifact_of(FeatureSet, folder, [entry if e.path == name else e for e in artifact.files])


def test_row_that_was_never_written_is_no_zeros(tmp_path: Path):
    folder = Folder(str(tmp_path))
    artifact = write(folder)
    name = "features/c/1/0/0"
    holed = bytearray(folder.read(name))
    layout = Layout(ROWS, TOKENS, WIDTH, "float32", SHARD)
    index = np.frombuffer(holed, "<u8", SHARD * 2, len(holed) - layout.index_bytes).copy()
    index[2:4] = 2**64 - 1
    holed[-layout.index_bytes :] = index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    reader = FeatureReader(rewritten(folder, artifact, name, bytes(holed)))
    for read in (lambda: reader.row(5), reader.load, lambda: list(reader.iterate())):
        with pytest.raises(StoreError, match="no data for row 5"):
            read()


def test_store_rewritten_by_zarr_with_nan_within_a_length_raises(tmp_path: Path):
    folder = Folder(str(tmp_path))
    artifact = write(folder)
    array_of(zarr.open_group(folder.uri))[5, 0, 0] = np.nan
    reader = FeatureReader(rewritten(folder, artifact, "features/c/1/0/0", folder.read("features/c/1/0/0")))
    assert_same(reader.row(4), row(4))
    with pytest.raises(StoreError, match="row 5"):
        reader.row(5)
    with pytest.raises(StoreError, match="NaN"):
        reader.load()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("features/zarr.json", b"{"),
        ("features/zarr.json", b"[" * 100_000),
        ("features/zarr.json", b'{"shape": [1, 2]}'),
        ("rows/000001.parquet", b"PAR1 no parquet PAR1"),
        ("rows/000001.parquet", b""),
    ],
)
def test_foreign_bytes_under_an_agreeing_record_raise(tmp_path: Path, name: str, data: bytes):
    folder = Folder(str(tmp_path))
    artifact = write(folder)
    artifact = rewritten(folder, artifact, real_name(folder, name), data)
    with pytest.raises(StoreError, match=name.split("/")[0]):
        FeatureReader(artifact).row(5)


def test_foreign_tables_under_an_agreeing_record_raise(tmp_path: Path):
    folder = Folder(str(tmp_path))
    artifact = write(folder)
    name, other, last = (real_name(folder, f"rows/{shard:06d}.parquet") for shard in range(3))
    exchanged = rewritten(folder, artifact, name, folder.read(other))
    with pytest.raises(StoreError, match="twice"):
        _ = FeatureReader(exchanged).keys
    with pytest.raises(StoreError, match="found 2 rows, expected 4"):
        FeatureReader(rewritten(folder, artifact, name, folder.read(last))).row(0)


def test_foreign_codecs_under_an_agreeing_record_raise(tmp_path: Path):
    folder = Folder(str(tmp_path))
    artifact, name = write(folder), "features/zarr.json"
    with pytest.raises(StoreError, match="another layout"):
        FeatureReader(rewritten(folder, artifact, name, folder.read(name).replace(b'"crc32c"', b'"zstd"')))


def test_index_out_of_range_raises(tmp_path: Path):
    reader = FeatureReader(write(Folder(str(tmp_path))))
    for index in (-1, ROWS):
        with pytest.raises(IndexError, match="expected 0 … 9"):
            reader.row(index)
    assert reader.rows([]) == []
    with pytest.raises(StoreError, match="no features of input tokens"):
        reader.load("input")


def real_name(folder: Folder, name: str) -> str:
    """The name of a shard's table with its digest; any other name as it is."""
    return folder.glob(name.replace(".parquet", "-*.parquet"))[0] if name.startswith("rows/") else name


KILLER = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import small_features
from thinkdiff.storage.root import Folder

for number in range({kills}):
    child = os.fork()
    if not child:
        small_features.write(Folder({folder!r}) / str(number), inputs=True)
        os._exit(0)
    time.sleep(number * 0.006)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_killed_writer_leaves_whole_parts_and_a_rerun_the_same_bytes(tmp_path: Path):
    whole, kills = write(Folder(str(tmp_path / "whole")), inputs=True), 10
    stores = Folder(str(tmp_path / "stores"))
    program = KILLER.format(tests=str(Path(__file__).parent), folder=stores.uri, kills=kills)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    for number in range(kills):
        folder = stores / str(number)
        writer = writer_of(folder, inputs=True)
        done = writer.committed(deep=True)
        assert not list(Path(folder.uri).glob("attempts/*"))
        assert writer.rejected == {}
        for shard in set(range(writer.shards)) - set(done):
            writer.commit(shard, [row(index, True) for index in writer.span(shard)])
        assert artifact_of(FeatureSet, folder, writer.files()).digest == whole.digest
        assert not list(Path(folder.uri).glob("*/.tmp*"))


@pytest.mark.parametrize(
    "left", ["features/c/1/0/0", "input_features/c/1/0/0", "rows/000001-0123456789abcdef.parquet", "rows/.tmp-dead",
             "attempts/000001-" + "0" * 64]
)  # fmt: skip
def test_leftovers_of_a_killed_attempt_are_removed(tmp_path: Path, left: str):
    folder = Folder(str(tmp_path / "store"))
    whole = write(Folder(str(tmp_path / "whole")), inputs=True)
    (tmp_path / "store" / left).parent.mkdir(parents=True)
    (tmp_path / "store" / left).write_bytes(b"half of another attempt")
    assert write(folder, inputs=True).digest == whole.digest
    found, expected = (sorted(one.sizes()) for one in (folder, Folder(str(tmp_path / "whole"))))
    assert found == expected


def test_dimensions_of_one_name_have_one_size(tmp_path: Path):
    write(Folder(str(tmp_path)), inputs=True)
    sizes: dict[str, set[int]] = {}
    for array in ("features", "input_features"):
        metadata = json.loads((tmp_path / array / "zarr.json").read_bytes())
        for name, size in zip(metadata["dimension_names"], metadata["shape"], strict=True):
            sizes.setdefault(name, set()).add(size)
    assert {name: len(found) for name, found in sizes.items()} == dict.fromkeys(
        ("row", "token", "input_token", "channel"), 1
    )


@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 1e39])
def test_padding_that_is_no_number_of_the_store_is_refused(tmp_path: Path, padding: float):
    features = write(Folder(str(tmp_path)))
    with pytest.raises(ValueError, match="expected a number that is finite in float32"):
        FeatureReader(features).load(padding=padding)
