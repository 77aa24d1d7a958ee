"""The sample of captions on disk: `captions.parquet`, sorted by key, and where its rows stood beside it.

In: columns of sampled captions, their origins, malformed rows. Out: file entries; the same rows give the same bytes.
`origins.parquet` and `malformed.parquet` are provenance: files and row numbers enter no content digest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.captions import CaptionSet
from thinkdiff.schemas.errors import StoreError
from thinkdiff.storage.records import checked_bytes, written_by
from thinkdiff.storage.root import Folder
from thinkdiff.storage.tables import column, read_table, table_bytes

if TYPE_CHECKING:
    from thinkdiff.storage.caption_rows import Malformed

CAPTIONS, ORIGINS_FILE, MALFORMED = "captions.parquet", "origins.parquet", "malformed.parquet"
BATCH = 1 << 14


class SampledCaption(NamedTuple):
    """A sampled caption."""

    key: str
    collection: str
    url: str
    caption: str


SAMPLE = pa.schema([column(name, pa.string()) for name in SampledCaption._fields])
ORIGINS = pa.schema([column("key", pa.string()), column("file", pa.string()), column("row", pa.int64())])
BAD = pa.schema(
    [
        column("collection", pa.string()),
        column("file", pa.string()),
        column("row", pa.int64()),
        column("reason", pa.string()),
        column("excerpt", pa.string()),
    ]
)


def write_captions(folder: Folder, columns: Mapping[str, pa.Array]) -> FileEntry:
    """Writes the columns of the sample. Raises StoreError when they are not sorted by key, or one comes twice."""
    must_ascend(columns["key"], folder.full(CAPTIONS))
    table = pa.Table.from_pydict({name: columns[name] for name in SAMPLE.names})
    return folder.write(CAPTIONS, table_bytes(table, page_index=True))


def write_origins(folder: Folder, key: pa.Array, file: pa.Array, row: pa.Array) -> FileEntry:
    """Writes in which file, and in which row of it, each caption of the sample stood."""
    table = pa.Table.from_arrays([key, file, row], schema=ORIGINS)
    return folder.write(ORIGINS_FILE, table_bytes(table)).model_copy(update={"content": False})


def read_captions(artifact: CaptionSet) -> list[SampledCaption]:
    """The sample in the order of keys. Raises StoreError when it is lost, altered or out of order."""
    return list(iterate_captions(artifact))


def iterate_captions(artifact: CaptionSet) -> Iterator[SampledCaption]:
    """The sample in the order of keys, a batch of objects in memory at a time."""
    where = artifact.path(CAPTIONS)
    table = read_table(checked_bytes(artifact, CAPTIONS), SAMPLE, where, writer=written_by(artifact))
    must_ascend(table.column("key"), where)
    for batch in table.to_batches(max_chunksize=BATCH):
        yield from map(SampledCaption, *(found.to_pylist() for found in batch.columns))


def must_ascend(keys: pa.Array | pa.ChunkedArray, where: str) -> None:
    """Raises StoreError unless a column of keys is sorted and holds none twice."""
    if len(keys) > 1 and not pc.call_function("all", [pc.call_function("less", [keys[:-1], keys[1:]])]).as_py():
        raise StoreError(f"{where}: found a key twice or out of order, expected sorted unique keys.")


class MalformedLog:
    """Collects malformed rows, compressed as they come; `counts` holds their number by (collection, reason)."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._rows: list[tuple[str, str, int, str, str]] = []
        self._sink = pa.BufferOutputStream()
        self._file = pq.ParquetWriter(self._sink, BAD, compression="zstd", store_schema=False)

    def add(self, collection: str, file: str, row: Malformed, begin: int = 0) -> None:
        """Takes a row down, whose number counts from row `begin` of the file."""
        self.counts[collection, row.reason] += 1
        self._rows.append((collection, file, begin + row.row, row.reason, row.excerpt))
        if len(self._rows) == BATCH:
            self._flush()

    def write(self, folder: Folder) -> FileEntry:
        """Writes `malformed.parquet`; call it once, at the end."""
        self._flush()
        self._file.close()
        entry = folder.write(MALFORMED, memoryview(self._sink.getvalue()))
        return entry.model_copy(update={"content": False})

    def _flush(self) -> None:
        if self._rows:
            columns = dict(zip(BAD.names, zip(*self._rows, strict=True), strict=True))
            self._file.write_table(pa.Table.from_pydict(columns, BAD))
            self._rows.clear()


def read_malformed(artifact: CaptionSet) -> list[dict[str, Any]]:
    """All malformed rows, in the order in which they were met."""
    return read_table(checked_bytes(artifact, MALFORMED), BAD, artifact.path(MALFORMED)).to_pylist()
