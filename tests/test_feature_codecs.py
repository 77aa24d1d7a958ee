"""Compressed and quantised stores: what comes back, what others read from them, and bytes that no writer leaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import google_crc32c
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_features import INPUTS, ROWS, SHARD, TOKENS, WIDTH, row, write, writer_of
from store_artifacts import artifact_of, cut, flip

from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.features import Codec, FeatureSet, TokenKind
from thinkdiff.storage.feature_codecs import pack, unpack
from thinkdiff.storage.feature_rows import ROWS as ROWS_SCHEMA
from thinkdiff.storage.feature_shards import CRC, MISSING, NATIVE, Layout, StoredType
from thinkdiff.storage.feature_store import FeatureReader, FeatureStore
from thinkdiff.storage.root import Folder
from thinkdiff.storage.tables import table_bytes

CODECS: tuple[Codec, ...] = get_args(Codec)
REPOSITORY = Path(__file__).resolve().parent.parent
QUANTISED: tuple[Codec, ...] = ("int8", "fp8")
NAME = "features/c/1/0/0"  # rows 4 … 7


def half_step(states: np.ndarray, codec: Codec, dtype: StoredType) -> np.ndarray:
    """How far a number may be from itself when it comes back: half the distance of two codes, and its rounding."""
    wide = states.astype(np.float64)
    top = np.abs(wide).max(-1, keepdims=True, initial=0)
    rounding = np.abs(wide) * (2**-8 if dtype == "bfloat16" else 2**-22) + 1e-38
    if codec == "int8":
        return top / 127 / 2 + rounding
    scale = top / 448
    return np.maximum(np.abs(wide) * 2**-4, scale * 2**-10) + rounding


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_of_reading_gives_the_same_features(tmp_path: Path, dtype: StoredType, codec: Codec):
    store = FeatureStore(write(Folder(str(tmp_path / "store")), inputs=True, dtype=dtype, codec=codec))
    assert store.shape == (ROWS, TOKENS, WIDTH)
    kinds: dict[TokenKind, int] = {"generated": TOKENS, "input": INPUTS}
    found = {kind: [one.features if kind == "generated" else one.input_features for one in store.rows(range(ROWS))]
             for kind in kinds}  # fmt: skip
    for index, one in enumerate(store.iterate()):
        wanted = row(index, True, dtype)
        for kind, states, original in (("generated", one.features, wanted.features),
                                       ("input", one.input_features, wanted.input_features)):  # fmt: skip
            assert states is not None
            assert original is not None
            assert (states.dtype, states.shape) == (NATIVE[dtype], original.shape)
            np.testing.assert_array_equal(states, found[kind][index])
            if codec in QUANTISED:
                assert (
                    np.abs(states.astype(float) - original.astype(float)) <= half_step(original, codec, dtype)
                ).all()
            else:
                np.testing.assert_array_equal(states, original)
    for kind in kinds:
        loaded = store.load(kind)
        for batch in store.iter_batches(3, shuffle="runs", run=2, buffer=6, kind=kind):
            np.testing.assert_array_equal(batch.features, loaded.features[batch.rows])
            for place, index in enumerate(batch.rows.tolist()):
                np.testing.assert_array_equal(batch.features[place, : batch.lengths[place]], found[kind][index])
                assert not batch.features[place, batch.lengths[place] :].any()


@pytest.mark.parametrize("codec", QUANTISED)
def test_readme_dequantises_with_one_multiplication_in_plain_zarr(tmp_path: Path, codec: Codec):
    rows = FeatureReader(write(Folder(str(tmp_path / "store")), codec=codec)).rows(range(8))
    Folder(str(tmp_path / "store")).delete("features/c/2/0/0")
    (code,) = re.findall(r"```python\n(stored = .*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    code, fp8 = re.sub("  #.*", "", code), re.findall("fp8: (.*)", code)[0]
    code = code.replace("stored[:, :-4] *", f"{fp8} *") if codec == "fp8" else code
    for index in range(ROWS):
        known: dict[str, Any] = {"zarr": zarr, "ml_dtypes": ml_dtypes}
        exec(code.replace("FOLDER", str(tmp_path / "store")).replace("[0]", f"[{index}]"), known)
        found = known["features"]
        length = rows[index].length if index < len(rows) else 0  # rows 8 and 9 were in the shard that is lost
        assert found.shape == (TOKENS, WIDTH)
        assert np.isnan(found[length:]).all()
        if length:
            np.testing.assert_array_equal(found[:length], rows[index].features)


@pytest.mark.parametrize("codec", CODECS)
def test_same_rows_give_the_same_bytes_whoever_writes_first(tmp_path: Path, codec: Codec):
    one, other = (Folder(str(tmp_path / name)) for name in ("one", "other"))
    whole = write(one, inputs=True, codec=codec)
    writers = [writer_of(other, inputs=True, codec=codec) for _ in range(2)]
    for shard in range(writers[0].shards):
        for writer in writers:
            writer.commit(shard, [row(index, True) for index in writer.span(shard)])
    assert artifact_of(FeatureSet, other, writers[1].files()).digest == whole.digest
    adopted = Folder(str(tmp_path / "adopted"))
    for writer in (writer_of(adopted, codec=codec), writer_of(adopted, codec=codec, prepared=False)):
        writer.commit(1, [row(index) for index in writer.span(1)])
        adopted.delete("commits/000001.json")  # the second finds an object and verifies it
    assert adopted.read(NAME) == one.read(NAME)


def test_stores_of_another_codec_are_not_mixed(tmp_path: Path):
    writer_of(Folder(str(tmp_path / "store")), codec="int8")
    for codec in ("none", "zstd", "fp8"):
        with pytest.raises(StoreError, match="another shape or type"):
            writer_of(Folder(str(tmp_path / "store")), codec=codec)


@pytest.mark.parametrize("codec", QUANTISED)
@given(arrays(np.float32, (3, 4), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)))
def test_any_finite_token_comes_back_within_half_a_step(codec: Codec, row_TD: np.ndarray):
    found = unpack(pack(row_TD, codec), codec, row_TD.shape, NATIVE["float32"])
    assert np.isfinite(found).all()
    assert (np.abs(found.astype(np.float64) - row_TD) <= half_step(row_TD, codec, "float32") + 2.0**-125).all()
    assert not found[np.abs(row_TD).max(1) == 0].any()


def test_fp8_keeps_small_channels_beside_large_ones_and_int8_does_not():
    row_TD = np.array([[100.0, 0.3, -0.2, 0.1]], np.float32)
    lost = {c: np.abs(unpack(pack(row_TD, c), c, (1, 4), NATIVE["float32"]) / row_TD - 1).max() for c in QUANTISED}
    assert lost["fp8"] < 2**-4 < 1 <= lost["int8"]


def rewritten(folder: Folder, artifact: FeatureSet, name: str, data: bytes) -> FeatureSet:
    """The artifact with a file exchanged and its record made to agree: an attack, or another program's write."""
    entry = folder.write(name, data)
    return artifact_of(FeatureSet, folder, [entry if e.path == name else e for e in artifact.files])


