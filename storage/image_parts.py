"""The writer of an ImageSet: shard by shard, each a committed part, the index made from the parts at the end.

    shards/<i>.tar      the pictures of captions [i * shard_size, (i + 1) * shard_size), in the order of their keys
    rows/<i>.parquet    the index rows of these captions
    commits/<i>.json    the part record, written last
    amended/            a shard made better by a re-fetch, whole, on its way into place

Pictures wait in an unnamed file of the temporary folder until their shard is whole, so memory does not grow with them.
The reader is `image_shards.py`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import IO, Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.storage.image_shards import FAILED, INDEX, OK, ROWS, IndexRow, rows_of, shard_name
from thinkdiff.storage.parts import Part, PartLog, must_be_whole
from thinkdiff.storage.records import verified_bytes
from thinkdiff.storage.root import CHUNK, Folder, sha256_hex
from thinkdiff.storage.tables import ROW_GROUP, read_table, table_bytes
from thinkdiff.storage.tar_stream import BLOCK, TarBuilder, header_name

COMMITS, AMENDED = "commits", "amended"


class CaptionLike(Protocol):
    """What the index takes over from a sampled caption, or from a row that is there already."""

    @property
    def key(self) -> str: ...
    @property
    def collection(self) -> str: ...
    @property
    def caption(self) -> str: ...


class Held(NamedTuple):
    """A picture that waits: how to read it, and what the index says of it."""

    read: Callable[[], bytes]
    size: int
    width: int
    height: int
    kind: str
    sha256: str


class Spool:
    """The pictures of one shard, by the place of their caption, until it is written."""

    def __init__(self) -> None:
        self.held: dict[int, Held] = {}
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="thinkdiff-images-")
        self._end = 0

    def hold(self, place: int, data: bytes, width: int, height: int, kind: str) -> None:
        """Takes a picture; `kind` is its extension."""
        assert place not in self.held, place
        start, size = self._end, len(data)
        self._file.seek(start)
        self._file.write(data)
        self._end += size
        self.held[place] = Held(partial(self._read, start, size), size, width, height, kind, sha256_hex(data))

    def close(self) -> None:
        """Frees the disk."""
        self._file.close()

    def _read(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size)


class ImageParts:
    """Writes a set of a fixed number of captions, shard by shard, in any order."""

    def __init__(self, folder: Folder, captions: int, shard_size: int) -> None:
        self.folder, self.captions, self.shard_size = folder, captions, shard_size
        self.shards = -(-captions // shard_size)
        self._log = PartLog(folder, COMMITS, Part)
        self._amended = PartLog(folder, AMENDED, Part)

    def span(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * self.shard_size, min(self.captions, (shard + 1) * self.shard_size))

    def prepare(self) -> None:
        """Puts into place what a killed re-fetch had made and removes what was half-written; harmless when repeated."""
        for part in self._amended.committed().values():
            self._move(part)
        (self.folder / AMENDED).delete_all()
        for name in ("shards", "rows", COMMITS):
            (self.folder / name).sweep()

    def committed(self) -> dict[int, Part]:
        """The shards that are done, by number. Those that cannot be trusted are logged and forgotten."""
        return self._log.committed(self._complaint)

    def find(self, shard: int) -> Part | None:
        """The shard's part, if it is committed; for writers side by side, as it judges nobody's files."""
        return self._log.find(shard)

    def done(self) -> int:
        """How many captions are committed, by the records' names alone."""
        numbers = [int(name[len(COMMITS) + 1 : -5]) for name in self.folder.sizes(COMMITS) if name.endswith(".json")]
        return sum(len(self.span(number)) for number in numbers)

    def rows(self, part: Part) -> list[IndexRow]:
        """The index rows of a committed shard. Raises StoreError when they are lost or altered."""
        return rows_of(self._table(part))

    def commit(self, shard: int, captions: Sequence[CaptionLike], spool: Spool, reasons: Mapping[int, str]) -> None:
        """Writes a shard: the picture of each caption, or the reason why there is none.

        Raises LockedError when the shard is committed already.
        """
        self._log.must_be_free(shard)
        self._log.commit(self._write(shard, captions, spool.held, reasons))

    def amend(self, part: Part, rows: Sequence[IndexRow], spool: Spool, reasons: Mapping[int, str]) -> None:
        """Writes a committed shard again with some failed rows made good; a kill leaves the old or the new one."""
        name, held = shard_name(part.number), dict(spool.held)
        for place, row in enumerate(rows):
            if row.status == OK:
                held[place] = self._held(name, row)
        amended = self._write(part.number, rows, held, reasons, f"{AMENDED}/")
        self._amended.commit(amended)
        self._move(amended)

    def files(self) -> tuple[tuple[FileEntry, ...], Counter[str]]:
        """Writes the index of a finished set; the entries of all files, and how often each reason was given.

        Raises StoreError when a shard is not committed.
        """
        parts, reasons = self.committed(), Counter[str]()
        must_be_whole(self.folder, parts, self.shards)
        ordered = [parts[number] for number in sorted(parts)]
        with tempfile.TemporaryFile(prefix="thinkdiff-index-") as file:
            with pq.ParquetWriter(file, ROWS, compression="zstd", store_schema=False) as writer:
                for table in in_groups(self._table(part) for part in ordered):
                    reasons.update(row["reason"] for row in table.select(["reason"]).to_pylist() if row["reason"])
                    writer.write_table(table, row_group_size=ROW_GROUP)
            file.seek(0)
            index = self.folder.write_pieces(INDEX, iter(lambda: file.read(CHUNK), b""))
        records = [self._log.entry(part.number) for part in ordered]
        return (*(entry for part in ordered for entry in part.files), *records, index), reasons

    def _write(
        self,
        shard: int,
        captions: Sequence[CaptionLike],
        held: Mapping[int, Held],
        reasons: Mapping[int, str],
        prefix: str = "",
    ) -> Part:
        assert len(captions) == len(self.span(shard)), shard
        ordered = [(captions[place].key, held[place]) for place in sorted(held)]
        entries, builder = [], TarBuilder()
        if ordered:
            members = ((f"{key}.{picture.kind}", picture.read()) for key, picture in ordered)
            entries.append(self.folder.write_pieces(prefix + shard_name(shard), builder.pieces(members)))
        offsets, rows = iter(builder.offsets), list[IndexRow]()
        for place, caption in enumerate(captions):
            about, picture = (caption.key, caption.collection, caption.caption), held.get(place)
            if picture is None:
                rows.append(IndexRow(*about, None, None, None, None, None, None, FAILED, reasons[place]))
            else:
                found = (picture.size, picture.width, picture.height, picture.sha256)
                rows.append(IndexRow(*about, shard, next(offsets), *found, OK, None))
        columns = {name: [row[at] for row in rows] for at, name in enumerate(ROWS.names)}
        entries.append(self.folder.write(prefix + rows_name(shard), table_bytes(pa.Table.from_pydict(columns, ROWS))))
        info = {"images": len(held), "failed": len(rows) - len(held)}
        return Part(number=shard, rows=len(rows), files=tuple(entries), info=info)

    def _move(self, part: Part) -> None:
        """Copies an amended shard into place, its record last, and forgets the amendment."""
        entries = []
        for entry in part.files:
            pieces = self.folder.chunks(entry.path)
            entries.append(self.folder.write_pieces(entry.path.removeprefix(f"{AMENDED}/"), pieces))
        self._log.replace(part.model_copy(update={"files": tuple(entries)}))
        self.folder.delete(self._amended.name(part.number))
        for entry in part.files:
            self.folder.delete(entry.path)

    def _held(self, name: str, row: IndexRow) -> Held:
        """A picture that is in a shard already."""
        about: Any = row
        start, end = about.offset, about.offset + about.size
        kind = header_name(self.folder.read_range(name, start - BLOCK, start)).rpartition(".")[2]
        return Held(
            partial(self.folder.read_range, name, start, end), about.size, about.width, about.height, kind, about.sha256
        )

    def _table(self, part: Part) -> pa.Table:
        entry = part.files[-1]
        return read_table(verified_bytes(self.folder, entry), ROWS, self.folder.full(entry.path), part.rows)

    def _complaint(self, part: Part) -> str | None:
        if part.number >= self.shards or part.rows != len(self.span(part.number)):
            return f"a part of {part.rows} rows"
        tar = [shard_name(part.number)] if part.info.get("images") else []
        expected = [*tar, rows_name(part.number)]
        return None if part.names() == expected else f"a part of the files {', '.join(part.names())}"


def rows_name(shard: int) -> str:
    """The name of a shard's part of the index."""
    return f"rows/{shard:05d}.parquet"


def in_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of ROW_GROUP rows, the last one smaller."""
    waiting, rows = list[pa.Table](), 0
    for table in tables:
        waiting.append(table)
        rows += len(table)
        if rows >= ROW_GROUP:
            left = pa.concat_tables(waiting)
            while len(left) >= ROW_GROUP:
                yield left.slice(0, ROW_GROUP)
                left = left.slice(ROW_GROUP)
            waiting, rows = [left], len(left)
    if rows:
        yield pa.concat_tables(waiting)
