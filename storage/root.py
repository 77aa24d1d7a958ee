"""A folder on disk or in a bucket.

In: a path or `s3://bucket/prefix`. Out: whole files, written so that a reader sees the old bytes, the new bytes or
nothing. It knows no artifact and no stage. The bytes of a bucket go through obstore (`bucket.py`); lists, streams and
other schemes through fsspec. Credentials and endpoint of S3 come from the usual AWS variables.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import fsspec
import numpy as np
from fsspec.utils import glob_translate

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.errors import RootError, StoreError, ThinkDiffError
from thinkdiff.storage import disk
from thinkdiff.storage.bucket import Bucket, bucket_of, filesystem, settings
from thinkdiff.storage.disk import TEMPORARY, Buffers, Octets
from thinkdiff.storage.refusals import expired, precondition_failed, readable, s3fs_code, scheme_of, unwritable

CHUNK = 1 << 22
T = TypeVar("T")


def sha256_hex(data: Octets) -> str:
    """sha256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Folder:
    """A folder by URI; names below it are relative and use `/`. Nothing is touched until a method is called."""

    uri: str

    @staticmethod
    def at(uri: str) -> Folder:
        """The folder of a path or URL, made absolute.

        Raises RootError for a scheme without a filesystem, for empty parts and for a password.
        """
        scheme = scheme_of(uri)
        if "://" not in uri:
            return Folder(os.path.abspath(os.path.expanduser(uri)))
        if scheme == "file":
            return Folder(os.path.abspath(uri.removeprefix("file://")))
        empty = (
            "an empty part" if "//" in "/" + uri.rstrip("/").partition("://")[2] else ""
        )  # clients read it differently
        if wrong := empty if scheme in ("s3", "memory") else f"scheme {scheme!r}":
            raise RootError(f"root: found {wrong} in {uri!r}, expected a path or s3://bucket/prefix.")
        return Folder(uri.rstrip("/"))

    @staticmethod
    def source(uri: str) -> Folder:
        """A folder that is only read, of any scheme that fsspec knows. Raises RootError for one that it does not."""
        scheme = scheme_of(uri)
        if "://" not in uri or scheme in ("file", "s3", "memory"):
            return Folder.at(uri)
        if scheme not in fsspec.available_protocols():
            raise RootError(f"{uri}: found scheme {scheme!r}, expected a path or a URL of a scheme that fsspec knows.")
        return Folder(uri.rstrip("/"))

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri}/{name}")

    @property
    def scheme(self) -> str:
        """The scheme of the URI, "file" for a path."""
        return self.uri.split("://", 1)[0] if "://" in self.uri else "file"

    @property
    def fs(self) -> Any:
        """The fsspec filesystem of this folder."""
        return filesystem(self.scheme, os.getpid(), settings() if self.scheme == "s3" else ())

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local disk."""
        return self.scheme == "file"

    @property
    def bucket(self) -> Bucket | None:
        """The bucket, where obstore is to be asked for bytes."""
        return bucket_of(self.uri) if self.scheme == "s3" else None

    def _key(self, name: str) -> str:
        return self.full(name).removeprefix("s3://").split("/", 1)[1]

    def _ask(self, path: str, request: Callable[[Any], T]) -> T:
        """What fsspec answers. Raises RootError when it does not."""
        with readable(path):
            return self._renewing(request)

    def _renewing(self, request: Callable[[Any], T]) -> T:
        """What fsspec answers; expired credentials are looked up anew, once."""
        try:
            return request(self.fs)
        except PermissionError as error:
            if not expired(error):
                raise
        filesystem.cache_clear()
        return request(self.fs)

    def full(self, name: str) -> str:
        """The full path or URL of a file below this folder. Raises StoreError when `name` would leave it."""
        if name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise StoreError(f"{self.uri}: found the name {name!r}, expected one that stays below this folder.")
        return f"{self.uri}/{name}"

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError, or RootError when the store does not answer."""
        path = self.full(name)
        with readable(path):
            if self.is_local:
                with open(path, "rb") as file:
                    return file.read()
            if bucket := self.bucket:
                return bucket.read(self._key(name))
        return self._ask(path, lambda fs: fs.cat_file(path))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file.

        Raises FileNotFoundError, StoreError when the file is shorter, RootError when the store does not answer.
        """
        return self.read_ranges([(name, start, end)])[0]

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """`read_range` of many (name, start, end), concurrently in a bucket."""
        if not ranges:
            return []
        with readable(self.full(ranges[0][0])):
            found = self._ranges(ranges)
        for (name, start, end), data in zip(ranges, found, strict=True):
            self._must_have(name, start, end - start, len(data))
        return found

    def read_into(self, requests: Sequence[tuple[str, int, Buffers]], act: Callable[[int, int], object]) -> None:
        """Fills the buffers of each (name, start, buffers) from `start` on, and calls `act` with a request's number and
        that of its buffer, one by one while they are in the processor's cache.

        In a bucket many requests are under way, each in a thread. Raises what `read_range` and `act` raise.
        """
        ranges = [(name, start, start + sum(map(len, buffers))) for name, start, buffers in requests]
        if self.is_local:
            filled = disk.read_into([(self.full(name), start, buffers) for name, start, buffers in requests])
            for place, (name, start, end) in enumerate(ranges):
                with readable(self.full(name)):
                    got = next(filled)
                self._must_have(name, start, end - start, got)
                for buffer in range(len(requests[place][2])):
                    act(place, buffer)
            return

        def scatter(place: int, data: bytes) -> None:
            name, start, end = ranges[place]
            view, used = np.frombuffer(data, np.uint8), 0
            self._must_have(name, start, end - start, len(view))
            for number, buffer in enumerate(requests[place][2]):
                buffer[:] = view[used : used + len(buffer)]
                used += len(buffer)
                act(place, number)

        if bucket := self.bucket:
            with readable(self.full(ranges[0][0]) if ranges else self.uri):
                bucket.each_range([(self._key(name), start, end) for name, start, end in ranges], scatter)
            return
        for number, found in enumerate(self.read_ranges(ranges)):
            scatter(number, found)

    def _must_have(self, name: str, start: int, expected: int, found: int) -> None:
        if found != expected:
            raise StoreError(
                f"{self.full(name)}: found {found} bytes at {start}, expected {expected}. "
                "The file is truncated; re-run its stage with --refresh."
            )

    def _ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        if self.is_local:
            return [self._local_range(*wanted) for wanted in ranges]
        if bucket := self.bucket:
            return bucket.read_ranges([(self._key(name), start, end) for name, start, end in ranges])
        names, starts, ends = [self.full(n) for n, _, _ in ranges], [s for _, s, _ in ranges], [e for *_, e in ranges]
        found = self.fs.cat_ranges(names, starts, ends, on_error="return")
        for place, data in enumerate(found):
            if isinstance(data, OSError) and s3fs_code(data) == "InvalidRange":
                found[place] = b""
            elif not isinstance(data, bytes) or len(data) != ends[place] - starts[place]:
                found[place] = self._renewing(
                    lambda fs, at=place: fs.cat_file(names[at], start=starts[at], end=ends[at])
                )
        return found

    def _local_range(self, name: str, start: int, end: int) -> bytes:
        with readable(path := self.full(name)):
            return disk.read_range(path, start, end)

    def open(self, name: str) -> IO[bytes]:
        """A file opened for streaming reads. Raises FileNotFoundError."""
        path = self.full(name)
        return self._ask(path, lambda fs: fs.open(path, "rb"))

    def write(self, name: str, data: Octets) -> FileEntry:
        """Replaces a file at once (rename on disk, one PUT in a bucket) and returns its entry.

        Raises RootError when the folder cannot be written; the old file, if any, is untouched then.
        """
        path = self.full(name)
        try:
            if self.is_local:
                disk.replace(path, [data])
            elif bucket := self.bucket:
                bucket.write(self._key(name), data)
            else:
                self._renewing(lambda fs: fs.pipe_file(path, bytes(data)))
        except ThinkDiffError:
            raise
        except Exception as error:
            raise unwritable(self.uri, error) from error
        return FileEntry(path=name, size=len(data), sha256=sha256_hex(data))

    def write_pieces(self, name: str, pieces: Iterable[bytes]) -> FileEntry:
        """`write` of bytes that come in pieces, so that memory holds only one of them."""
        path, hasher, size = self.full(name), hashlib.sha256(), 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for piece in pieces:
                hasher.update(piece)
                size += len(piece)
                yield piece

        try:
            if self.is_local:
                disk.replace(path, counted())
            else:
                with tempfile.NamedTemporaryFile(prefix="thinkdiff-upload-") as file:
                    file.writelines(counted())
                    file.flush()
                    self._renewing(lambda fs: fs.put_file(file.name, path))
        except ThinkDiffError:
            raise
        except Exception as error:
            raise unwritable(self.uri, error) from error
        return FileEntry(path=name, size=size, sha256=hasher.hexdigest())

    def create(self, name: str, data: Octets) -> bool:
        """Writes a file only if there is none of that name; False, with nothing changed, if there is.

        A hard link on disk, `If-None-Match: *` on S3: one of several writers wins. A PUT whose answer was lost is
        sent again and refused for what it wrote itself, so False may mean these very bytes: read them.
        """
        path = self.full(name)
        try:
            if self.is_local:
                disk.create(path, [data])
            elif bucket := self.bucket:
                return bucket.create(self._key(name), data)
            else:
                self._renewing(lambda fs: fs.pipe_file(path, bytes(data), mode="create"))
        except FileExistsError:
            return False
        except ThinkDiffError:
            raise
        except Exception as error:
            if precondition_failed(error):
                return False
            raise unwritable(self.uri, error) from error
        return True

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        path = self.full(name)
        if self.is_local:
            with readable(path):
                return disk.is_file(path)
        try:
            return self._ask(path, lambda fs: fs.info(path))["type"] == "file"  # fs.isfile takes any fault for a no
        except FileNotFoundError:
            return False

    def size(self, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        path = self.full(name)
        return int(self._ask(path, lambda fs: fs.size(path)))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Names and sizes in bytes of all files below `prefix`, temporary ones left out; {} when there is none."""
        start = f"{prefix}/" if prefix else ""
        found = (Folder(self.full(prefix)) if prefix else self).all_sizes()
        return {f"{start}{name}": size for name, size in sorted(found.items()) if TEMPORARY not in name}

    def all_sizes(self) -> dict[str, int]:
        """Names and sizes in bytes of all files below this folder, temporary ones too; links are none.

        Raises RootError, and never tells less.
        """
        if self.is_local:
            with readable(self.uri):
                return disk.files(self.uri, links=False)
        try:
            found = self._ask(self.uri, lambda fs: fs.find(self.uri, detail=True))
        except FileNotFoundError:
            return {}
        # A bucket may list folders as objects of their own; SeaweedFS does when they are empty.
        files = {path: info for path, info in found.items() if info["type"] == "file"}
        start = len(self.fs._strip_protocol(self.uri).rstrip("/")) + 1
        return {path[start:]: int(info["size"] or 0) for path, info in files.items()}

    def children(self) -> list[str]:
        """Names of the entries directly in this folder, sorted."""
        try:
            found = self._ask(self.uri, lambda fs: fs.ls(self.uri, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        itself = self.fs._strip_protocol(self.uri).rstrip("/")
        names = {path.rstrip("/") for path in found} - {itself}
        return sorted(name.rsplit("/", 1)[1] for name in names)

    def glob(self, pattern: str) -> list[str]:
        """Names of the files that match a shell pattern, sorted."""
        wanted = self.full(pattern)
        if self.is_local:
            depth = None if "**" in pattern else pattern.count("/") + 1
            with readable(wanted):
                return sorted(filter(re.compile(glob_translate(pattern)).match, disk.files(self.uri, depth)))
        start = len(self.fs._strip_protocol(self.uri).rstrip("/")) + 1
        return sorted(path[start:] for path in self._ask(wanted, lambda fs: fs.glob(wanted)))

    def delete(self, name: str) -> None:
        """Removes a file; nothing happens when there is none."""
        path = self.full(name)
        try:
            self._ask(path, lambda fs: fs.rm_file(path))
        except FileNotFoundError:
            return

    def delete_all(self) -> None:
        """Removes this folder and all below it."""
        if self._ask(self.uri, lambda fs: fs.exists(self.uri)):
            self._ask(self.uri, lambda fs: fs.rm(self.uri, recursive=True))

    def sweep(self) -> None:
        """Removes the temporary files that killed writers left below this folder; nothing to do in a bucket."""
        if self.is_local:
            for name in self.all_sizes():
                if os.path.basename(name).startswith(TEMPORARY):
                    self.delete(name)

    def hash(self, name: str) -> FileEntry:
        """Re-reads a file and returns its entry. Raises FileNotFoundError."""
        hasher, size = hashlib.sha256(), 0
        for chunk in self.chunks(name):
            hasher.update(chunk)
            size += len(chunk)
        return FileEntry(path=name, size=size, sha256=hasher.hexdigest())

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file in pieces. Raises FileNotFoundError."""
        with readable(self.full(name)), self.open(name) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def check_writable(self) -> None:
        """Raises RootError in one sentence unless a file can be written here."""
        probe = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
        self.write(probe, b"")
        self.delete(probe)


def locate(base: str, url: str) -> tuple[Folder, str]:
    """Folder and name of a file URL, a relative one taken from `base`."""
    if "://" not in url and not os.path.isabs(url):
        url = f"{base.rstrip('/')}/{url}"
    parent, _, name = url.rpartition("/")
    return Folder.source(parent or "/"), name


def matching(base: str, pattern: str) -> list[tuple[Folder, str]]:
    """Folder and name of each file that a shell pattern fits, a relative one taken from `base`, sorted.

    A pattern without `*`, `?` and `[` names one file.
    """
    parts = pattern.split("/")
    first = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), None)
    if first is None:
        folder, name = locate(base, pattern)
        return [(folder, name)] if folder.exists(name) else []
    folder, name = locate(base, "/".join(parts[: first + 1]))
    return [(folder, found) for found in folder.glob("/".join([name, *parts[first + 1 :]]))]
