"""A wary reader of strangers' zips: members by name, nothing is ever extracted.

In: a seekable file. Out: the names of its regular members and their bytes. A zip that could do harm is refused as a
whole, before a member is read: names that leave their folder, links, encryption, names that come twice, other methods
than stored and deflate, more members or more bytes than the limits. A member gives no byte beyond its declared size.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from typing import IO

from thinkdiff.schemas.errors import InputError

MAX_MEMBERS = 20_000
MAX_DIRECTORY = 16 << 20  # bytes that list the members
MAX_MEMBER = 64 << 20
MAX_TOTAL = 4 << 30
MEMBER, END, ZIP64_END = b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x07"
END_SIZE, COMMENT = 22, 65_535
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ZipReader:
    """The members of a zip. Raises InputError, naming `where`, for one that is damaged or could do harm."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self.where = where
        self._check_end(file)
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
            raise self._refusal(f"no zip that can be read ({error})") from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            if wrong := harm(info):
                raise self._refusal(f"a member {wrong}: {info.orig_filename[:80]!r}")
            if info.is_dir():
                continue
            if info.filename in self._members:
                raise self._refusal(f"two members of the name {info.filename[:80]!r}")
            self._members[info.filename] = info
        if (total := sum(info.file_size for info in self._members.values())) > MAX_TOTAL:
            raise self._refusal(f"members of {total} bytes, more than {MAX_TOTAL}")

    @property
    def names(self) -> list[str]:
        """The regular members, in the order of the zip."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises KeyError when there is none of that name, InputError when it is damaged."""
        info = self._members[name]
        try:
            with self._zip.open(info) as member:
                data = member.read(info.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, struct.error) as error:
            raise self._refusal(f"the member {name[:80]!r} damaged ({error})") from error
        if len(data) != info.file_size:
            raise self._refusal(f"{len(data)} bytes in the member {name[:80]!r} of {info.file_size}")
        return data

    def _check_end(self, file: IO[bytes]) -> None:
        """Looks at the end record and counts, since the standard library makes an object of every member there is."""
        size = file.seek(0, 2)
        begin = file.seek(max(0, size - END_SIZE - COMMENT - 20))
        tail = file.read(END_SIZE + COMMENT + 20)
        at = tail.rfind(END)
        if at < 0 or at + END_SIZE > len(tail):
            raise self._refusal("no end of a zip")
        members, directory = struct.unpack_from("<HI", tail, at + 10)
        if ZIP64_END in tail[max(0, at - 20) : at] or directory > MAX_DIRECTORY:
            members = MAX_MEMBERS + 1
        else:
            file.seek(max(0, begin + at - directory))
            members = max(members, file.read(min(directory, begin + at)).count(MEMBER))
        if members > MAX_MEMBERS:
            raise self._refusal(f"more than {MAX_MEMBERS} members, or a directory of more than {MAX_DIRECTORY} bytes")
        file.seek(0)

    def _refusal(self, found: str) -> InputError:
        return InputError(
            f"{self.where}: found {found}, expected a plain zip of pictures. Nothing was unpacked; download it again, "
            "or unpack it yourself and name the folder."
        )


def harm(info: zipfile.ZipInfo) -> str:
    """What is wrong with a member, "" when it is regular, or a folder, of a name that stays inside."""
    name = info.orig_filename
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts):
        return "that leaves its folder"
    if not name.isprintable():
        return "of a name with control characters"
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "that is a link or a device"
    if info.flag_bits & 0x1:
        return "that is encrypted"
    if info.compress_type not in METHODS:
        return f"of the compression method {info.compress_type}"
    if info.file_size > MAX_MEMBER:
        return f"of {info.file_size} bytes, more than {MAX_MEMBER}"
    return ""
