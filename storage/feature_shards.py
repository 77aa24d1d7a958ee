"""One array of features as Zarr v3 metadata and shard objects: the bytes, not the files.

A shard object is what zarr's `sharding_indexed` codec writes: the rows one after the other, each its bytes (see
`feature_codecs.py`) and their crc32c; then (offset, bytes) of every row as uint64, all ones for a row that is not
there; then the crc32c of that index. The encoder's bytes are those of zarr-python, at some twenty times its speed. The
reader asks for single rows, which zarr-python does slowly (zarr-python#3829), and never takes a missing row for zeros.

Shapes: N rows, T tokens, D channels, S rows per shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import google_crc32c
import ml_dtypes
import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.features import Codec, TokenKind
from thinkdiff.storage.feature_codecs import LEVEL, QUANTISERS, SCALE, pack, unpack
from thinkdiff.storage.memory import Memory

StoredType = Literal["float32", "bfloat16"]
Bytes = npt.NDArray[np.uint8]
Spans = npt.NDArray[np.int64]
NATIVE: dict[StoredType, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
ARRAYS: dict[TokenKind, str] = {"generated": "features", "input": "input_features"}
AXES: dict[TokenKind, str] = {"generated": "token", "input": "input_token"}  # xarray wants one size for each name
MISSING = np.uint64(2**64 - 1)
CRC = 4
PIECE = 1 << 17
LITTLE: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD: dict[str, Any] = {"name": "zstd", "configuration": {"level": LEVEL, "checksum": False}}
CRC32C: dict[str, Any] = {"name": "crc32c"}
SCALED = "a token is its codes, then its scale, a little-endian float32; number = code * scale"


@dataclass(frozen=True)
class Layout:
    """Shape, type and sharding of one array (N, T, D)."""

    rows: int
    tokens: int
    width: int
    dtype: StoredType
    shard_size: int
    axis: str = AXES["generated"]  # the name of the second dimension
    codec: Codec = "none"

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
    def chunk_bytes(self) -> tuple[int, int]:
        """Bytes of one row in a shard at least and at most, its checksum included."""
        if self.codec in QUANTISERS:
            size = self.tokens * (self.width + SCALE.itemsize)
        else:
            size = self.tokens * self.width * self.native.itemsize
        return (CRC + 1, size + size // 256 + 64 + CRC) if self.codec == "zstd" else (size + CRC, size + CRC)

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index, its checksum included."""
        return self.shard_size * 16 + CRC

    def span(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * self.shard_size, min(self.rows, (shard + 1) * self.shard_size))

    def metadata(self) -> dict[str, Any]:
        """The array's `zarr.json`, key by key what zarr-python writes."""
        kind, fill, width, last = self.dtype, "NaN", self.width, "channel"
        inner, attributes = [LITTLE, *([ZSTD] if self.codec == "zstd" else []), CRC32C], {}
        if self.codec in QUANTISERS:
            kind, fill = QUANTISERS[self.codec].zarr
            width, last, inner = width + SCALE.itemsize, "code", [{"name": "bytes"}, CRC32C]
            attributes = {"codec": self.codec, "dtype": self.dtype, "layout": SCALED}
        sharding = {
            "chunk_shape": [1, self.tokens, width],
            "codecs": inner,
            "index_codecs": [LITTLE, CRC32C],
            "index_location": "end",
        }
        grid = {"chunk_shape": [self.shard_size, self.tokens, width]}
        return {
            "shape": [self.rows, self.tokens, width],
            "data_type": kind,
            "chunk_grid": {"name": "regular", "configuration": grid},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": attributes,
            "dimension_names": ["row", self.axis, last],
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


def read_layout(
    data: bytes, where: str, kind: TokenKind = "generated", writer: str = "another version of thinkdiff"
) -> Layout:
    """The layout that an array's `zarr.json` describes.

    writer: who wrote it, as far as that is known. Raises StoreError when it is no JSON, or describes an array that this
    module would not write.
    """
    try:
        found = json.loads(data)
        must_be_codec(found["attributes"].get("codec", "none"), where, writer)
        rows, tokens, width = (int(number) for number in found["shape"])
        shard_size = int(found["chunk_grid"]["configuration"]["chunk_shape"][0])
        layouts = (
            Layout(rows, tokens, width - SCALE.itemsize * (codec in QUANTISERS), dtype, shard_size, AXES[kind], codec)
            for codec in get_args(Codec)
            for dtype in NATIVE
        )
        layout = next((layout for layout in layouts if layout.metadata() == found), None)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        layout = None
    if layout is None:
        raise StoreError(
            f"{where}: found metadata of another layout, expected a sharded (N, T, D) array with crc32c. "
            "It was altered or written by other software; re-run extract_features with --refresh."
        )
    return layout


def must_be_codec(codec: object, where: str, writer: str) -> None:
    """Raises StoreError for a codec that is not known here."""
    if codec not in get_args(Codec):
        raise StoreError(
            f"{where}: found the codec {codec!r:.40}, expected one of {', '.join(get_args(Codec))}. The store was "
            f"written by {writer}; use that version, or re-run extract_features with --refresh."
        )


def encode_shard(
    rows: Iterable[npt.NDArray[Any]], count: int, layout: Layout, memory: Memory | None = None
) -> memoryview:
    """The shard object of `count` <= S rows (T, D) of the array's own type; the rows past them are marked missing.

    A row is copied before the next one is asked for.
    """
    out = (memory or Memory()).take((count * layout.chunk_bytes[1] + layout.index_bytes,))
    index = np.full((layout.shard_size, 2), MISSING, "<u8")
    start, place = 0, -1
    for place, row_TD in enumerate(rows):
        assert row_TD.dtype == layout.native, row_TD.dtype
        assert row_TD.shape == (layout.tokens, layout.width), row_TD.shape
        end = start + append(out[start:], pack(row_TD, layout.codec))
        index[place] = start, end - start
        start = end
    assert place == count - 1, place
    return out[: start + append(out[start:], index.reshape(-1).view(np.uint8))].data


def append(out: Bytes, piece: Bytes) -> int:
    """Copies some bytes to the beginning of `out`, and their checksum behind them; says how many that makes."""
    size = len(piece)
    out[:size] = piece
    out[size : size + CRC] = np.array([google_crc32c.value(piece)], "<u4").view(np.uint8)
    return size + CRC


def decode_index(data: bytes, layout: Layout, shard: int, object_bytes: int, where: str) -> Spans:
    """Where every row of a shard starts and ends (R, 2), from the last `index_bytes` of an object of `object_bytes`.

    Raises StoreError when the index is damaged, lacks a row that the shard must hold, or cannot be a writer's.
    """
    if len(data) != layout.index_bytes or stored_checksum(data) != google_crc32c.value(data[:-CRC]):
        raise damaged(where, "a shard index that fails its checksum")
    index = np.frombuffer(data, "<u8", layout.shard_size * 2).reshape(-1, 2)[: len(layout.span(shard))]
    missing = (index == MISSING).all(1)
    if missing.any():
        raise damaged(where, f"no data for row {layout.span(shard)[int(missing.argmax())]}")
    least, most = layout.chunk_bytes
    room = object_bytes - layout.index_bytes
    if (index[:, 0] > room).any() or (index[:, 1] < least).any() or (index[:, 1] > most).any():
        raise damaged(where, "a shard index that points outside the shard")
    spans = np.cumsum(index, 1, dtype=np.int64)
    ordered = spans[spans[:, 0].argsort()]
    if ordered[-1, 1] > room or (ordered[1:, 0] < ordered[:-1, 1]).any():
        raise damaged(where, "a shard index with rows in one another or outside the shard")
    return spans


def decode_row(body: Bytes, checksum: Bytes, layout: Layout, row: int, where: str) -> npt.NDArray[Any]:
    """One row (T, D), a view of its bytes where they are the numbers themselves.

    Raises StoreError when the bytes fail their checksum, or are no row all the same.
    """
    if stored_checksum(checksum) != google_crc32c.value(body):
        raise damaged(where, f"row {row} failing its checksum")
    try:
        return unpack(body, layout.codec, (layout.tokens, layout.width), layout.native)
    except ValueError as error:
        raise damaged(where, f"row {row} that does not decompress to a row ({error})") from None


def decode_shard(data: bytes, layout: Layout, shard: int, where: str) -> Iterator[npt.NDArray[Any]]:
    """The rows (T, D) of a shard object, one after the other. Raises StoreError as the index and the rows do."""
    octets = np.frombuffer(data, np.uint8)
    spans = decode_index(data[-layout.index_bytes :], layout, shard, len(data), where)
    for row, (start, end) in zip(layout.span(shard), spans.tolist(), strict=True):
        yield decode_row(octets[start : end - CRC], octets[end - CRC : end], layout, row, where)


def row_checksums(data: bytes | memoryview, layout: Layout, shard: int, where: str) -> list[int]:
    """The checksum of every row of a shard object, none of them verified. Raises StoreError for a bad index."""
    spans = decode_index(bytes(data[-layout.index_bytes :]), layout, shard, len(data), where)
    return [stored_checksum(bytes(data[end - CRC : end])) for end in spans[:, 1].tolist()]


def stored_checksum(data: bytes | Bytes) -> int:
    """The checksum at the end of a chunk or an index."""
    return int.from_bytes(bytes(data[-CRC:]), "little")


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
