"""The pictures of an ImageSet: `shards/<i>.tar`, in the order of their keys, and `index.parquet`.

The index has one row for every sampled caption, in the order of keys: where its picture lies, or why there is none.
Pictures are kept byte for byte; any tar reader opens the shards, and ours reads by range and checks by sha256.
What reads strangers' tars is `image_sources.py`, handed on here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import pyarrow as pa

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.images import ImageSet
from thinkdiff.storage.caption_sample import must_ascend
from thinkdiff.storage.image_sources import TarSample, find_tars, read_tar, read_tars
from thinkdiff.storage.records import checked_bytes, missing_files
from thinkdiff.storage.root import Folder, sha256_hex
from thinkdiff.storage.tables import column, read_table, table_bytes
from thinkdiff.storage.tar_stream import TarBuilder

INDEX = "index.parquet"
MAX_SHARD = 1 << 30
OK, FAILED = "ok", "failed"
ROWS = pa.schema(
    [
        column("key", pa.string()),
        column("collection", pa.string()),
        column("caption", pa.string()),
        column("shard", pa.int32(), nullable=True),
        column("offset", pa.int64(), nullable=True),
        column("size", pa.int64(), nullable=True),
        column("width", pa.int32(), nullable=True),
        column("height", pa.int32(), nullable=True),
        column("sha256", pa.string(), nullable=True),
        column("status", pa.string()),
        column("reason", pa.string(), nullable=True),
    ]
)


def shard_name(shard: int) -> str:
    """The name of a shard."""
    return f"shards/{shard:05d}.tar"


class IndexRow(NamedTuple):
    """A row of the index. Of a failed one all from `shard` to `sha256` is None, of a good one `reason` is."""

    key: str
    collection: str
    caption: str
    shard: int | None
    offset: int | None
    size: int | None
    width: int | None
    height: int | None
    sha256: str | None
    status: str
    reason: str | None


class CaptionLike(Protocol):
    """What the index takes over from a sampled caption."""

    @property
    def key(self) -> str: ...
    @property
    def collection(self) -> str: ...
    @property
    def caption(self) -> str: ...


class Held(NamedTuple):
    """Where a picture waits, and what is known about it."""

    offset: int
    size: int
    width: int
    height: int
    kind: str
    sha256: str


class ImageWriter:
    """Takes pictures in any order and writes them in the order of their keys.

    They wait in an unnamed file of the temporary folder, so memory does not grow with them; the disk must have room.
    """

    def __init__(self, folder: Folder, shard_size: int) -> None:
        self.folder, self.shard_size = folder, shard_size
        self._held: dict[str, Held] = {}
        self._waiting = tempfile.TemporaryFile(prefix="thinkdiff-images-")
        self._end = 0

    def holds(self, key: str) -> bool:
        """Whether there is a picture of that key already."""
        return key in self._held

    def hold(self, key: str, data: bytes, width: int, height: int, kind: str, digest: str) -> None:
        """Takes a picture; `kind` is its extension, `digest` its sha256."""
        assert key not in self._held, key
        self._waiting.seek(self._end)
        self._waiting.write(data)
        self._held[key] = Held(self._end, len(data), width, height, kind, digest)
        self._end += len(data)

    def finish(self, captions: Iterable[CaptionLike], reasons: Mapping[str, str]) -> tuple[tuple[FileEntry, ...], int]:
        """Writes shards and index, a row for each caption. Returns the entries and the number of pictures.

        A caption without a picture fails for its reason, by default that it is not in the tars.
        """
        ordered = sorted(captions, key=lambda caption: caption.key)
        must_ascend([caption.key for caption in ordered], self.folder.full(INDEX))
        entries: list[FileEntry] = []
        rows: list[IndexRow] = []
        builder, count = TarBuilder(), 0
        for caption in ordered:
            about = (caption.key, caption.collection, caption.caption)
            held = self._held.get(caption.key)
            if held is None:
                reason = reasons.get(caption.key, "not in the tars")
                rows.append(IndexRow(*about, None, None, None, None, None, None, FAILED, reason))
                continue
            if count == self.shard_size or (count and len(builder) + held.size > MAX_SHARD):
                entries.append(self.folder.write(shard_name(len(entries)), builder.finish()))
                builder, count = TarBuilder(), 0
            offset = builder.add(f"{caption.key}.{held.kind}", self._picture(held))
            count += 1
            rows.append(IndexRow(*about, len(entries), offset, *held[1:4], held.sha256, OK, None))
        if count:
            entries.append(self.folder.write(shard_name(len(entries)), builder.finish()))
        columns = {name: [row[place] for row in rows] for place, name in enumerate(ROWS.names)}
        index = self.folder.write(INDEX, table_bytes(pa.Table.from_pydict(columns, ROWS)))
        self._waiting.close()
        return (*entries, index), sum(row.status == OK for row in rows)

    def _picture(self, held: Held) -> bytes:
        self._waiting.seek(held.offset)
        return self._waiting.read(held.size)


class ImageReader:
    """The pictures of an ImageSet. Raises StoreError when a file is missing or the index contradicts itself."""

    def __init__(self, artifact: ImageSet) -> None:
        self.folder = Folder(artifact.uri)
        if problems := missing_files(artifact):
            raise StoreError(
                f"{artifact.uri}: found {problems[0]}. The pictures are not whole; re-run fetch_images with --refresh."
            )
        self._sizes = {entry.path: entry.size for entry in artifact.files}
        table = read_table(checked_bytes(artifact, INDEX), ROWS, artifact.path(INDEX))
        self.rows = list(map(IndexRow, *(found.to_pylist() for found in table.columns)))
        must_ascend([row.key for row in self.rows], artifact.path(INDEX))
        for row in self.rows:
            if not self._fits(row):
                raise StoreError(
                    f"{artifact.path(INDEX)}: found the row {row.key} without a place in a shard or a reason, expected "
                    "one or the other. The index was altered; re-run fetch_images with --refresh."
                )

    @cached_property
    def ok(self) -> list[IndexRow]:
        """The rows that have a picture, in the order of keys."""
        return [row for row in self.rows if row.status == OK]

    @cached_property
    def failed(self) -> list[IndexRow]:
        """The rows that have a reason instead."""
        return [row for row in self.rows if row.status == FAILED]

    def read(self, rows: Sequence[IndexRow]) -> list[bytes]:
        """The pictures of some rows, in their order. Raises StoreError for bytes other than those recorded."""
        ranges = []
        for row in rows:
            if row.shard is None or row.offset is None or row.size is None:
                raise StoreError(f"{self.folder.uri}: {row.key}: found no picture ({row.reason}), expected one.")
            ranges.append((shard_name(row.shard), row.offset, row.offset + row.size))
        pictures = self.folder.read_ranges(ranges)
        for row, picture in zip(rows, pictures, strict=True):
            if sha256_hex(picture) != row.sha256:
                raise StoreError(
                    f"{self.folder.uri}: {row.key}: found other bytes than recorded, expected sha256 "
                    f"{str(row.sha256)[:12]}…. The shard is altered; re-run fetch_images with --refresh."
                )
        return pictures

    def _fits(self, row: IndexRow) -> bool:
        place = (row.shard, row.offset, row.size, row.width, row.height, row.sha256)
        if row.status == FAILED:
            return row.reason is not None and all(value is None for value in place)
        if row.status != OK or row.shard is None or row.offset is None or row.size is None or None in place:
            return False
        return 0 <= row.offset <= row.offset + row.size <= self._sizes.get(shard_name(row.shard), -1)


__all__ = ["ImageReader", "ImageWriter", "IndexRow", "TarSample", "find_tars", "read_tar", "read_tars"]
