"""Rows of a collection by the thousand: a block of a file as two columns of byte ranges, with no object per row.

In: bytes of TSV lines, lines of two files, or Arrow arrays. Out: `Block`s. A row is taken as good here only when that
is beyond doubt (a plain http(s) url, a caption that begins with a printable character); every other row goes to
`caption_rows.py`, which decides. Bytes of a column are looked at eight at a time, as little-endian words.

Shapes: N rows of a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thinkdiff.schemas.captions import CollectionFormat
from thinkdiff.storage.caption_rows import MAX_LINE, CaptionRow, Malformed, judged, parsed

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
U = np.uint64
TAB, NEWLINE, RETURN = 9, 10, 13
PIECE = 8192  # words that are looked at together: they stay in the processor's cache, and need no new pages
LONGEST = 4096  # bytes of a url or caption that is looked at here


def spread(byte: int) -> np.uint64:
    """A word of eight such bytes."""
    return U(byte * 0x0101010101010101)


HIGH = spread(0x80)
NOWHERE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Text:
    """A column of N byte strings: ranges of one buffer, in its order, none overlapping another."""

    data: Bytes
    start: Places
    end: Places
    shared: Words | None = None  # `words_of` the data, where others have them, too

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
        return Text(data, places[:-1] - first, places[1:] - first, words_of(data))

    def rows(self, chosen: Places) -> Text:
        """Some of the rows, in order; nothing is copied but their places."""
        if len(chosen) == len(self):
            return self
        return Text(self.data, self.start[chosen], self.end[chosen], self.shared)

    def take(self) -> pa.Array:
        """The strings side by side, as a binary Arrow array."""
        if not len(self):
            return pa.array([], pa.large_binary())
        ends = np.empty(2 * len(self) + 1, np.int64)  # every second string is a gap
        ends[:-1:2], ends[1::2] = self.start, self.end
        ends[-1] = self.end[-1]
        view = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), 2 * len(self), [None, pa.py_buffer(ends), pa.py_buffer(self.data)]
        )
        return view.take(pa.array(np.arange(0, 2 * len(self), 2)))

    def bytes_of(self, row: int) -> bytes:
        """One string."""
        return self.data[self.start[row] : self.end[row]].tobytes()

    @cached_property
    def aligned(self) -> Words:
        """The buffer as words, and some more of zeros behind it; made once for all columns of a buffer."""
        return self.shared if self.shared is not None else words_of(self.data)

    def words_at(self, place: Places) -> Words:
        """The word that begins at each place of the buffer; zeros behind its end."""
        at, shift = place >> 3, ((place & 7) << 3).astype(U)
        return (self.aligned[at] >> shift) | ((self.aligned[at + 1] << (U(63) - shift)) << U(1))

    @cached_property
    def words(self) -> list[tuple[Places, Words, Words]]:
        """The strings eight bytes at a time: a list of (rows, words, past), of their first words, their second, …

        rows: those that have such a word, a longer string before a shorter; words: theirs, bytes past the end being
        zero; past: of the last of these rows, those whose last word this is, all bits of the bytes past the end.
        """
        found = []
        length = self.end - self.start
        number = (length + 7) >> 3  # of words
        order = np.argsort((0xFFFF - np.minimum(number, 0xFFFF)).astype(np.uint16), kind="stable")
        live = len(self) - np.cumsum(np.bincount(number))  # rows with more than j words
        start, length = self.start[order], length[order]
        at, shift = start >> 3, ((start & 7) << 3).astype(U)
        back = U(63) - shift
        low = self.aligned[at[: live[0]]] if len(live) > 1 else self.aligned[:0]
        for j in range(len(live) - 1):
            n = int(live[j])
            high = self.aligned[at[:n] + (j + 1)]
            word = (low[:n] >> shift[:n]) | ((high << back[:n]) << U(1))
            ended = n - int(live[j + 1])
            kept = length[n - ended : n] - 8 * j  # 1 to 8 bytes
            lost = (~U(0) << ((kept - 1) << 3).astype(U)) << U(8)
            word[n - ended :] &= ~lost
            found.append((order[:n], word, lost))
            low = high
        return found

    def flagged(self, of: Callable[[Words], Words], past: int) -> Flags:
        """(N,) whether `of` sets any bit for a word of a string, where bytes past its end are `past`."""
        found = np.zeros(len(self), np.bool_)
        for rows, word, lost in self.words:
            if past and len(lost):
                word = word.copy()
                word[-len(lost) :] |= lost & spread(past)
            marks = of(word)
            if marks.any():
                found[rows[marks != 0]] = True
        return found


@dataclass(frozen=True)
class Block:
    """Some consecutive rows of a file: `number`, `url` and `caption` of the good ones; the malformed ones apart.

    Numbers count from the beginning of what is read; `rows` is how many there are, good and bad.
    """

    rows: int
    number: Places
    url: Text
    caption: Text
    malformed: list[Malformed] = field(default_factory=list)

    def good(self) -> Iterator[CaptionRow]:
        """The good rows as objects."""
        for row, number in enumerate(self.number.tolist()):
            yield CaptionRow(number, self.url.bytes_of(row).decode(), self.caption.bytes_of(row).decode())


def tsv_block(form: CollectionFormat, data: Bytes, first: int) -> Block:
    """The block of whole lines that `data` holds; the last one may lack its newline. `first` numbers the first."""
    words = words_of(data)
    marks = find_bytes(words, len(data), (TAB, NEWLINE))
    newline = data[marks] == NEWLINE
    end, tabs = marks[newline], marks[~newline]
    start = np.concatenate([[0], end + 1])
    if len(data) > start[-1]:
        end = np.append(end, len(data))
    start = start[: len(end)]
    if len(tabs) == len(end) and bool(((tabs >= start) & (tabs < end)).all()):
        single, tab = np.ones(len(end), np.bool_), tabs
    else:
        at = np.searchsorted(tabs, start)
        single = np.searchsorted(tabs, end) - at == 1
        tab = np.append(tabs, len(data))[at]
    end = end - ((end > start) & (data[end - 1] == RETURN))
    left, right = Text(data, start, tab, words), Text(data, tab + 1, end, words)
    url, caption = (right, left) if form == "cc3m-tsv" else (left, right)
    plain = np.flatnonzero(single)
    good = np.zeros(len(end), np.bool_)
    good[plain] = beyond_doubt(url.rows(plain), caption.rows(plain), is_utf8(data))

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
    good = beyond_doubt(Text.of(url), Text.of(caption), valid)

    def decide(row: int) -> CaptionRow | Malformed:
        try:
            return judged(first + row, url[row].as_py(), caption[row].as_py())
        except UnicodeDecodeError:
            return Malformed(first + row, "not UTF-8", "")

    return finished(first, good, Text.of(url), Text.of(caption), decide)


def lists_block(urls: list[object], captions: list[object], first: int) -> Block:
    """The block of two lists that should hold strings."""
    rows = [judged(first + i, *pair) for i, pair in enumerate(zip(urls, captions, strict=True))]
    good = [row for row in rows if isinstance(row, CaptionRow)]
    return Block(
        len(rows),
        np.array([row.row for row in good], np.int64),
        Text.of(pa.array([row.url.encode() for row in good], pa.large_binary())),
        Text.of(pa.array([row.caption.encode() for row in good], pa.large_binary())),
        [row for row in rows if isinstance(row, Malformed)],
    )


def finished(
    first: int, good: Flags, url: Text, caption: Text, decide: Callable[[int], CaptionRow | Malformed]
) -> Block:
    """A block, with the rows that are in doubt decided one by one."""
    malformed: list[Malformed] = []
    for row in np.flatnonzero(~good).tolist():
        found = decide(row)
        if isinstance(found, Malformed):
            malformed.append(found)
        else:
            good[row] = True
    kept = np.flatnonzero(good)
    return Block(len(good), first + kept, url.rows(kept), caption.rows(kept), malformed)


def beyond_doubt(url: Text, caption: Text, valid: bool) -> Flags:
    """Which rows are good at a glance. `valid`: every string is UTF-8."""
    if not len(url):
        return np.zeros(0, np.bool_)
    length, other = url.end - url.start, caption.end - caption.start
    opening = url.words_at(url.start)
    http = (opening & U(0x00FFFFFFFFFFFFFF) | U(0x20202020)) == U(int.from_bytes(b"http://", "little"))
    https = (opening | U(0x2020202020)) == U(int.from_bytes(b"https://", "little"))
    good = ((http & (length > 7)) | (https & (length > 8))) & (length <= LONGEST)
    good &= (other > 0) & (length + other < MAX_LINE) & (other <= LONGEST)
    lead = caption.words_at(caption.start) & U(0xFF)
    good &= (lead > U(0x20)) & (lead < U(0x7F))
    likely = np.flatnonzero(good)
    good[likely[url.rows(likely).flagged(not_printable, ord("a"))]] = False
    if not valid:  # the url is ASCII anyway
        good[likely[caption.rows(likely).flagged(lambda word: word & HIGH, 0)]] = False
    return good


def not_printable(word: Words) -> Words:
    """Some high bits when a byte is not from 0x21 to 0x7E, else none."""
    return (word | (word - spread(0x21)) | (word + spread(0x01))) & HIGH


def zero_bytes(word: Words) -> Words:
    """The high bit of every byte that is zero."""
    return ~(((word & ~HIGH) + ~HIGH) | word | ~HIGH)


def words_of(data: Bytes) -> Words:
    """Bytes as little-endian words, and at least two more of zeros behind them."""
    padded = np.zeros(len(data) // 8 + 3, "<u8")
    padded.view(np.uint8)[: len(data)] = data
    return padded


def find_bytes(words: Words, length: int, wanted: tuple[int, ...]) -> Places:
    """The places of some bytes among the first `length` of `words_of` something, in order."""
    found = [NOWHERE]
    for first in range(0, len(words), PIECE):
        piece = words[first : first + PIECE]
        marks = zero_bytes(piece ^ spread(wanted[0]))
        for byte in wanted[1:]:
            marks |= zero_bytes(piece ^ spread(byte))
        at = np.flatnonzero(marks)
        marks, places = marks[at], []
        while len(at):
            lowest = marks & (~marks + U(1))
            places.append(8 * (first + at) + (np.bitwise_count(lowest - U(1)).astype(np.int64) >> 3))
            marks ^= lowest
            more = np.flatnonzero(marks)
            at, marks = at[more], marks[more]
        if places:
            found.append(np.sort(np.concatenate(places), kind="stable"))
    places = np.concatenate(found)
    return places[: np.searchsorted(places, length)]


def is_utf8(data: Bytes) -> bool:
    """Whether bytes are UTF-8 as a whole."""
    ends = np.array([0, len(data)], np.int64)
    text = pa.LargeStringArray.from_buffers(1, pa.py_buffer(ends), pa.py_buffer(data))
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
