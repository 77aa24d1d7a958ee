"""One array of features as Zarr v3 metadata and shard objects: the bytes, not the files.

A shard object is what zarr's `sharding_indexed` codec writes: the rows one after the other, each its little-endian
numbers and their crc32c; then (offset, bytes) of every row as uint64, all ones for a row that is not there; then the
crc32c of that index. The encoder's bytes are those of zarr-python, at some twenty times its speed. The reader asks
for single rows, which zarr-python does slowly (zarr-python#3829), and never takes a missing row for zeros.

Shapes: N rows, T tokens, D channels, S rows per shard.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import google_crc32c
import ml_dtypes
import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.features import TokenKind

StoredType = Literal["float32", "bfloat16"]
Bytes = npt.NDArray[np.uint8]
NATIVE: dict[StoredType, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
ARRAYS: dict[TokenKind, str] = {"generated": "features", "input": "input_features"}
AXES: dict[TokenKind, str] = {"generated": "token", "input": "input_token"}  # xarray wants one size for each name
MISSING = np.uint64(2**64 - 1)
CRC = 4
PIECE = 1 << 17
CHECKED: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


@dataclass(frozen=True)
class Layout:
    """Shape, type and sharding of one array (N, T, D)."""

    rows: int
    tokens: int
    width: int
    dtype: StoredType
    shard_size: int
    axis: str = AXES["generated"]  # the name of the second dimension

    def __post_init__(self) -> None:
        numbers = (self.rows, self.tokens, self.width, self.shard_size)
        if min(numbers) < 1 or self.dtype not in NATIVE:
            raise ValueError(
                f"array: found shape {numbers} of {self.dtype}, expected positive sizes of {list(NATIVE)}."
            )

    @property
    def native(self) -> np.dtype[Any]:
        """The numpy type of a number."""
        return NATIVE[self.dtype]

    @property
    def shards(self) -> int:
        """How many shards there are; the last may hold fewer rows."""
        return -(-self.rows // self.shard_size)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one row in a shard, its checksum included."""
        return self.tokens * self.width * self.native.itemsize + CRC

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index, its checksum included."""
        return self.shard_size * 16 + CRC

    def span(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * self.shard_size, min(self.rows, (shard + 1) * self.shard_size))

    def metadata(self) -> dict[str, Any]:
        """The array's `zarr.json`, key by key what zarr-python writes."""
        sharding = {
            "chunk_shape": [1, self.tokens, self.width],
            "codecs": CHECKED,
            "index_codecs": CHECKED,
            "index_location": "end",
        }
        grid = {"chunk_shape": [self.shard_size, self.tokens, self.width]}
        return {
            "shape": [self.rows, self.tokens, self.width],
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": grid},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN",
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "dimension_names": ["row", self.axis, "channel"],
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }


def shard_name(kind: TokenKind, shard: int) -> str:
    """The name of a shard object below the group."""
    return f"{ARRAYS[kind]}/c/{shard}/0/0"


def group_metadata(arrays: dict[str, Layout]) -> dict[str, Any]:
    """The group's `zarr.json`; it repeats the arrays' metadata, so that readers need not list the folder."""
    members = {name: layout.metadata() for name, layout in arrays.items()}
    inline = {"kind": "inline", "must_understand": False, "metadata": members}
    return {"attributes": {}, "zarr_format": 3, "consolidated_metadata": inline, "node_type": "group"}


def metadata_bytes(metadata: dict[str, Any]) -> bytes:
    """A `zarr.json` as bytes."""
    return json.dumps(metadata, indent=2).encode()


def read_layout(data: bytes, where: str, kind: TokenKind = "generated") -> Layout:
    """The layout that an array's `zarr.json` describes.

    Raises StoreError when it is no JSON, or describes an array that this module would not write.
    """
    try:
        found = json.loads(data)
        rows, tokens, width = (int(number) for number in found["shape"])
        shard_size = int(found["chunk_grid"]["configuration"]["chunk_shape"][0])
        layout = Layout(rows, tokens, width, found["data_type"], shard_size, AXES[kind])
        same = layout.metadata() == found
    except (ValueError, LookupError, TypeError, RecursionError):
        layout, same = None, False
    if layout is None or not same:
        raise StoreError(
            f"{where}: found metadata of another layout, expected a sharded (N, T, D) array with crc32c. "
            "It was altered or written by other software; re-run extract_features with --refresh."
        )
    return layout


