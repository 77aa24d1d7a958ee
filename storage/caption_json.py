"""Two parallel lists of one JSON object, as SBU has them, with no more than a piece of the file in memory.

In: an open file. Out: the items of the list under a key. The text is read by Python's own JSON decoder, a piece at a
time; values under other keys are passed over. Files come from strangers: an item longer than MAX_ITEM is refused, and
a byte that is not UTF-8 becomes a lone surrogate, which makes its row malformed and no other.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

PIECE = 1 << 20
MAX_ITEM = 1 << 20  # characters, beside a piece
SPACE = re.compile(r"[ \t\n\r]*")
ENDS = tuple(",:]} \t\n\r")  # a number may go on behind anything else, or behind the text that is held
DECODER = json.JSONDecoder()


class JsonError(Exception):
    """The text is not what was expected."""


class JsonText:
    """JSON text from a stream, of which the part around a place is held.

    Every method raises JsonError where the text is not what it expects, or ends.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text, self._at, self._done = "", 0, False
        self._mark = -1  # where the last whole string of a list that is held ends; -1: what is held goes value by value

    def _more(self) -> None:
        """Reads on."""
        data = self._stream.read(PIECE)
        self._text = self._text[self._at :] + self._decode(data, not data)
        self._at, self._done, self._mark = 0, not data, self._text.rfind('",')

    def peek(self) -> str:
        """The next character that is no white space, not taken; empty at the end."""
        while True:
            self._at = SPACE.match(self._text, self._at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._done:
                return ""
            self._more()

    def take(self, among: str) -> str:
        """The next character that is no white space, which must be one of some."""
        found = self.peek()
        if not found or found not in among:
            raise JsonError(f"found {found or 'the end'!r}, expected one of {among!r}")
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value as a whole."""
        self.peek()
        while True:
            try:
                found, end = DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError):
                found, end = None, 0
            if end and (self._done or self._text[end : end + 1] in ENDS):
                self._at = end
                return found
            if self._done or len(self._text) - self._at > MAX_ITEM:
                raise JsonError("found a value that does not end, or none")
            self._more()

    def some(self) -> list[Any]:
        """The next value of a list, or many: up to the last string that is held as a whole."""
        self.peek()
        if self._mark >= self._at:
            end = self._mark + 1
            try:
                found = DECODER.decode(f"[{self._text[self._at : end]}]")
            except (ValueError, RecursionError):  # the list ends before, or the mark stands inside a string
                self._mark = -1
            else:
                self._at = end
                return found
        return [self.value()]

    def items(self) -> Iterator[list[Any]]:
        """The items of the list that comes next, some at a time."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        yield self.some()
        while self.take(",]") == ",":
            yield self.some()


def list_items(stream: Any, key: str, whole: bool = False) -> Iterator[Any]:
    """The items of the list under a key of the one object in a stream.

    `whole`: the rest of the object is read, too. Raises JsonError when there is no such object, key or list.
    """
    text = JsonText(stream)
    text.take("{")
    found = False
    while whole or not found:
        name = text.value() if text.peek() == '"' else None
        text.take(":")
        if name == key and not found:
            found = True
            for some in text.items():
                yield from some
        elif text.peek() == "[":
            for _ in text.items():
                pass
        else:
            text.value()
        if text.take(",}") == "}":
            break
    if not found:
        raise JsonError(f"found no key {key}")
    if whole and (rest := text.peek()):
        raise JsonError(f"found {rest!r} behind the object")
