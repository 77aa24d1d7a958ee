"""Generated pictures: `<method>/<part>.tar` of PNG files, and `<method>/<part>.json`, the part's record, written last.

In: names and PNG or MP4 bytes, part by part. Out: the same bytes by name or in order, checked by sha256. A name may
hold `/`, as a benchmark prompt's does; inside the tar it is followed by `.png` or `.mp4`. Videos are a method's
neighbour of their own, `videos/<method>`. Nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from pydantic import Field, ValidationError

from thinkdiff.schemas.artifact import FileEntry, Frozen
from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.media import MediaSet
from thinkdiff.storage.parts import Part, PartLog, must_be_whole
from thinkdiff.storage.records import missing_files, verified_bytes
from thinkdiff.storage.root import Folder, sha256_hex
from thinkdiff.storage.tar_stream import TarBuilder

DIGITS = 5
PNG = b"\x89PNG\r\n\x1a\n"
MP4 = b"ftyp"  # behind four bytes that say how long the first box is


class Picture(Frozen):
    """Where a picture lies in its part's tar."""

    name: str = Field(min_length=1)
    offset: int = Field(ge=0)
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class MediaPart(Part):
    """A part of one method's pictures."""

    pictures: tuple[Picture, ...]


def videos_of(method: str) -> str:
    """Where the videos are whose middle frames are a method's pictures."""
    return f"videos/{method}"


def suffix(data: bytes) -> str:
    """`.png` or `.mp4`, by the first bytes."""
    assert data.startswith(PNG) or data[4:8] == MP4, data[:8]
    return ".png" if data.startswith(PNG) else ".mp4"


def tar_name(method: str, part: int) -> str:
    """The name of a part's tar."""
    return f"{method}/{part:0{DIGITS}d}.tar"


