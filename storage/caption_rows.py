"""What a row of a collection is: the definition, one row at a time.

In: a line, or a pair of strings. Out: a good row or a malformed one with its reason. `caption_blocks.py` decides most
rows by the thousand; whatever it is not sure of comes here, so this is what is right, whatever the speed.

Files come from strangers: no line longer than MAX_LINE is kept, what is not UTF-8 is malformed, and so is a url that
is not http(s). Captions are kept character for character, control characters included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from thinkdiff.schemas.captions import CollectionFormat

MAX_LINE = 1 << 16
EXCERPT = 80
SWAPPED = "caption and url exchanged"
COLUMNS: dict[CollectionFormat, tuple[str, str]] = {"cc3m-tsv": ("caption", "url"), "cc12m-tsv": ("url", "caption")}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SURROGATE = re.compile("[\ud800-\udfff]")
URL = re.compile(r"https?://[^\s\x00-\x1f\x7f]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """A good row; `row` counts from 0, without the header."""

    row: int
    url: str
    caption: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """A bad row: why, and how it begins."""

    row: int
    reason: str
    excerpt: str


def parsed(form: CollectionFormat, number: int, line: bytes) -> CaptionRow | Malformed:
    """A line of a TSV file, without its newline."""
    if len(line) > MAX_LINE:
        return Malformed(number, f"longer than {MAX_LINE} bytes", excerpt(line[:MAX_LINE]))
    try:
        fields = line.decode("utf-8").removesuffix("\r").split("\t")
    except UnicodeDecodeError:
        return Malformed(number, "not UTF-8", excerpt(line))
    if len(fields) != 2:
        return Malformed(number, f"{len(fields)} fields instead of 2" if line else "empty line", excerpt(line))
    caption, url = fields if form == "cc3m-tsv" else fields[::-1]
    return judged(number, url, caption)


def judged(number: int, url: Any, caption: Any) -> CaptionRow | Malformed:
    """A pair, good if both are strings, the url is http(s) and the caption is not blank."""
    if not isinstance(url, str) or not isinstance(caption, str):
        return Malformed(number, "not two strings", excerpt(repr((url, caption))[:MAX_LINE]))
    found = f"{url}\t{caption}"
    if len(url) + len(caption) > MAX_LINE:
        return Malformed(number, f"longer than {MAX_LINE} characters", excerpt(found[:MAX_LINE]))
    if not URL.fullmatch(url):
        reason = SWAPPED if URL.fullmatch(caption) else "the url is not http(s)"
        return Malformed(number, reason, excerpt(found))
    if not caption.strip():
        return Malformed(number, "empty caption", excerpt(found))
    if SURROGATE.search(found):
        return Malformed(number, "not valid Unicode", excerpt(found))
    return CaptionRow(number, url, caption)


def excerpt(found: bytes | str) -> str:
    """How a bad row begins, safe to print."""
    text = found[: 4 * EXCERPT].decode("utf-8", "replace") if isinstance(found, bytes) else found
    return "".join(char if char.isprintable() else "\ufffd" for char in text[:EXCERPT])
