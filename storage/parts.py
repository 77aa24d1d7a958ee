"""Parts: how a long stage commits its work piece by piece, so that a killed run loses at most the piece in hand.

A part is some files and, written last, one small JSON record that names them with sizes and digests. Records hold
no host and no time: the same data give the same bytes. A stage holds the lease of its artifact, so there is one
writer at a time and a part's files without a record are leftovers that may be overwritten.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field, ValidationError

from thinkdiff.schemas.artifact import FileEntry, Frozen
from thinkdiff.schemas.errors import LockedError, StoreError
from thinkdiff.storage.root import Folder, sha256_hex

MAX_RECORD = 1 << 26
THREADS = 8
log = logging.getLogger(__name__)


class Part(Frozen):
    """A committed part: which one, how many rows it holds, its files, and what its owner wants to remember."""

    schema_version: Literal[1] = 1
    number: int = Field(ge=0)
    rows: int = Field(ge=0)
    files: tuple[FileEntry, ...]
    info: dict[str, Any] = Field(default_factory=dict)

    def names(self) -> list[str]:
        """The paths of the files, in the order they were written."""
        return [entry.path for entry in self.files]


P = TypeVar("P", bound=Part)


class PartLog(Generic[P]):
    """The part records `<prefix>/<number>.json` of one folder, of one kind."""

    def __init__(self, folder: Folder, prefix: str, kind: type[P], digits: int = 6) -> None:
        self.folder, self.prefix, self.kind, self.digits = folder, prefix, kind, digits
        self.rejected: dict[int, str] = {}
        self._entries: dict[int, FileEntry] = {}

    def name(self, number: int) -> str:
        """The name of a part's record."""
        return f"{self.prefix}/{number:0{self.digits}d}.json"

    def must_be_free(self, number: int) -> None:
        """Raises LockedError when the part is committed: its files must not be touched any more."""
        if self.folder.exists(self.name(number)):
            raise LockedError(
                f"{self.folder.uri}/{self.name(number)}: found the part committed, expected it open. Another run "
                "writes the same artifact; run the stage again when that one has ended."
            )

    def find(self, number: int) -> P | None:
        """The part of that number, if it is committed. Raises StoreError for a record that cannot be read."""
        try:
            return self.kind.model_validate_json(self.folder.read(self.name(number)))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            self._must_be_known(number, error)
            raise StoreError(
                f"{self.folder.uri}/{self.name(number)}: found a record that cannot be read ({error.error_count()} "
                "complaints), expected a whole one. Run the stage again; the part is made again then."
            ) from error

    def commit(self, part: P) -> FileEntry:
        """Writes a part's record, after all its files, and returns the record's own entry.

        Raises LockedError when another record came in between; that one is removed, as its files are no longer its own.
        """
        name, data = self.name(part.number), part.model_dump_json(indent=1).encode()
        if not self.folder.create(name, data) and self.folder.read(name) != data:
            self.folder.delete(name)
            raise LockedError(
                f"{self.folder.uri}/{name}: found a record of other bytes, expected none. Two runs wrote the same "
                "part; neither is kept. Run the stage again."
            )
        self._entries[part.number] = FileEntry(path=name, size=len(data), sha256=sha256_hex(data))
        return self._entries[part.number]

    def replace(self, part: P) -> None:
        """Writes a part's record over the one that is there, after all its files."""
        self.folder.write(self.name(part.number), part.model_dump_json(indent=1).encode())

    def entry(self, number: int) -> FileEntry:
        """The entry of the record of a part that `commit` wrote or `committed` returned."""
        return self._entries[number]

    def committed(self, complaint: Callable[[P], str | None] = lambda part: None, deep: bool = False) -> dict[int, P]:
        """The parts that can be trusted, by number; `deep` re-reads and re-hashes their files.

        A record that cannot be read, whose files are missing or of another size, or that `complaint` objects to, is
        logged, kept in `rejected` as a phrase, and removed, so that the part is made again; that of another version of
        thinkdiff raises StoreError. The files are listed after
        the records are read, so that none is rejected for what was written before it while this looks.
        """
        form = re.compile(rf"{re.escape(self.prefix)}/(\d{{{self.digits}}})\.json")
        listed = {
            int(match[1]): size
            for name, size in self.folder.sizes(self.prefix).items()
            if (match := form.fullmatch(name))
        }
        with ThreadPoolExecutor(THREADS) as pool:
            read = dict(zip(listed, pool.map(self._read, listed, listed.values()), strict=True))
            sizes = self.folder.sizes()
            objections = dict(
                zip(
                    read,
                    pool.map(lambda part: self._objection(part, sizes, complaint, deep), read.values()),
                    strict=True,
                )
            )
        for number, phrase in objections.items():
            if phrase is not None:
                self.reject(number, phrase)
        return {n: part for n, part in read.items() if isinstance(part, Part) and objections[n] is None}

    def reject(self, number: int, found: str) -> None:
        """Forgets a part that cannot be trusted: says so and removes its record."""
        log.warning(
            "%s/%s: found %s, expected a whole part. It is made again.", self.folder.uri, self.name(number), found
        )
        self.rejected[number] = found
        self.folder.delete(self.name(number))

    def _read(self, number: int, size: int) -> P | str | None:
        """The part of a record, what speaks against it twice, or None for a record that is gone.

        Once may have been the way that the bytes took.
        """
        found = self._read_once(number, size)
        return self._read_once(number, size) if isinstance(found, str) else found

    def _read_once(self, number: int, size: int) -> P | str | None:
        name = self.name(number)
        if size > MAX_RECORD:
            return f"a record of {size} bytes"
        try:
            data = self.folder.read(name)
            part = self.kind.model_validate_json(data)
        except FileNotFoundError:
            return None
        except ValidationError as error:
            self._must_be_known(number, error)
            return f"a record that cannot be read ({error.error_count()} complaints)"
        if data != part.model_dump_json(indent=1).encode():
            return "a record of other bytes than are written"
        if part.number != number:
            return f"the record of part {part.number}"
        self._entries[number] = FileEntry(path=name, size=len(data), sha256=sha256_hex(data))
        return part

    def _must_be_known(self, number: int, error: ValidationError) -> None:
        """Raises StoreError for a record that is good but for its layout, or for fields that are not known here.

        Another version of thinkdiff wrote it, and its files are not to be thrown away.
        """
        complaints = error.errors(include_url=False)
        foreign = [
            complaint
            for complaint in complaints
            if complaint["type"] == "extra_forbidden" or complaint["loc"] == ("schema_version",)
        ]
        if len(foreign) < len(complaints):
            return
        where = f"{self.folder.uri}/{self.name(number)}"
        field, found = ".".join(map(str, foreign[0]["loc"])), foreign[0]["input"]
        raise StoreError(
            f"{where}: found {field} {found!r:.40} in the record of a part, expected a record of layout 1 without "
            "other fields. Another version of thinkdiff wrote it, and it is left as it is; use that version, or begin "
            "anew with --refresh."
        )

    def _objection(
        self, part: P | str | None, sizes: Mapping[str, int], complaint: Callable[[P], str | None], deep: bool
    ) -> str | None:
        """What is wrong with a part, its files' sizes being these."""
        if part is None or isinstance(part, str):
            return part
        for entry in part.files:
            if sizes.get(entry.path) != entry.size:
                return f"{entry.path} {size_phrase(sizes.get(entry.path))} instead of {entry.size}"
            if deep and self.folder.hash(entry.path).sha256 != entry.sha256:
                return f"{entry.path} with other bytes than recorded"
        return complaint(part)


def size_phrase(size: int | None) -> str:
    """How a file of that size, or none, is called in a sentence."""
    return "missing, with no bytes," if size is None else f"with {size} bytes"


def must_be_whole(folder: Folder, parts: Mapping[int, Part], expected: int) -> None:
    """Raises StoreError unless all parts 0 … expected - 1 are there."""
    lacking = sorted(set(range(expected)) - set(parts))
    if lacking or len(parts) != expected:
        raise StoreError(
            f"{folder.uri}: found {len(parts)} parts, expected {expected} (part {lacking[0] if lacking else expected} "
            "is the first that does not fit). The stage has not ended; run it again."
        )