class MediaWriter:
    """Writes the pictures of a MediaSet, part by part, in any order."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def commit(self, method: str, part: int, pictures: Sequence[tuple[str, bytes]]) -> list[FileEntry]:
        """Writes the pictures of a part, in the order given, and its record. Returns the entries of both files.

        Raises StoreError when a name comes twice, LockedError when the part is committed already.
        """
        log, builder, names = self._log(method), TarBuilder(), set[str]()
        for name, _ in pictures:
            self.folder.full(name)
            if name in names:
                raise StoreError(f"{self.folder.uri}: found the picture {name} twice in part {part}, expected it once.")
            names.add(name)
        log.must_be_free(part)
        members = ((f"{name}{suffix(data)}", data) for name, data in pictures)
        entry = self.folder.write_pieces(tar_name(method, part), builder.pieces(members))
        found = tuple(
            Picture(name=name, offset=offset, size=len(data), sha256=sha256_hex(data))
            for (name, data), offset in zip(pictures, builder.offsets, strict=True)
        )
        record = MediaPart(number=part, rows=len(found), files=(entry,), pictures=found)
        return [entry, log.commit(record)]

    def committed(self, method: str, deep: bool = False) -> dict[int, MediaPart]:
        """The parts of a method that are done; those that cannot be trusted are logged and forgotten."""
        return self._log(method).committed(lambda part: complaint(method, part), deep)

    def files(self, method: str, parts: int) -> tuple[FileEntry, ...]:
        """The entries of all files of a method that must have `parts` parts. Raises StoreError when one is not done."""
        log = self._log(method)
        done = log.committed(lambda part: complaint(method, part))
        must_be_whole(self.folder / method, done, parts)
        return tuple(entry for number, part in sorted(done.items()) for entry in (*part.files, log.entry(number)))

    def reader(self, files: tuple[FileEntry, ...]) -> MediaReader:
        """A reader of the finished set, whose `files` these are, before it has a record."""
        stage = self.folder.uri.rsplit("/", 2)[1]
        return MediaReader(MediaSet.model_construct(stage=stage, uri=self.folder.uri, files=files))

    def _log(self, method: str) -> PartLog[MediaPart]:
        return PartLog(self.folder, method, MediaPart, DIGITS)


class MediaReader:
    """The pictures of a MediaSet. Raises StoreError when a file is missing or a record contradicts itself."""

    def __init__(self, artifact: MediaSet) -> None:
        self.artifact, self.folder = artifact, Folder(artifact.uri)
        self._entries = {entry.path: entry for entry in artifact.files}
        if problems := missing_files(artifact):
            raise StoreError(
                f"{artifact.uri}: found {problems[0]}. Pictures are missing; re-run {artifact.stage} with --refresh."
            )

    @cached_property
    def _places(self) -> dict[str, dict[str, tuple[str, Picture]]]:
        """method -> picture's name -> its tar and its place there, in the order of parts."""
        found: dict[str, dict[str, tuple[str, Picture]]] = {}
        for tar in self.artifact.names(suffix=".tar"):
            method, _, number = tar.removesuffix(".tar").rpartition("/")
            pictures = found.setdefault(method, {})
            for picture in self._part(method, tar, number).pictures:
                if picture.name in pictures:
                    raise StoreError(f"{self.folder.uri}/{tar}: found {picture.name} a second time, expected it once.")
                pictures[picture.name] = (tar, picture)
        return found

    def names(self, method: str) -> list[str]:
        """The names of a method's pictures, in the order in which they were made; [] for an unknown method."""
        return list(self._places.get(method, {}))

    def has(self, method: str, name: str) -> bool:
        """Whether there is a picture of that name; another system may have drawn none."""
        return name in self._places.get(method, {})

    def read(self, method: str, name: str) -> bytes:
        """One picture. Raises StoreError when there is none of that name, or its bytes are not those recorded."""
        if not self.has(method, name):
            raise StoreError(f"{self.folder.uri}: found no picture {name} of method {method}, expected one.")
        tar, picture = self._places[method][name]
        data = self.folder.read_range(tar, picture.offset, picture.offset + picture.size)
        if sha256_hex(data) != picture.sha256:
            raise StoreError(
                f"{self.folder.uri}/{tar}: found other bytes than recorded for {name}, expected sha256 "
                f"{picture.sha256[:12]}…. The tar is altered; re-run {self.artifact.stage} with --refresh."
            )
        return data

    def iterate(self, method: str) -> Iterator[tuple[str, bytes]]:
        """All pictures of a method in the order in which they were made, one tar in memory at a time."""
        open_tar, data = "", b""
        for name, (tar, picture) in self._places.get(method, {}).items():
            if tar != open_tar:
                open_tar, data = tar, verified_bytes(self.folder, self._entries[tar])
            yield name, data[picture.offset : picture.offset + picture.size]

    def _part(self, method: str, tar: str, number: str) -> MediaPart:
        name = f"{method}/{number}.json"
        try:
            part = MediaPart.model_validate_json(verified_bytes(self.folder, self._entries[name]))
            phrase = complaint(method, part) if f"{part.number:0{DIGITS}d}" == number else "another part's record"
        except (KeyError, ValidationError):
            phrase, part = "no readable record", None
        if part is None or phrase or part.files != (self._entries[tar],):
            raise StoreError(
                f"{self.folder.uri}/{name}: found {phrase or 'the record of another tar'}, expected that of {tar}. "
                f"The store was altered; re-run {self.artifact.stage} with --refresh."
            )
        return part


def complaint(method: str, part: MediaPart) -> str | None:
    """A phrase when a part's record contradicts itself."""
    if part.names() != [tar_name(method, part.number)] or part.rows != len(part.pictures):
        return "the record of other files"
    if len({picture.name for picture in part.pictures}) != part.rows:
        return "a picture's name twice"
    if any(picture.offset + picture.size > part.files[0].size for picture in part.pictures):
        return "a picture outside its tar"
    return None


def iterate(artifact: MediaSet, method: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of all pictures of a method, in the order in which they were made."""
    return MediaReader(artifact).iterate(method)
