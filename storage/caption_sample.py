"""The sample of captions on disk: `captions.parquet`, sorted by key, and `malformed.parquet` beside it.

In: sampled captions and malformed rows. Out: file entries; the same rows give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.captions import CaptionSet
from thinkdiff.schemas.errors import StoreError
from thinkdiff.storage.records import checked_bytes
from thinkdiff.storage.root import Folder
from thinkdiff.storage.tables import column, read_table, table_bytes

if TYPE_CHECKING:
    from thinkdiff.storage.caption_shards import Malformed

CAPTIONS, MALFORMED = "captions.parquet", "malformed.parquet"
BATCH = 1 << 14


class SampledCaption(NamedTuple):
    """A sampled caption; file and row say where it stood."""

    key: str
    collection: str
    url: str
    caption: str
    file: str
    row: int


TEXTS = ("key", "collection", "url", "caption", "file")
SAMPLE = pa.schema([*(column(name, pa.string()) for name in TEXTS), column("row", pa.int64())])
BAD = pa.schema(
    [
        column("collection", pa.string()),
        column("file", pa.string()),
        column("row", pa.int64()),
        column("reason", pa.string()),
        column("excerpt", pa.string()),
    ]
)


def write_captions(folder: Folder, rows: Iterable[SampledCaption]) -> FileEntry:
    """Writes the sample sorted by key. Raises StoreError when a key comes twice."""
    ordered = sorted(rows, key=attrgetter("key"))
    must_ascend([row.key for row in ordered], folder.full(CAPTIONS))
    columns = {name: [getattr(row, name) for row in ordered] for name in SAMPLE.names}
    return folder.write(CAPTIONS, table_bytes(pa.Table.from_pydict(columns, SAMPLE)))


def read_captions(artifact: CaptionSet) -> list[SampledCaption]:
    """The sample in the order of keys. Raises StoreError when it is lost, altered or out of order."""
    return list(iterate_captions(artifact))


def iterate_captions(artifact: CaptionSet) -> Iterator[SampledCaption]:
    """The sample in the order of keys, a batch of objects in memory at a time."""
    where = artifact.path(CAPTIONS)
    table = read_table(checked_bytes(artifact, CAPTIONS), SAMPLE, where)
    must_ascend(table.column("key").to_pylist(), where)
    for batch in table.to_batches(max_chunksize=BATCH):
        yield from map(SampledCaption, *(found.to_pylist() for found in batch.columns))


def must_ascend(keys: list[str], where: str) -> None:
    """Raises StoreError unless the keys are unique and sorted."""
    if any(one >= other for one, other in pairwise(keys)):
        raise StoreError(f"{where}: found a key twice or out of order, expected sorted unique keys.")


class MalformedLog:
    """Collects malformed rows, compressed as they come; `counts` holds their number by (collection, reason)."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._rows: list[tuple[str, str, int, str, str]] = []
        self._sink = pa.BufferOutputStream()
        self._file = pq.ParquetWriter(self._sink, BAD, compression="zstd", store_schema=False)

    def add(self, collection: str, file: str, row: Malformed) -> None:
        """Takes a row down."""
        self.counts[collection, row.reason] += 1
        self._rows.append((collection, file, row.row, row.reason, row.excerpt))
        if len(self._rows) == BATCH:
            self._flush()

    def write(self, folder: Folder) -> FileEntry:
        """Writes `malformed.parquet`; call it once, at the end."""
        self._flush()
        self._file.close()
        return folder.write(MALFORMED, memoryview(self._sink.getvalue()))

    def _flush(self) -> None:
        if self._rows:
            columns = dict(zip(BAD.names, zip(*self._rows, strict=True), strict=True))
            self._file.write_table(pa.Table.from_pydict(columns, BAD))
            self._rows.clear()


def read_malformed(artifact: CaptionSet) -> list[dict[str, Any]]:
    """All malformed rows, in the order in which they were met."""
    return read_table(checked_bytes(artifact, MALFORMED), BAD, artifact.path(MALFORMED)).to_pylist()
