"""Rows of a collection by the thousand: a block of a file as two columns of byte ranges, with no object per row.

In: bytes of TSV lines, lines of two files, or Arrow arrays. Out: `Block`s. A row is taken as good here only when that
is beyond doubt (`caption_scan.py`); every other row goes to `caption_rows.py`, which decides.

Shapes: N rows of a column.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from thinkdiff.schemas.captions import CollectionFormat
from thinkdiff.storage.caption_rows import MAX_LINE, CaptionRow, Malformed, judged, parsed
from thinkdiff.storage.caption_scan import RETURN, Bytes, Flags, Places, beyond_doubt, cut_lines, gather

PACK = 1 << 12  # malformed rows that are compressed together


@dataclass(frozen=True)
class Text:
    """A column of N byte strings: ranges of one buffer, in its order, none overlapping another."""

    data: Bytes
    start: Places
    end: Places

    def __len__(self) -> int:
        return len(self.start)

    @staticmethod
    def of(array: pa.Array) -> Text:
        """A column of an Arrow array of strings or binaries. Nulls are empty strings."""
        wide = array.cast(pa.large_binary())
        _, offsets, values = wide.buffers()
        places = np.frombuffer(offsets, np.int64, len(wide) + 1, 8 * wide.offset)
        first, last = (int(places[0]), int(places[-1])) if len(wide) else (0, 0)
        data = np.frombuffer(values, np.uint8, last - first, first) if last > first else np.zeros(0, np.uint8)
        return Text(data, places[:-1] - first, places[1:] - first)

    def rows(self, chosen: Places) -> Text:
        """Some of the rows, in order; nothing is copied but their places."""
        return self if len(chosen) == len(self) else Text(self.data, self.start[chosen], self.end[chosen])

    def take(self) -> pa.Array:
        """The strings side by side, as a binary Arrow array."""
        ends = np.concatenate([[0], np.cumsum(self.end - self.start)])
        data = np.empty(ends[-1], np.uint8)
        gather(self.data, self.start, self.end, data, ends)
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(data)]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self), buffers)

    def bytes_of(self, row: int) -> bytes:
        """One string."""
        return self.data[self.start[row] : self.end[row]].tobytes()


class MalformedRows:
    """Malformed rows in the order in which they come, some thousand at a time as compressed bytes."""

    def __init__(self, rows: Iterable[Malformed] = ()) -> None:
        self._packs: list[bytes] = []
        self._packed, self._last = 0, list[tuple[int, str, str]]()
        for row in rows:
            self.add(row)

    def add(self, row: Malformed) -> None:
        """Takes a row down."""
        self._last.append((row.row, row.reason, row.excerpt))
        if len(self._last) == PACK:
            self._pack()

    def extend(self, other: MalformedRows) -> None:
        """Takes the rows of another down, whole packs as they are."""
        if other._packs:
            self._pack()
            self._packs += other._packs
            self._packed += other._packed
        for row in other._last:
            self.add(Malformed(*row))

    def _pack(self) -> None:
        if self._last:
            self._packs.append(zlib.compress(json.dumps(self._last).encode(), 1))
            self._packed, self._last = self._packed + len(self._last), []

    def __len__(self) -> int:
        return self._packed + len(self._last)

    def __iter__(self) -> Iterator[Malformed]:
        for pack in self._packs:
            yield from (Malformed(*row) for row in json.loads(zlib.decompress(pack)))
        yield from (Malformed(*row) for row in self._last)


@dataclass(frozen=True)
class Block:
    """Some consecutive rows of a file: `number`, `url` and `caption` of the good ones; the malformed ones apart.

    Numbers count from the beginning of what is read; `rows` is how many there are, good and bad.
    """

    rows: int
    number: Places
    url: Text
    caption: Text
    malformed: MalformedRows = field(default_factory=MalformedRows)

    def good(self) -> Iterator[CaptionRow]:
        """The good rows as objects."""
        for row, number in enumerate(self.number.tolist()):
            yield CaptionRow(number, self.url.bytes_of(row).decode(), self.caption.bytes_of(row).decode())


def tsv_block(form: CollectionFormat, data: Bytes, first: int) -> Block:
    """The block of whole lines that `data` holds; the last one may lack its newline. `first` numbers the first."""
    start, tab, end = cut_lines(data)
    left, right = Text(data, start, tab), Text(data, tab + 1, end)
    url, caption = (right, left) if form == "cc3m-tsv" else (left, right)
    good = at_a_glance(url, caption, is_utf8(data))

    def decide(row: int) -> CaptionRow | Malformed:
        stop = int(end[row])
        stop += stop < len(data) and data[stop] == RETURN
        return parsed(form, first + row, data[int(start[row]) : stop].tobytes())

    return finished(first, good, url, caption, decide)


def arrow_block(url: pa.Array, caption: pa.Array, first: int) -> Block:
    """The block of two arrays of strings of one length."""
    try:
        valid = all(array.validate(full=True) is None for array in (url, caption))
    except pa.ArrowInvalid:
        valid = False
    left, right = Text.of(url), Text.of(caption)
    good = at_a_glance(left, right, valid)

    def decide(row: int) -> CaptionRow | Malformed:
        try:
            return judged(first + row, url[row].as_py(), caption[row].as_py())
        except UnicodeDecodeError:
            return Malformed(first + row, "not UTF-8", "")

    return finished(first, good, left, right, decide)


def lists_block(urls: list[object], captions: list[object], first: int) -> Block:
    """The block of two lists that should hold strings."""
    rows = [judged(first + i, *pair) for i, pair in enumerate(zip(urls, captions, strict=True))]
    good = [row for row in rows if isinstance(row, CaptionRow)]
    return Block(
        len(rows),
        np.array([row.row for row in good], np.int64),
        Text.of(pa.array([row.url.encode() for row in good], pa.large_binary())),
        Text.of(pa.array([row.caption.encode() for row in good], pa.large_binary())),
        MalformedRows(row for row in rows if isinstance(row, Malformed)),
    )


def finished(
    first: int, good: Flags, url: Text, caption: Text, decide: Callable[[int], CaptionRow | Malformed]
) -> Block:
    """A block, with the rows that are in doubt decided one by one."""
    malformed = MalformedRows()
    for row in map(int, np.flatnonzero(~good)):  # no list: a chunk of newlines has millions of them
        found = decide(row)
        if isinstance(found, Malformed):
            malformed.add(found)
        else:
            good[row] = True
    kept = np.flatnonzero(good)
    return Block(len(good), first + kept, url.rows(kept), caption.rows(kept), malformed)


def at_a_glance(url: Text, caption: Text, valid: bool) -> Flags:
    """(N,) which rows are good beyond doubt. `valid`: every string is UTF-8."""
    return beyond_doubt(url.data, url.start, url.end, caption.data, caption.start, caption.end, MAX_LINE, valid)


def is_utf8(data: Bytes) -> bool:
    """Whether bytes are UTF-8 as a whole."""
    ends = np.array([0, len(data)], np.int64)
    text = pa.LargeStringArray.from_buffers(1, pa.py_buffer(ends), pa.py_buffer(data))
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