def forged(folder: Folder, artifact: FeatureSet, bodies: list[bytes]) -> FeatureSet:
    """The artifact with shard 1 exchanged for these rows, whose checksums stand in the rows' table too."""
    table = next(name for name in artifact.names("rows/") if name.startswith("rows/000001-"))
    found = pq.read_table(pa.BufferReader(folder.read(table)))
    sums = pa.array([google_crc32c.value(body) for body in bodies], pa.uint32())
    changed = found.set_column(found.schema.get_field_index("crc32c"), ROWS_SCHEMA.field("crc32c"), sums)
    return rewritten(folder, rewritten(folder, artifact, table, bytes(table_bytes(changed))), NAME, shard_of(bodies))


def bodies_of(data: bytes) -> list[bytes]:
    """The rows of a shard object without their checksums."""
    index = np.frombuffer(data, "<u8", SHARD * 2, len(data) - SHARD * 16 - CRC).reshape(-1, 2)
    return [data[start : start + size - CRC] for start, size in index.tolist()]


def shard_of(bodies: list[bytes], shift: Callable[[np.ndarray], object] = lambda index: None) -> bytes:
    """A shard object of rows with right checksums, whatever they are; `shift` may change its index."""
    out, index = b"", np.full((SHARD, 2), MISSING, "<u8")
    for place, body in enumerate(bodies):
        index[place] = len(out), len(body) + CRC
        out += body + google_crc32c.value(body).to_bytes(4, "little")
    shift(index)
    return out + index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little")


