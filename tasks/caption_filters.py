"""Which captions are left out, and how captions are cleaned.

In: a column of captions and a CaptionFilters. Out: a code per row, 0 for a caption that stays, else one more than the
place of its reason in REASONS; the first reason that fits counts. Words stand between ASCII white space, and case is
ASCII case. A caption's bytes are read once: a table says what each of them is, an automaton (Aho and Corasick 1975)
whether a phrase of the boilerplate has ended.

Source of `blip_caption`: LAVIS's BlipCaptionProcessor, which ThinkDiff-CLIP is trained with, as facts.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thinkdiff.schemas.captions import CaptionFilters
from thinkdiff.storage.caption_blocks import Text
from thinkdiff.storage.caption_scan import Bytes, Places, compiled

REASONS = ("control characters", "replacement characters", "too few words", "too many words", "boilerplate")
Codes = npt.NDArray[np.uint8]
SPACE, CONTROL, LEAD, REPLACED, PHRASE = 1, 2, 4, 8, 16
KINDS = np.zeros(256, np.uint8)  # of bytes; a C1 character or U+FFFD begins with a LEAD
KINDS[:0x20] = KINDS[0x7F] = CONTROL
KINDS[[0x20, *range(0x09, 0x0E)]] |= SPACE
KINDS[[0xC2, 0xEF]] = LEAD


def reasons(captions: Text, filters: CaptionFilters) -> Codes:
    """(N,) codes of a column of UTF-8 captions."""
    words, marks = looked_at(captions, filters.boilerplate)
    most = np.inf if filters.max_words is None else filters.max_words
    found = (
        filters.control_characters & (marks & CONTROL != 0),
        filters.replacement_characters & (marks & REPLACED != 0),
        words < filters.min_words,
        words > most,
        marks & PHRASE != 0,
    )
    return np.select(found, range(1, len(REASONS) + 1), 0).astype(np.uint8)


def looked_at(captions: Text, phrases: tuple[str, ...] = ()) -> tuple[Places, Codes]:
    """(N,) numbers of words, and which of CONTROL (C0, DEL and C1), REPLACED and PHRASE are in a caption, as bits."""
    return look(captions.data, captions.start, captions.end, KINDS, automaton(phrases))


@cache
def automaton(phrases: tuple[str, ...]) -> npt.NDArray[np.uint32]:
    """The next state by the sum of state and byte; states are multiples of 256, 0 the first.

    A state is the longest beginning of an ASCII phrase, in any case, that the bytes so far end in; the last one, which
    is never left, says that a phrase has ended.
    """
    lower = [phrase.lower().encode() for phrase in phrases]
    states = sorted({b"", *(phrase[:end] for phrase in lower for end in range(len(phrase)))}, key=len)
    number = {state: place for place, state in enumerate(states)}
    table = np.zeros((len(states) + 1, 256), np.uint32)
    table[-1] = len(states)
    for state, place in number.items():
        for byte in set(b"".join(lower)):
            read = state + bytes([byte])
            ended = any(read.endswith(phrase) for phrase in lower)
            longest = next(read[cut:] for cut in range(len(read) + 1) if read[cut:] in number)
            table[place, [byte, ord(chr(byte).upper())]] = len(states) if ended else number[longest]
    return (256 * table).reshape(-1)


@compiled
def look(data: Bytes, start: Places, end: Places, kinds: Codes, table: npt.NDArray[np.uint32]) -> tuple[Places, Codes]:
    """`looked_at`, by what bytes are and by an automaton."""
    words, marks = np.empty(len(start), np.int64), np.empty(len(start), np.uint8)
    for row in range(len(start)):
        caption = data[start[row] : end[row]]
        before, seen, count, state = np.uint8(SPACE), np.uint8(0), 0, np.uint32(0)
        for byte in caption:
            kind = kinds[byte]
            count += before & (kind ^ SPACE) & SPACE
            before = kind
            seen |= kind
            state = table[state + byte]
        found = seen & CONTROL
        if seen & LEAD:
            for at in range(len(caption) - 1):
                if caption[at] == 0xC2 and caption[at + 1] < 0xA0:
                    found |= CONTROL
                if caption[at] == 0xEF and caption[at + 1] == 0xBF:
                    found |= REPLACED if at + 2 < len(caption) and caption[at + 2] == 0xBD else 0
        if state == len(table) - 256:
            found |= PHRASE
        words[row], marks[row] = count, found
    return words, marks


def blip_caption(caption: str, most: int = 50) -> str:
    """Lower case, some punctuation to spaces, single spaces, at most 50 words."""
    text = re.sub(r"([.!\"()*#:;~])", " ", caption.lower())
    words = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ").split(" ")
    return " ".join(words[:most])


def cleaned(captions: pa.Array) -> pa.Array:
    """A column of captions as `blip_caption` leaves them."""
    return pa.array([blip_caption(caption) for caption in captions.to_pylist()], pa.string())
