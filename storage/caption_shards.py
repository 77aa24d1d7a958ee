"""Image-caption collections as people have them, and the sample drawn from them.

In: `cc3m-tsv` (caption TAB url), `cc12m-tsv` (url TAB caption) or `sbu-json` (one object with the parallel lists
`image_urls` and `captions`); a header line as img2dataset wants it is skipped. Out: rows and malformed rows, in file
order, from a stream. The files that the sample is written to are `caption_sample.py`, handed on here.

Files come from strangers: no line longer than MAX_LINE is kept, what is not UTF-8 is malformed, and so is a url that
is not http(s). Captions are kept character for character, control characters included.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from thinkdiff.schemas.captions import Collection, CollectionFormat
from thinkdiff.schemas.errors import InputError
from thinkdiff.storage.caption_sample import MalformedLog, SampledCaption, read_captions, write_captions
from thinkdiff.storage.root import Folder, locate

MAX_LINE = 1 << 16
MAX_JSON = 1 << 30
PROBE = 100
EXCERPT = 80
SWAPPED = "caption and url exchanged"
COLUMNS: dict[CollectionFormat, tuple[str, str]] = {"cc3m-tsv": ("caption", "url"), "cc12m-tsv": ("url", "caption")}
HINTS: dict[CollectionFormat, str] = {
    "cc3m-tsv": "it looks like cc12m-tsv; declare that format.",
    "cc12m-tsv": "it looks like cc3m-tsv; declare that format.",
    "sbu-json": "exchange the two lists.",
}
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


class CaptionFile:
    """One collection file: iterate over it. `size` and `sha256` are known when the iteration has ended.

    Raises InputError when the file is missing, empty, of another format than declared, or of another digest.
    """

    def __init__(self, folder: Folder, name: str, form: CollectionFormat, expected_sha256: str | None = None) -> None:
        self.folder, self.name = folder, name
        self.form: CollectionFormat = form
        self.size = 0
        self.sha256: str | None = None
        self._expected = expected_sha256
        self._hasher = hashlib.sha256()

    @staticmethod
    def of(collection: Collection, data_root: str) -> CaptionFile:
        """The file of a collection; a relative url starts at the data root. Nothing is read yet."""
        folder, name = locate(data_root, collection.url)
        return CaptionFile(folder, name, collection.format, collection.sha256)

    @property
    def where(self) -> str:
        """The full path or URL, for messages."""
        return self.folder.full(self.name)

    def __iter__(self) -> Iterator[CaptionRow | Malformed]:
        self.size, self._hasher = 0, hashlib.sha256()
        rows = self._json_rows() if self.form == "sbu-json" else self._lines()
        head: list[CaptionRow | Malformed] = []
        for row in rows:
            head.append(row)
            if len(head) == PROBE:
                break
        self._check_format(head)
        yield from chain(head, rows)
        self.sha256 = self._hasher.hexdigest()
        if self._expected is not None and self.sha256 != self._expected:
            raise InputError(
                f"{self.where}: found sha256 {self.sha256}, expected {self._expected} as declared. It is another "
                "version of the collection; take the right file or change the declaration."
            )

    def _chunks(self) -> Iterator[bytes]:
        try:
            for chunk in self.folder.chunks(self.name):
                self._hasher.update(chunk)
                self.size += len(chunk)
                yield chunk
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise InputError(
                f"{self.where}: found no such file, expected a collection of format {self.form}. Relative urls start "
                "at the data root; check the path and --data."
            ) from None
        if not self.size:
            raise InputError(
                f"{self.where}: found an empty file, expected a collection of format {self.form}. Copy it again."
            )

    def _lines(self) -> Iterator[CaptionRow | Malformed]:
        number, first = 0, True
        for line in split_lines(self._chunks()):
            if first:
                first = False
                line = line.removeprefix(b"\xef\xbb\xbf")
                if self._is_header(line):
                    continue
            yield self._parse(number, line)
            number += 1

    def _is_header(self, line: bytes) -> bool:
        names = tuple(line.decode("utf-8", "replace").strip().lower().split("\t"))
        if names == COLUMNS[self.form]:
            return True
        if names == COLUMNS[self.form][::-1]:
            raise self._swapped()
        return False

    def _parse(self, number: int, line: bytes) -> CaptionRow | Malformed:
        if len(line) > MAX_LINE:
            return Malformed(number, f"longer than {MAX_LINE} bytes", excerpt(line[:MAX_LINE]))
        try:
            fields = line.decode("utf-8").removesuffix("\r").split("\t")
        except UnicodeDecodeError:
            return Malformed(number, "not UTF-8", excerpt(line))
        if len(fields) != 2:
            return Malformed(number, f"{len(fields)} fields instead of 2" if line else "empty line", excerpt(line))
        caption, url = fields if self.form == "cc3m-tsv" else fields[::-1]
        return judged(number, url, caption)

    def _json_rows(self) -> Iterator[CaptionRow | Malformed]:
        data = bytearray()
        for chunk in self._chunks():
            data += chunk
            if len(data) > MAX_JSON:
                raise InputError(f"{self.where}: found more than {MAX_JSON} bytes, expected a smaller sbu-json file.")
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        urls, captions = (found.get("image_urls"), found.get("captions")) if isinstance(found, dict) else (None, None)
        if not isinstance(urls, list) or not isinstance(captions, list) or len(urls) != len(captions):
            raise InputError(
                f"{self.where}: found no JSON object with lists image_urls and captions of one length, expected "
                "format sbu-json. Declare the format that the file has, or copy the file again."
            )
        for number, (url, caption) in enumerate(zip(urls, captions, strict=True)):
            if not isinstance(url, str) or not isinstance(caption, str):
                yield Malformed(number, "not two strings", excerpt(repr((url, caption))[:MAX_LINE]))
            else:
                yield judged(number, url, caption)

    def _check_format(self, head: list[CaptionRow | Malformed]) -> None:
        good = sum(isinstance(row, CaptionRow) for row in head)
        if sum(isinstance(row, Malformed) and row.reason == SWAPPED for row in head) > good:
            raise self._swapped()
        if head and not good:
            first = head[0]
            reason = first.reason if isinstance(first, Malformed) else ""
            raise InputError(
                f"{self.where}: found no good row among the first {len(head)} (row 0: {reason}), expected format "
                f"{self.form}. Declare the format that the file has; compressed files must be unpacked."
            )
        if not head:
            raise InputError(f"{self.where}: found no rows, expected a collection of format {self.form}.")

    def _swapped(self) -> InputError:
        hint = HINTS[self.form]
        return InputError(
            f"{self.where}: found the url where format {self.form} has the caption, expected the other order: {hint}"
        )


def judged(number: int, url: str, caption: str) -> CaptionRow | Malformed:
    """A row, good if its url is http(s) and its caption is not blank."""
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


def split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their newline; of one longer than MAX_LINE only the first MAX_LINE + 1 bytes."""
    rest = b""
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        rest = (rest + first)[: MAX_LINE + 1] if len(rest) <= MAX_LINE else rest
        for line in more:
            yield rest
            rest = line[: MAX_LINE + 1]
    if rest:
        yield rest


def excerpt(found: bytes | str) -> str:
    """How a bad row begins, safe to print."""
    text = found[: 4 * EXCERPT].decode("utf-8", "replace") if isinstance(found, bytes) else found
    return "".join(char if char.isprintable() else "\ufffd" for char in text[:EXCERPT])


__all__ = [
    "CaptionFile",
    "CaptionRow",
    "Malformed",
    "MalformedLog",
    "SampledCaption",
    "read_captions",
    "write_captions",
]