def must_raise(artifact: FeatureSet, says: str, row: int = 5) -> None:
    """Every way of reading raises, and rows before the bad one are read."""
    store = FeatureStore(artifact)
    for read in (lambda: store.row(row), store.load, lambda: list(store.iterate()),
                 lambda: list(store.iter_batches(4))):  # fmt: skip
        with pytest.raises(StoreError, match=says):
            read()


@pytest.mark.parametrize("codec", CODECS)
def test_no_flipped_byte_of_a_shard_is_read(tmp_path: Path, codec: Codec):
    folder = Folder(str(tmp_path / "store"))
    store = FeatureStore(write(folder, codec=codec))
    clean, size = [one.features for one in store.rows(range(4, 8))], len(folder.read(NAME))
    for at in range(0, size, 1 if codec == "int8" else 7):
        flip(folder, NAME, at)
        with pytest.raises(StoreError, match="re-run extract_features"):
            FeatureStore(artifact_like(store, folder)).rows(range(4, 8))
        flip(folder, NAME, at)
    for one, wanted in zip(store.rows(range(4, 8)), clean, strict=True):
        np.testing.assert_array_equal(one.features, wanted)
    flip(folder, NAME, size // 3)
    with pytest.raises(StoreError):
        store.load()
    flip(folder, NAME, size // 3)
    cut(folder, NAME, size - 50)
    with pytest.raises(StoreError):
        store.load()


def artifact_like(store: FeatureStore, folder: Folder) -> FeatureSet:
    """The artifact of an open store, for a reader that has read nothing yet."""
    return artifact_of(FeatureSet, folder, store._entries.values())


@pytest.mark.parametrize("codec", QUANTISED)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -0.01, 0.0])
def test_scale_that_no_writer_leaves_raises(tmp_path: Path, codec: Codec, scale: float):
    folder = Folder(str(tmp_path / "store"))
    artifact = write(folder, codec=codec)
    bodies = bodies_of(folder.read(NAME))
    assert folder.read(NAME) == shard_of(bodies)
    bodies[1] = bodies[1][:WIDTH] + np.array([scale], "<f4").tobytes() + bodies[1][WIDTH + 4 :]
    changed = forged(folder, artifact, bodies)
    must_raise(changed, "NaN or infinity")
    assert FeatureReader(changed).row(4).key == "key 004"


@pytest.mark.parametrize("codec", QUANTISED)
def test_token_of_ones_within_a_length_raises(tmp_path: Path, codec: Codec):
    folder = Folder(str(tmp_path / "store"))
    artifact = write(folder, codec=codec)
    bodies = bodies_of(folder.read(NAME))
    bodies[1] = b"\xff" * len(bodies[1])
    must_raise(forged(folder, artifact, bodies), "NaN or infinity")


def test_code_of_fp8_that_is_no_number_raises(tmp_path: Path):
    folder = Folder(str(tmp_path / "store"))
    artifact = write(folder, codec="fp8")
    bodies = bodies_of(folder.read(NAME))
    bodies[1] = b"\x7f" + bodies[1][1:]
    must_raise(forged(folder, artifact, bodies), "NaN or infinity")


