"""Tar files as bytes: a wary reader of strangers' tars and a writer whose output depends on the members alone.

The standard library's reader takes a truncated tar for a short one, allocates whatever size a header claims, and in
the Python versions that we support has had hangs on crafted headers. This one yields regular members only, reads no
member and no header past a limit, and raises when a tar does not end as tars end. Nothing is ever extracted, so a
member's name is but a name.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from thinkdiff.schemas.errors import InputError

BLOCK = 512
MAX_HEADER = 1 << 16
REGULAR, NO_DATA = b"0\x007", b"123456"
LONG_NAME, EXTENDED, SPARSE = b"L", b"x", b"S"


@dataclass(frozen=True, slots=True)
class Member:
    """A regular member; `data` is None when it is larger than its limit."""

    name: str
    offset: int
    size: int
    data: bytes | None


class TarReader:
    """Walks once over a seekable tar. Raises InputError, naming `where`, when it is no whole tar."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self.file, self.where = file, where
        self.total = file.seek(0, 2)
        self.at = file.seek(0)

    def members(self, limit: Callable[[str], int]) -> Iterator[Member]:
        """The regular members in order, with the data of those not larger than `limit(name)`; -1 reads none."""
        if not self.total:
            raise self._refusal("an empty file")
        name, size = "", -1
        while header := self._header():
            kind = header[156:157]
            length = size if size >= 0 else octal(header[124:136])
            if length < 0:
                raise self._refusal(f"a member of impossible size at byte {self.at - BLOCK}")
            if kind in (LONG_NAME, EXTENDED):
                text = self._read(length, MAX_HEADER)
                if kind == LONG_NAME:
                    name = text.split(b"\0", 1)[0].decode("utf-8", "replace")
                else:
                    name, size = pax_path_and_size(text, name)
                continue
            if kind == SPARSE:
                self._skip_sparse_map(header)
            shown = name or header_name(header)
            if kind in REGULAR:
                yield self._member(shown, length, limit(shown))
            elif kind not in NO_DATA:
                self._skip(length)
            name, size = "", -1

    def _header(self) -> bytes | None:
        """The next header, or None at the block of zeros that ends a tar."""
        block = self._read(BLOCK, BLOCK)
        if not any(block):
            return None
        unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if octal(block[148:156]) != unsigned:
            raise self._refusal(f"no tar header at byte {self.at - BLOCK}")
        return block

    def _member(self, name: str, length: int, limit: int) -> Member:
        offset = self.at
        if length > limit:
            self._skip(length)
            return Member(name, offset, length, None)
        return Member(name, offset, length, self._read(length, limit))

    def _read(self, length: int, limit: int) -> bytes:
        if length > limit:
            raise self._refusal(f"a header of {length} bytes")
        data = self.file.read(length)
        if len(data) != length:
            raise self._cut()
        self.at += length
        self._move(-length % BLOCK)
        return data

    def _skip(self, length: int) -> None:
        """Passes over so many bytes and the padding behind them."""
        self._move(length + -length % BLOCK)

    def _move(self, length: int) -> None:
        if self.at + length > self.total:
            raise self._cut()
        if length:
            self.at = self.file.seek(self.at + length)

    def _skip_sparse_map(self, header: bytes) -> None:
        more = header[482]
        while more:
            more = self._read(BLOCK, BLOCK)[504]

    def _cut(self) -> InputError:
        return InputError(
            f"{self.where}: found a tar that ends at byte {self.total} within a member or without its end mark, "
            "expected a whole one. It was cut off; copy or download it again."
        )

    def _refusal(self, found: str) -> InputError:
        return InputError(f"{self.where}: found {found}, expected an uncompressed tar. Copy or download it again.")


def octal(field: bytes) -> int:
    """A number of a header, in octal digits or, as GNU writes large ones, in base 256; -1 when it is neither."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    return int(digits, 8) if all(byte in b"01234567" for byte in digits) else -1


def header_name(header: bytes) -> str:
    """The name in a header, with the prefix of a POSIX one."""
    name, prefix = (field.split(b"\0", 1)[0] for field in (header[:100], header[345:500]))
    if prefix and header[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return name.decode("utf-8", "replace")


def pax_path_and_size(text: bytes, name: str) -> tuple[str, int]:
    """Path and size of an extended header, `name` and -1 where it has none."""
    at, size = 0, -1
    while at < len(text):
        space = text.find(b" ", at, at + 8)
        length = text[at : max(at, space)]
        end = at + int(length) if length.isdigit() else -1
        if not space < end <= len(text):
            break
        key, _, value = text[space + 1 : end - 1].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "replace")
        elif key == b"size" and value.isdigit() and len(value) < 20:
            size = int(value)
        at = end
    return name, size


class TarBuilder:
    """Builds a tar piece by piece: no owner, no time, so that the same members give the same bytes."""

    def __init__(self) -> None:
        self.offsets: list[int] = []

    def pieces(self, members: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
        """The tar of some (name, data), with its end mark; `offsets` then says where each member's data are."""
        at = 0
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            header, padding = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"), bytes(-len(data) % BLOCK)
            self.offsets.append(at + len(header))
            yield from (header, data, padding)
            at += len(header) + len(data) + len(padding)
        at += 2 * BLOCK
        yield bytes(2 * BLOCK + -at % tarfile.RECORDSIZE)
