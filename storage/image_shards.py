"""The pictures of an ImageSet: `shards/<i>.tar`, in the order of their keys, and `index.parquet`.

The index has one row for every sampled caption, in the order of keys: where its picture lies, or why there is none.
Any tar reader opens the shards; the reader here reads by range and checks by sha256. The writer is `image_parts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.images import ImageSet
from thinkdiff.storage.caption_sample import must_ascend
from thinkdiff.storage.records import checked_bytes, missing_files
from thinkdiff.storage.root import Folder, sha256_hex
from thinkdiff.storage.tables import column, read_table

INDEX = "index.parquet"
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


def rows_of(table: pa.Table) -> list[IndexRow]:
    """The rows of an index, or of a part of one."""
    return list(map(IndexRow, *(found.to_pylist() for found in table.columns)))


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
        must_ascend(table.column("key"), artifact.path(INDEX))
        self.rows = rows_of(table)
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
        return read_pictures(self.folder, rows)

    def _fits(self, row: IndexRow) -> bool:
        place = (row.shard, row.offset, row.size, row.width, row.height, row.sha256)
        if row.status == FAILED:
            return row.reason is not None and all(value is None for value in place)
        if row.status != OK or row.shard is None or row.offset is None or row.size is None or None in place:
            return False
        return 0 <= row.offset <= row.offset + row.size <= self._sizes.get(shard_name(row.shard), -1)


def pictures_of(artifact: ImageSet, keys: Sequence[str]) -> dict[str, bytes]:
    """The pictures of those keys that have one. Raises StoreError for bytes other than those recorded."""
    table = read_table(checked_bytes(artifact, INDEX), ROWS, artifact.path(INDEX))
    wanted = pc.call_function("is_in", [table.column("key")], pc.SetLookupOptions(pa.array(keys, pa.string())))
    found = [row for row in rows_of(table.filter(wanted)) if row.status == OK]
    return {row.key: data for row, data in zip(found, read_pictures(Folder(artifact.uri), found), strict=True)}


def read_pictures(folder: Folder, rows: Sequence[IndexRow]) -> list[bytes]:
    """The pictures of some rows of an ImageSet's index. Raises StoreError for bytes other than those recorded."""
    ranges = []
    for row in rows:
        if row.shard is None or row.offset is None or row.size is None:
            raise StoreError(f"{folder.uri}: {row.key}: found no picture ({row.reason}), expected one.")
        ranges.append((shard_name(row.shard), row.offset, row.offset + row.size))
    pictures = folder.read_ranges(ranges)
    for row, picture in zip(rows, pictures, strict=True):
        if sha256_hex(picture) != row.sha256:
            raise StoreError(
                f"{folder.uri}: {row.key}: found other bytes than recorded, expected sha256 "
                f"{str(row.sha256)[:12]}…. The shard is altered; re-run fetch_images with --refresh."
            )
    return pictures