SIZE = TOKENS * WIDTH * 4
FRAMES: dict[str, bytes] = {
    "a bomb": pa.Codec("zstd").compress(bytes(1 << 26), asbytes=True),
    "a byte more": pa.Codec("zstd").compress(bytes(SIZE + 1), asbytes=True),
    "a byte less": pa.Codec("zstd").compress(bytes(SIZE - 1), asbytes=True),
    "two rows": pa.Codec("zstd").compress(bytes(SIZE), asbytes=True) * 2,
    "no frame": bytes(range(40)),
    "half a frame": pa.Codec("zstd").compress(row(9).features.tobytes() * 4, asbytes=True)[:60],
}


@pytest.mark.parametrize("what", FRAMES)
def test_zstd_frame_of_another_size_or_none_raises(tmp_path: Path, what: str):
    folder = Folder(str(tmp_path / "store"))
    artifact = write(folder, codec="zstd")
    bodies = bodies_of(folder.read(NAME))
    bodies[1] = FRAMES[what]
    must_raise(forged(folder, artifact, bodies), "row 5 that does not|index that points")


def place(index: np.ndarray, column: int, value: int) -> None:
    index[1, column] = value


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("shift", "says"),
    [
        (lambda index: place(index, 0, int(index[0, 0])), "in one another"),
        (lambda index: place(index, 0, int(index[2, 0]) - 3), "in one another"),
        (lambda index: place(index, 0, 1 << 62), "outside"),
        (lambda index: place(index, 0, (1 << 64) - 9), "outside"),
        (lambda index: place(index, 0, int(index[3].sum()) - 8), "outside"),
        (lambda index: place(index, 1, 0), "outside"),
        (lambda index: place(index, 1, CRC), "outside"),
        (lambda index: place(index, 1, 1 << 40), "outside"),
        (lambda index: place(index, 1, (1 << 64) - 1), "outside"),
        (lambda index: index.__setitem__(1, MISSING), "no data for row 5"),
    ],
)
def test_index_that_no_writer_leaves_raises(
    tmp_path: Path, codec: Codec, shift: Callable[[np.ndarray], object], says: str
):
    folder = Folder(str(tmp_path / "store"))
    artifact = write(folder, codec=codec)
    data = shard_of(bodies_of(folder.read(NAME)), shift)
    must_raise(rewritten(folder, artifact, NAME, data), says)


@pytest.mark.parametrize(
    ("codec", "old", "new"),
    [
        ("int8", '"int8"', '"uint8"'),
        ("int8", '"fill_value": -1', '"fill_value": 0'),
        ("int8", '"codec": "int8"', '"codec": "fp8"'),
        ("int8", '"dtype": "float32"', '"dtype": "float64"'),
        ("fp8", '"data_type": "uint8"', '"data_type": "float8_e4m3fn"'),
        ("fp8", '"codec": "fp8"', '"codec": "fp4"'),
        ("zstd", '"level": 1', '"level": 3'),
        ("zstd", '"zstd"', '"gzip"'),
        ("none", '"float32"', '"int8"'),
    ],
)
def test_metadata_of_no_codec_of_ours_raise(tmp_path: Path, codec: Codec, old: str, new: str):
    folder, name = Folder(str(tmp_path / "store")), "features/zarr.json"
    artifact = write(folder, codec=codec)
    text = folder.read(name).decode()
    assert old in text
    with pytest.raises(StoreError, match=r"another layout|found the codec '(uint8|fp4)', expected one"):
        FeatureReader(rewritten(folder, artifact, name, text.replace(old, new).encode()))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_metadata_tell_the_codec(tmp_path: Path, dtype: StoredType, codec: Codec):
    reader = FeatureReader(write(Folder(str(tmp_path / "store")), dtype=dtype, codec=codec))
    assert reader.layouts == {"generated": Layout(ROWS, TOKENS, WIDTH, dtype, SHARD, codec=codec)}
