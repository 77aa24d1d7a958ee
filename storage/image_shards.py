"""The pictures of an ImageSet: `shards/<i>.tar`, in the order of their keys, and `index.parquet`.

The index has one row for every sampled caption, in the order of keys: where its picture lies, or why there is none.
Any tar reader opens the shards; the reader here reads by range and checks by sha256. The writer is `image_parts.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.images import ImageSet
from thinkdiff.storage.caption_sample import must_ascend
from thinkdiff.storage.records import checked_bytes, missing_files, written_by
from thinkdiff.storage.root import Folder, sha256_hex
from thinkdiff.storage.tables import column, read_table

INDEX = "index.parquet"
OK, FAILED = "ok", "failed"
BATCH = 1 << 14
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


def rows_of(table: pa.Table | pa.RecordBatch) -> list[IndexRow]:
    """The rows of an index, or of a part of one."""
    return list(map(IndexRow, *(found.to_pylist() for found in table.columns)))


class Rows(Sequence[IndexRow]):
    """Rows of an index; each is made when it is asked for. A slice is a list."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, place: int) -> IndexRow: ...
    @overload
    def __getitem__(self, place: slice) -> list[IndexRow]: ...
    def __getitem__(self, place: int | slice) -> IndexRow | list[IndexRow]:
        if isinstance(place, slice):
            return rows_of(self.table.take(list(range(len(self))[place])))
        return rows_of(self.table.slice(range(len(self))[place], 1))[0]

    def __iter__(self) -> Iterator[IndexRow]:
        for batch in self.table.to_batches(max_chunksize=BATCH):
            yield from rows_of(batch)


class ImageReader:
    """The pictures of an ImageSet. Raises StoreError when a file is missing or the index contradicts itself.

    rows: all, in the order of keys; ok: those that have a picture; failed: those that have a reason instead. Of
    the index columns are held, and a row is made when it is asked for.
    """

    def __init__(self, artifact: ImageSet) -> None:
        self.folder = Folder(artifact.uri)
        must_be_there(artifact)
        table = read_table(checked_bytes(artifact, INDEX), ROWS, artifact.path(INDEX), writer=written_by(artifact))
        must_ascend(table.column("key"), artifact.path(INDEX))
        bad = np.flatnonzero(~placed(table, {entry.path: entry.size for entry in artifact.files}))
        if len(bad):
            raise StoreError(
                f"{artifact.path(INDEX)}: found the row {table.column('key')[int(bad[0])]} without a place in a shard "
                "or a reason, expected one or the other. The index was altered; re-run fetch_images with --refresh."
            )
        self.rows = Rows(table)

    @cached_property
    def ok(self) -> Rows:
        """The rows that have a picture, in the order of keys."""
        return Rows(with_status(self.rows.table, OK))

    @cached_property
    def failed(self) -> Rows:
        """The rows that have a reason instead."""
        return Rows(with_status(self.rows.table, FAILED))

    def read(self, rows: Sequence[IndexRow]) -> list[bytes]:
        """The pictures of some rows, in their order. Raises StoreError for bytes other than those recorded."""
        return read_pictures(self.folder, rows)


def must_be_there(artifact: ImageSet) -> None:
    """Raises StoreError when a file of the set is missing or of another size."""
    if problems := missing_files(artifact):
        raise StoreError(
            f"{artifact.uri}: found {problems[0]}. The pictures are not whole; re-run fetch_images with --refresh."
        )


def with_status(table: pa.Table, status: str) -> pa.Table:
    """The rows of that status."""
    return table.filter(pc.call_function("equal", [table.column("status"), status]))


def placed(table: pa.Table, sizes: Mapping[str, int]) -> npt.NDArray[np.bool_]:
    """Of each row, whether it has a place inside its shard, of `sizes[name]` bytes, or a reason and no place at all."""
    place = ("shard", "offset", "size", "width", "height", "sha256")
    given = np.array([table.column(name).is_valid().to_numpy() for name in place])
    shard, start, size = (table.column(name).fill_null(-1).to_numpy().astype(np.int64) for name in place[:3])
    shards, which = np.unique(shard, return_inverse=True)
    room = np.array([sizes.get(shard_name(number), -1) for number in shards.tolist()], np.int64)[which]
    inside = given.all(0) & (start >= 0) & (start + size >= start) & (start + size <= room)
    reasoned = ~given.any(0) & table.column("reason").is_valid().to_numpy()
    status = table.column("status")
    ok, failed = (pc.call_function("equal", [status, value]).to_numpy() for value in (OK, FAILED))
    return (ok & inside) | (failed & reasoned)


def read_pictures(folder: Folder, rows: Sequence[IndexRow]) -> list[bytes]:
    """The pictures of some rows of an ImageSet's index. Raises StoreError for a lost shard or bytes not as recorded."""
    ranges = []
    for row in rows:
        if row.shard is None or row.offset is None or row.size is None:
            raise StoreError(f"{folder.uri}: {row.key}: found no picture ({row.reason}), expected one.")
        ranges.append((shard_name(row.shard), row.offset, row.offset + row.size))
    try:
        pictures = folder.read_ranges(ranges)
    except FileNotFoundError as error:
        raise StoreError(
            f"{folder.uri}: found no file {error.filename or error}, expected a shard of pictures. It was lost; re-run "
            "fetch_images with --refresh."
        ) from error
    for row, picture in zip(rows, pictures, strict=True):
        if sha256_hex(picture) != row.sha256:
            raise StoreError(
                f"{folder.uri}: {row.key}: found other bytes than recorded, expected sha256 "
                f"{str(row.sha256)[:12]}…. The shard is altered; re-run fetch_images with --refresh."
            )
    return pictures