def encode_shard(block_RTD: npt.NDArray[Any], layout: Layout) -> memoryview:
    """The shard object of R <= S rows of the array's own type; the rows past R are marked missing."""
    assert block_RTD.dtype == layout.native, block_RTD.dtype
    assert block_RTD.shape[1:] == (layout.tokens, layout.width), block_RTD.shape
    count, size = len(block_RTD), layout.chunk_bytes
    rows = np.ascontiguousarray(block_RTD).reshape(count, -1).view(np.uint8)
    out = np.empty(count * size + layout.index_bytes, np.uint8)
    chunks = out[: count * size].reshape(count, size)
    chunks[:, :-CRC] = rows
    chunks[:, -CRC:] = checksums([google_crc32c.value(row) for row in rows])
    index = np.full((layout.shard_size, 2), MISSING, "<u8")
    index[:count, 0] = np.arange(count) * size
    index[:count, 1] = size
    out[count * size : -CRC] = index.view(np.uint8).reshape(-1)
    out[-CRC:] = checksums([google_crc32c.value(index.tobytes())])[0]
    return out.data


def checksums(values: list[int]) -> Bytes:
    """Checksums as (R, 4) little-endian bytes."""
    return np.array(values, "<u4").view(np.uint8).reshape(-1, CRC)


def decode_index(data: bytes, layout: Layout, shard: int, object_bytes: int, where: str) -> list[int]:
    """The offset of every row of a shard, from the last `index_bytes` of an object of `object_bytes`.

    Raises StoreError when the index is damaged, or lacks a row that the shard must hold.
    """
    if len(data) != layout.index_bytes or stored_checksum(data) != google_crc32c.value(data[:-CRC]):
        raise damaged(where, "a shard index that fails its checksum")
    index = np.frombuffer(data, "<u8", layout.shard_size * 2).reshape(-1, 2)[: len(layout.span(shard))]
    missing = (index == MISSING).all(1)
    if missing.any():
        raise damaged(where, f"no data for row {layout.span(shard)[int(missing.argmax())]}")
    room = object_bytes - layout.index_bytes - layout.chunk_bytes
    if room < 0 or (index[:, 1] != layout.chunk_bytes).any() or (index[:, 0] > room).any():
        raise damaged(where, "a shard index that points outside the shard")
    return index[:, 0].tolist()


def decode_row(chunk: memoryview, layout: Layout, row: int, where: str) -> npt.NDArray[Any]:
    """One row (T, D) as a view of its bytes. Raises StoreError when they fail their checksum."""
    # google_crc32c takes an array and no memoryview
    body = np.frombuffer(chunk[:-CRC], np.uint8)
    if stored_checksum(chunk) != google_crc32c.value(body):
        raise damaged(where, f"row {row} failing its checksum")
    return body.view(layout.native).reshape(layout.tokens, layout.width)


def stored_checksum(data: bytes | memoryview) -> int:
    """The checksum at the end of a chunk or an index."""
    return int.from_bytes(data[-CRC:], "little")


def finite(numbers: npt.NDArray[Any]) -> bool:
    """Whether there is no NaN and no infinity.

    On the bits, as numpy's own test is slow for bfloat16, and in pieces that stay in the cache.
    """
    bits = np.ascontiguousarray(numbers).reshape(-1)
    kind, ones = (np.uint16, 0x7F80) if bits.itemsize == 2 else (np.uint32, 0x7F800000)
    pieces = (bits[start : start + PIECE].view(kind) & kind(ones) for start in range(0, bits.size, PIECE))
    return all(int(exponents.max()) != ones for exponents in pieces)


def damaged(where: str, what: str) -> StoreError:
    """The sentence for a shard that cannot be trusted."""
    return StoreError(
        f"{where}: found {what}, expected whole data. The shard is lost or altered; "
        "re-run extract_features with --refresh."
    )
