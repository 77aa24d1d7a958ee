"""The rows of an ImageSet that have a picture, for those that need some of them at a time.

In: an ImageSet. Out: how many rows have a picture, by the part records and without the index; for a run of them, pieces
that any process reads by itself. A piece lies in one `rows/<i>.parquet`, which holds rows of the index and is verified
against its own entry in the record: reading one costs the same in a set of any size. The whole index: `ImageReader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.images import ImageSet
from thinkdiff.storage.caption_sample import must_ascend
from thinkdiff.storage.image_parts import COMMITS
from thinkdiff.storage.image_shards import OK, ROWS, IndexRow, must_be_there, rows_of, with_status
from thinkdiff.storage.parts import Part
from thinkdiff.storage.records import must_be_recorded, verified_bytes
from thinkdiff.storage.root import Folder
from thinkdiff.storage.tables import bad_table, read_table


class Piece(NamedTuple):
    """Of the `pictures` rows with a picture in a file of `rows` rows, those from `first` to before `last`."""

    entry: FileEntry
    rows: int
    pictures: int
    first: int
    last: int


class PicturedRows:
    """The rows with a picture, numbered in the order of their keys; a few bytes in memory for each shard of pictures.

    Raises StoreError when a file of the set is missing or a part record is altered.
    """

    def __init__(self, artifact: ImageSet) -> None:
        must_be_there(artifact)
        folder, entries = Folder(artifact.uri), {entry.path: entry for entry in artifact.files}
        records = [entries[name] for name in artifact.names(f"{COMMITS}/")]
        read = folder.read_ranges([(record.path, 0, record.size) for record in records])
        self._entries, sizes = list[FileEntry](), list[tuple[int, int]]()
        for record, data in zip(records, read, strict=True):
            must_be_recorded(folder, record, data)
            part = Part.model_validate_json(data)
            self._entries.append(entries[part.names()[-1]])
            sizes.append((part.rows, part.info["images"]))
        self._sizes_S2 = np.array(sizes, np.int64).reshape(-1, 2)
        self._ends_S = np.cumsum(self._sizes_S2[:, 1])

    def __len__(self) -> int:
        return int(self._sizes_S2[:, 1].sum())

    def pieces(self, span: range) -> tuple[Piece, ...]:
        """Where the rows of these neighbouring numbers lie, in their order."""
        assert span.step == 1, span
        found = list[Piece]()
        for shard in range(int(np.searchsorted(self._ends_S, span.start, "right")), len(self._entries)):
            rows, pictures = self._sizes_S2[shard].tolist()
            start = int(self._ends_S[shard]) - pictures
            if start >= span.stop:
                break
            first, last = max(span.start - start, 0), min(span.stop - start, pictures)
            if first < last:
                found.append(Piece(self._entries[shard], rows, pictures, first, last))
        return tuple(found)


class PieceReader:
    """Reads pieces of one ImageSet; the file read last stays in memory, as the next piece often lies in it."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._last: tuple[FileEntry, pa.Table] | None = None

    def rows(self, pieces: Sequence[Piece]) -> list[IndexRow]:
        """Their rows, one piece after the other. Raises StoreError for a file that is lost or altered."""
        found = (self._pictured(piece).slice(piece.first, piece.last - piece.first) for piece in pieces)
        return [row for table in found for row in rows_of(table)]

    def _pictured(self, piece: Piece) -> pa.Table:
        if self._last is None or self._last[0] != piece.entry:
            where = self.folder.full(piece.entry.path)
            table = read_table(verified_bytes(self.folder, piece.entry), ROWS, where, piece.rows)
            must_ascend(table.column("key"), where)
            pictured = with_status(table, OK)
            if len(pictured) != piece.pictures:
                raise bad_table(where, f"{len(pictured)} rows with a picture", f"{piece.pictures}")
            self._last = piece.entry, pictured
        return self._last[1]
