"""A folder on disk or in a bucket. The one module that knows fsspec.

In: a path or `s3://bucket/prefix`. Out: whole files, written so that a reader sees the old bytes, the new bytes or
nothing. It knows no artifact and no stage. Credentials and endpoint of S3 come from the usual AWS variables.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.errors import RootError, StoreError

CHUNK = 1 << 22
TEMPORARY = ".tmp-"


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """sha256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Folder:
    """A folder by URI; names below it are relative and use `/`. Nothing is touched until a method is called."""

    uri: str

    @staticmethod
    def at(uri: str) -> Folder:
        """The folder of a path or URL, made absolute.

        Raises RootError when no filesystem is known for the URL's scheme.
        """
        if "://" not in uri:
            return Folder(os.path.abspath(os.path.expanduser(uri)))
        scheme = uri.split("://", 1)[0]
        if scheme == "file":
            return Folder(os.path.abspath(uri.removeprefix("file://")))
        if scheme not in ("s3", "memory"):
            raise RootError(f"root: found scheme {scheme!r} in {uri!r}, expected a path or s3://bucket/prefix.")
        return Folder(uri.rstrip("/"))

    @staticmethod
    def source(uri: str) -> Folder:
        """A folder that is only read, by a path or a URL of any scheme that fsspec knows.

        Raises RootError for a scheme that it does not know.
        """
        scheme = uri.split("://", 1)[0]
        if "://" not in uri or scheme in ("file", "s3", "memory"):
            return Folder.at(uri)
        if scheme not in fsspec.available_protocols():
            raise RootError(f"{uri}: found scheme {scheme!r}, expected a path or a URL of a scheme that fsspec knows.")
        return Folder(uri.rstrip("/"))

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri}/{name}")

    @cached_property
    def fs(self) -> Any:
        """The fsspec filesystem of this folder."""
        scheme = self.uri.split("://", 1)[0] if "://" in self.uri else "file"
        options = {"use_listings_cache": False} if scheme == "s3" else {}
        return fsspec.filesystem(scheme, **options)

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local disk."""
        return isinstance(self.fs, LocalFileSystem)

    def full(self, name: str) -> str:
        """The full path or URL of a file below this folder. Raises StoreError when `name` would leave it."""
        if name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise StoreError(f"{self.uri}: found the name {name!r}, expected one that stays below this folder.")
        return f"{self.uri}/{name}"

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError."""
        return self.fs.cat_file(self.full(name))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file. Raises FileNotFoundError, or StoreError when the file is shorter."""
        try:
            data = self.fs.cat_file(self.full(name), start=start, end=end)
        except OSError as error:
            if error_code(error) != "InvalidRange":
                raise
            data = b""
        if len(data) != end - start:
            raise StoreError(
                f"{self.full(name)}: found {len(data)} bytes at {start}, expected {end - start}. "
                "The file is truncated; re-run its stage with --refresh."
            )
        return data

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """`read_range` of many (name, start, end), concurrently in a bucket.

        Raises FileNotFoundError, or StoreError when a file is shorter.
        """
        if self.is_local:
            return [self.read_range(*wanted) for wanted in ranges]
        names, starts, ends = [self.full(n) for n, _, _ in ranges], [s for _, s, _ in ranges], [e for *_, e in ranges]
        found = self.fs.cat_ranges(names, starts, ends, on_error="return")
        return [
            data if isinstance(data, bytes) and len(data) == end - start else self.read_range(name, start, end)
            for data, (name, start, end) in zip(found, ranges, strict=True)
        ]

    def open(self, name: str) -> IO[bytes]:
        """A file opened for streaming reads. Raises FileNotFoundError."""
        return self.fs.open(self.full(name), "rb")

    def write(self, name: str, data: bytes | bytearray | memoryview) -> FileEntry:
        """Replaces a file at once (rename on disk, one PUT in a bucket) and returns its entry.

        Raises RootError when the folder cannot be written; the old file, if any, is untouched then.
        """
        path = self.full(name)
        try:
            if self.is_local:
                self._replace(self._temporary(path, [data]), path)
            else:
                self.fs.pipe_file(path, bytes(data))
        except OSError as error:
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
                self._replace(self._temporary(path, counted()), path)
            else:
                with tempfile.NamedTemporaryFile(prefix="thinkdiff-upload-") as file:
                    file.writelines(counted())
                    file.flush()
                    self.fs.put_file(file.name, path)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise unwritable(self.uri, error) from error
        return FileEntry(path=name, size=size, sha256=hasher.hexdigest())

    def create(self, name: str, data: bytes | bytearray | memoryview) -> bool:
        """Writes a file only if there is none of that name; False, with nothing changed, if there is.

        A hard link on disk and `If-None-Match: *` on S3, so exactly one of several writers wins.
        """
        path = self.full(name)
        try:
            if self.is_local:
                temporary = self._temporary(path, [data])
                try:
                    os.link(temporary, path)
                finally:
                    os.unlink(temporary)
            else:
                self.fs.pipe_file(path, bytes(data), mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if precondition_failed(error):
                return False
            raise unwritable(self.uri, error) from error
        return True

    def _replace(self, temporary: str, path: str) -> None:
        try:
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise

    def _temporary(self, path: str, pieces: Iterable[bytes | bytearray | memoryview]) -> str:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = os.path.join(os.path.dirname(path), f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            with open(temporary, "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
        return temporary

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self.fs.isfile(self.full(name))

    def size(self, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        return int(self.fs.size(self.full(name)))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Names and sizes in bytes of all files below `prefix`, temporary ones left out; {} when there is none."""
        base = self.full(prefix) if prefix else self.uri
        try:
            found = self.fs.find(base, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.fs._strip_protocol(self.uri).rstrip("/")) + 1
        # A bucket may list folders as objects of their own; SeaweedFS does when they are empty.
        files = {path: info for path, info in found.items() if info["type"] == "file"}
        names = {path[start:]: int(info["size"] or 0) for path, info in files.items()}
        return {name: size for name, size in sorted(names.items()) if TEMPORARY not in name}

    def children(self) -> list[str]:
        """Names of the entries directly in this folder, sorted."""
        try:
            found = self.fs.ls(self.uri, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        itself = self.fs._strip_protocol(self.uri).rstrip("/")
        names = {path.rstrip("/") for path in found} - {itself}
        return sorted(name.rsplit("/", 1)[1] for name in names)

    def glob(self, pattern: str) -> list[str]:
        """Names of the files that match a shell pattern, sorted."""
        start = len(self.fs._strip_protocol(self.uri).rstrip("/")) + 1
        return sorted(path[start:] for path in self.fs.glob(self.full(pattern)))

    def delete(self, name: str) -> None:
        """Removes a file; nothing happens when there is none."""
        try:
            self.fs.rm_file(self.full(name))
        except FileNotFoundError:
            return

    def delete_all(self) -> None:
        """Removes this folder and all below it."""
        if self.fs.exists(self.uri):
            self.fs.rm(self.uri, recursive=True)

    def sweep(self) -> None:
        """Removes the temporary files that killed writers left below this folder; nothing to do in a bucket."""
        if self.is_local:
            for path in self.fs.find(self.uri):
                if os.path.basename(path).startswith(TEMPORARY):
                    os.unlink(path)

    def hash(self, name: str) -> FileEntry:
        """Re-reads a file and returns its entry. Raises FileNotFoundError."""
        hasher, size = hashlib.sha256(), 0
        for chunk in self.chunks(name):
            hasher.update(chunk)
            size += len(chunk)
        return FileEntry(path=name, size=size, sha256=hasher.hexdigest())

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file in pieces. Raises FileNotFoundError."""
        with self.open(name) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def check_writable(self) -> None:
        """Raises RootError in one sentence unless a file can be written here."""
        probe = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
        try:
            self.write(probe, b"")
            self.delete(probe)
        except RootError:
            raise
        except Exception as error:
            raise unwritable(self.uri, error) from error


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


def unwritable(uri: str, error: Exception) -> RootError:
    """The sentence for a root that refused a write."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return RootError(f"{uri}: found it not writable ({reason}), expected a folder or bucket that this user can write.")


def precondition_failed(error: OSError) -> bool:
    """Whether S3 refused a conditional write because the object is there (servers differ in the error's shape)."""
    return error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict") or error.errno == errno.EEXIST


def error_code(error: OSError) -> str:
    """The S3 error code behind an exception of s3fs, "" when there is none."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
