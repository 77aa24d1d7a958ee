"""Loops over the bytes of captions, compiled: where lines part, and which rows are good beyond doubt.

In: buffers of bytes and ranges of them. Out: arrays with a value per row. Compiled by Numba on first use and kept on
disk; no loop holds the GIL. What a row is stands in `caption_rows.py`; nothing here decides that a row is bad.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

P = ParamSpec("P")
R = TypeVar("R")
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
TAB, NEWLINE, RETURN = 9, 10, 13


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """A loop as machine code, kept on disk where there is a place for it."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return njit(nogil=True)(function)


@compiled
def cut_lines(data: Bytes) -> tuple[Places, Places, Places]:
    """Three (N,) arrays for the N lines of `data`: beginnings, tabs, and ends without newline and carriage return.

    A line with no tab or several has it at its beginning, as one with an empty first field has. The last line may lack
    its newline.
    """
    lines = 0
    for byte in data:
        lines += byte == NEWLINE
    if len(data) and data[-1] != NEWLINE:
        lines += 1
    start, tab, end = np.empty(lines, np.int64), np.empty(lines, np.int64), np.empty(lines, np.int64)
    line, first, found, tabs = 0, 0, 0, 0
    for at in range(len(data)):
        byte = data[at]
        if byte > NEWLINE:
            continue
        if byte == TAB:
            found, tabs = at, tabs + 1
        if byte == NEWLINE:
            start[line], tab[line], end[line] = first, found if tabs == 1 else first, at
            line, first, tabs = line + 1, at + 1, 0
    if line < lines:
        start[line], tab[line], end[line] = first, found if tabs == 1 else first, len(data)
    for line in range(lines):
        end[line] -= end[line] > start[line] and data[end[line] - 1] == RETURN
    return start, tab, end


@compiled
def beyond_doubt(
    urls: Bytes, url_start: Places, url_end: Places, captions: Bytes, start: Places, end: Places, most: int, valid: bool
) -> Flags:
    """(N,) which rows are good at a glance: a plain http(s) url, a caption that begins with a printable character.

    `most`: bytes of a row that need no closer look; `valid`: every caption is UTF-8.
    """
    good = np.zeros(len(start), np.bool_)
    for row in range(len(start)):
        at, stop = url_start[row], url_end[row]
        if start[row] >= end[row] or stop - at < 9 or stop - at + end[row] - start[row] >= most:
            continue
        lead = captions[start[row]]
        if lead <= 0x20 or lead >= 0x7F:
            continue
        http = (urls[at] | 0x20, urls[at + 1] | 0x20, urls[at + 2] | 0x20, urls[at + 3] | 0x20)
        if http != (0x68, 0x74, 0x74, 0x70):
            continue
        at += 5 if urls[at + 4] | 0x20 == 0x73 else 4
        if urls[at] != 0x3A or urls[at + 1] != 0x2F or urls[at + 2] != 0x2F or at + 3 >= stop:
            continue
        odd = False
        for place in range(at + 3, stop):
            odd |= urls[place] < 0x21 or urls[place] > 0x7E
        if not valid:
            for place in range(start[row], end[row]):
                odd |= captions[place] > 0x7F
        good[row] = not odd
    return good


@compiled
def gather(data: Bytes, start: Places, end: Places, out: Bytes, place: Places) -> None:
    """Copies ranges of bytes, each to its place in `out`."""
    for row in range(len(start)):
        at = place[row]
        for byte in data[start[row] : end[row]]:
            out[at] = byte
            at += 1
