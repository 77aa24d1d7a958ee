"""Which captions are left out, and how captions are cleaned.

In: a column of captions and a CaptionFilters. Out: a code per row, 0 for a caption that stays, else one more than the
place of its reason in REASONS; the first reason that fits counts. Words stand between ASCII white space, and case is
ASCII case. What the bytes of a caption do not show at a glance is decided one by one, by `reason_of`.

Source of `blip_caption`: LAVIS's BlipCaptionProcessor, which ThinkDiff-CLIP is trained with, as facts.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from thinkdiff.schemas.captions import CaptionFilters
from thinkdiff.storage.caption_blocks import HIGH, LONGEST, Text, U, Words, spread, zero_bytes

REASONS = ("control characters", "replacement characters", "too few words", "too many words", "boilerplate")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
SPACE = re.compile("[\t-\r ]+")
LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
Codes = npt.NDArray[np.uint8]


def reason_of(caption: str, filters: CaptionFilters) -> int:
    """The code of one caption: the definition."""
    words = len([word for word in SPACE.split(caption) if word])
    found = (
        filters.control_characters and CONTROL.search(caption) is not None,
        filters.replacement_characters and "\ufffd" in caption,
        words < filters.min_words,
        filters.max_words is not None and words > filters.max_words,
        any(phrase.lower() in caption.translate(LOWER) for phrase in filters.boilerplate),
    )
    return found.index(True) + 1 if True in found else 0


def reasons(captions: Text, filters: CaptionFilters) -> Codes:
    """(N,) codes of a column of UTF-8 captions, none of them blank."""
    codes = np.zeros(len(captions), np.uint8)
    if filters == CaptionFilters() or not len(captions):
        return codes
    doubtful = (captions.end - captions.start) > LONGEST
    likely = np.flatnonzero(~doubtful)
    words, control, high = looked_at(captions.rows(likely))
    if filters.max_words is not None:
        codes[likely[words > filters.max_words]] = 4
    codes[likely[words < filters.min_words]] = 3
    if filters.control_characters or filters.replacement_characters:
        doubtful[likely[control | high]] = True
    if filters.boilerplate:
        pattern = "|".join(re.escape(phrase) for phrase in filters.boilerplate)
        options = pc.MatchSubstringOptions(pattern, ignore_case=True)
        matched = pc.call_function("match_substring_regex", [captions.take()], options)
        found = matched.to_numpy(zero_copy_only=False)
        codes[(codes == 0) & found] = 5
    for row in np.flatnonzero(doubtful).tolist():
        codes[row] = reason_of(captions.bytes_of(row).decode(), filters)
    return codes


def looked_at(captions: Text) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(N,) numbers of words; whether there is a C0 character or DEL; whether there may be a C1 character or U+FFFD."""
    n = len(captions)
    words, control, high = np.zeros(n, np.int64), np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    before = np.full(n, U(0x80))  # the high bit: the byte in front is a space
    for rows, word, past in captions.words:
        word = word.copy()
        word[len(rows) - len(past) :] |= past & spread(0x20)
        space = spaces(word)
        first = ~space & ((space << U(8)) | before[rows]) & HIGH
        words[rows] += np.bitwise_count(first)
        before[rows] = space >> U(56)
        seven = word & ~HIGH
        low = ~(seven + spread(0x60)) | ((seven + spread(0x01)) & ~word)  # below 0x20, or DEL
        odd = low & ~word & HIGH
        if odd.any():
            control[rows[odd != 0]] = True
        if (word & HIGH).any():
            lead = zero_bytes(word ^ spread(0xC2)) | zero_bytes(word ^ spread(0xEF))
            high[rows[lead != 0]] = True
    return words, control, high


def spaces(word: Words) -> Words:
    """The high bit of every byte that is ASCII white space: 0x20 and 0x09 to 0x0D."""
    seven = word & ~HIGH
    blank = ~((seven ^ spread(0x20)) + spread(0x7F))
    tabs = (seven + spread(0x77)) & ~(seven + spread(0x72))
    return (blank | tabs) & ~word & HIGH


def blip_caption(caption: str, most: int = 50) -> str:
    """Lower case, some punctuation to spaces, single spaces, at most 50 words."""
    text = re.sub(r"([.!\"()*#:;~])", " ", caption.lower())
    words = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ").split(" ")
    return " ".join(words[:most])


def cleaned(captions: pa.Array) -> pa.Array:
    """A column of captions as `blip_caption` leaves them."""
    return pa.array([blip_caption(caption) for caption in captions.to_pylist()], pa.string())
