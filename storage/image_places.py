"""Where the tars hold the sampled pictures: the first of two passes over them, committed tar by tar.

In: the tars of a spec and the keys of the sample. Out: `places/<tar>.parquet` with row of the sample, offset, size or
reason, and from these, for some shards, the places of each row in the order of the tars. Pictures are not read here.
The stage removes `places/` when its index is written. Memory: 32 bytes a key, 24 a place.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.captions import sample_key
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.images import TarSource
from thinkdiff.storage.image_sources import TarSample, find_tars, read_samples
from thinkdiff.storage.parts import Part, PartLog
from thinkdiff.storage.records import verified_bytes
from thinkdiff.storage.root import Folder
from thinkdiff.storage.tables import column, read_table, table_bytes

PLACES = "places"
BATCH = 1 << 12
MOST = 8  # places of one key: a tar may repeat a broken picture a million times
COLUMNS = pa.schema(
    [
        column("row", pa.int64()),
        column("offset", pa.int64()),
        column("size", pa.int64()),
        column("reason", pa.string(), nullable=True),
    ]
)
Rows = npt.NDArray[np.int64]
log = logging.getLogger(__name__)


class Tar(NamedTuple):
    """A tar of a source."""

    collection: str
    folder: Folder
    name: str


class Place(NamedTuple):
    """Where a picture lies."""

    tar: int
    offset: int
    size: int


def tars_of(data_root: str, sources: Sequence[TarSource]) -> list[Tar]:
    """All tars of some sources in order. Raises InputError when a source has none."""
    return [Tar(source.collection, *found) for source in sources for found in find_tars(data_root, source)]


class KeyTable:
    """The sorted keys of the sample, asked for their rows."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = np.fromiter((key.encode() for key in keys), "S32")

    def rows(self, keys: Sequence[str]) -> Rows:
        """The row of each key, -1 for one that is not in the sample."""
        wanted = np.array(keys, "S32")
        found = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        return np.where(self._keys[found] == wanted, found, -1)


class PlaceLog:
    """The places found so far, a part for each tar."""

    def __init__(self, folder: Folder, tars: Sequence[Tar]) -> None:
        self.folder, self.tars = folder, tars
        self._log = PartLog(folder, PLACES, Part)

    def committed(self) -> dict[int, Part]:
        """The tars that were gone through; one that is another or of another size now is gone through again."""
        return self._log.committed(self._complaint)

    def index(self, number: int, keys: KeyTable, max_bytes: int) -> None:
        """Goes through a tar and commits where it holds pictures of the sample.

        A damaged tar is a warning: what stands before the damage counts.
        """
        tar, tables, damage = self.tars[number], [COLUMNS.empty_table()], ""
        size, batch = tar.folder.size(tar.name), list[TarSample]()
        try:
            for sample in read_samples(tar.folder, tar.name, max_bytes):
                batch.append(sample)
                if len(batch) == BATCH:
                    tables.append(places_of(batch, tar.collection, keys))
                    batch.clear()
        except InputError as error:
            damage = str(error)
            log.warning("%s", damage)
        table = pa.concat_tables([*tables, places_of(batch, tar.collection, keys)])
        entry = self.folder.write(f"{PLACES}/{number:06d}.parquet", table_bytes(table))
        info = {"tar": tar.folder.full(tar.name), "bytes": size, "damage": damage}
        self._log.commit(Part(number=number, rows=len(table), files=(entry,), info=info))

    def places(self, shards: Sequence[int], shard_size: int) -> Places:
        """What is known of the rows of some shards. Raises StoreError when a tar has not been gone through."""
        return Places(self._tables(), shards, shard_size)

    def remove(self) -> None:
        """Forgets all places."""
        (self.folder / PLACES).delete_all()

    def _tables(self) -> Iterator[tuple[int, pa.Table]]:
        for number, part in sorted(self.committed().items()):
            entry: FileEntry = part.files[0]
            where = self.folder.full(entry.path)
            yield number, read_table(verified_bytes(self.folder, entry), COLUMNS, where, part.rows)

    def _complaint(self, part: Part) -> str | None:
        if part.number >= len(self.tars):
            return "the part of a tar that is not asked for"
        tar = self.tars[part.number]
        if part.info.get("tar") != tar.folder.full(tar.name) or part.info.get("bytes") != tar.folder.size(tar.name):
            return f"the part of another tar ({part.info.get('tar')})"
        return None


def places_of(samples: Sequence[TarSample], collection: str, keys: KeyTable) -> pa.Table:
    """The places of those of some samples that are wanted."""
    named = [sample for sample in samples if sample.url]
    rows = keys.rows([sample_key(collection, sample.url, sample.caption) for sample in named])
    held = [(int(row), *sample[2:]) for row, sample in zip(rows, named, strict=True) if row >= 0]
    columns = {name: [values[at] for values in held] for at, name in enumerate(COLUMNS.names)}
    return pa.Table.from_pydict(columns, COLUMNS)


class Places:
    """The places of the rows of some shards, in the order of the tars."""

    def __init__(self, tables: Iterable[tuple[int, pa.Table]], shards: Sequence[int], shard_size: int) -> None:
        kept, numbers = [COLUMNS.empty_table()], [np.empty(0, np.int64)]
        for number, table in tables:
            rows = table.column("row").to_numpy()
            kept.append(table.filter(pa.array(np.isin(rows // shard_size, shards))))
            numbers.append(np.full(len(kept[-1]), number))
        table = pa.concat_tables(kept)
        order = np.argsort(table.column("row").to_numpy(), kind="stable")
        table = table.take(pa.array(order))
        self._rows, self._offsets, self._sizes = (table.column(i).to_numpy() for i in range(3))
        self._tars, self._reasons = np.concatenate(numbers)[order], table.column("reason").combine_chunks()

    def of(self, row: int) -> tuple[list[Place], str | None]:
        """The first places of a row, and the reason that a tar gives for having no picture."""
        first, end = (int(np.searchsorted(self._rows, row, side)) for side in ("left", "right"))
        places, reason = [], None
        for i in range(first, end):
            if len(places) == MOST:
                break
            if self._reasons[i].is_valid:
                reason = self._reasons[i].as_py()
            else:
                places.append(Place(int(self._tars[i]), int(self._offsets[i]), int(self._sizes[i])))
        return places, reason
