"""Files of a local disk: read by range, written beside their place, flushed, and only then given their name."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TEMPORARY = ".tmp-"
Octets = bytes | bytearray | memoryview
Buffers = Sequence[npt.NDArray[np.uint8]]
MOST_BUFFERS = 1024  # of one system call
BLOCK = 4096  # bytes, to which what passes the page cache must be aligned
LARGE = 1 << 20
AHEAD = 32  # requests that the disk knows of


def files(base: str, depth: int | None = None, links: bool = True) -> dict[str, int]:
    """Paths below `base` and sizes in bytes of all its files; links to folders are not entered.

    depth: folders that are gone into, counted from 1 for `base`; None for all. links: whether links to files count.
    What vanishes meanwhile is left out. Raises OSError for a folder that cannot be listed: left out, its files would
    pass for deleted ones.
    """
    found, folders = dict[str, int](), [("", 1)]
    while folders:
        folder, level = folders.pop()
        try:
            with os.scandir(f"{base}/{folder}") as listed:
                entries = list(listed)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if depth is None or level < depth:
                    folders.append((f"{folder}{entry.name}/", level + 1))
            elif (links or not entry.is_symlink()) and (state := state_of(entry)) and stat.S_ISREG(state.st_mode):
                found[f"{folder}{entry.name}"] = state.st_size
    return found


def is_file(path: str) -> bool:
    """Whether there is a file; that it cannot be told raises OSError."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def state_of(entry: os.DirEntry[str]) -> os.stat_result | None:
    """What is known of an entry of a folder, None for one that has vanished and for a link to nothing."""
    try:
        return entry.stat()
    except FileNotFoundError:
        return None
    except OSError:
        if entry.is_symlink():  # in a circle
            return None
        raise


def read_range(path: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of a file, fewer where it ends before. Raises OSError."""
    file, pieces = os.open(path, os.O_RDONLY), []
    try:
        while piece := os.pread(file, end - start, start):  # one call reads 2 GiB at most
            pieces.append(piece)
            start += len(piece)
    finally:
        os.close(file)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_into(requests: Sequence[tuple[str, int, Buffers]]) -> Iterator[int]:
    """Fills the buffers of each (path, start, buffers) from `start` on, and says of each how many bytes there were.

    The disk is told of the next ones meanwhile. Raises OSError.
    """
    coming: deque[int] = deque()
    rest = iter(requests)
    try:
        for _, start, buffers in requests:
            for path, begin, others in islice(rest, AHEAD - len(coming)):
                coming.append(os.open(path, os.O_RDONLY))
                os.posix_fadvise(coming[-1], begin, sum(map(len, others)), os.POSIX_FADV_WILLNEED)
            yield fill(coming[0], start, buffers)
            os.close(coming.popleft())
    finally:
        for file in coming:
            os.close(file)


def fill(file: int, start: int, buffers: Buffers) -> int:
    """Fills the buffers with the bytes of an open file from `start` on; says how many there were. Raises OSError."""
    begin = start
    left: Any = list(buffers)
    while left and (got := os.preadv(file, left[:MOST_BUFFERS], start)):
        start += got
        while left and got >= len(left[0]):
            got -= len(left.pop(0))
        if got:
            left[0] = left[0][got:]
    return start - begin


@contextmanager
def temporary(path: str, pieces: Iterable[Octets]) -> Iterator[str]:
    """A flushed file of these bytes beside `path`, which is gone afterwards unless it was moved. Raises OSError."""
    parent = Path(path).parent
    parent.mkdir(parents=True, exist_ok=True)
    name = parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with open(name, "wb", buffering=0) as file:
            for piece in pieces:
                write(file.fileno(), piece)
            os.fsync(file.fileno())
        yield str(name)
    finally:
        name.unlink(missing_ok=True)


def write(file: int, piece: Octets) -> None:
    """Appends bytes; many of them past the page cache, where the file system can. Raises OSError."""
    left = memoryview(piece).cast("B")
    blocks = len(left) - len(left) % BLOCK
    if blocks >= LARGE and np.frombuffer(left, np.uint8).ctypes.data % BLOCK == 0:
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        try:
            fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT)
            written = os.write(file, left[:blocks])
            left = left[written - written % BLOCK :]
            os.lseek(file, -(written % BLOCK), os.SEEK_CUR)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        finally:
            fcntl.fcntl(file, fcntl.F_SETFL, flags)
    while left:
        left = left[os.write(file, left) :]


def replace(path: str, pieces: Iterable[Octets]) -> None:
    """Writes a file over the one that is there, at once. Raises OSError."""
    with temporary(path, pieces) as file:
        os.replace(file, path)


def create(path: str, pieces: Iterable[Octets]) -> None:
    """Writes a file. Raises FileExistsError when there is one of that name, or OSError."""
    with temporary(path, pieces) as file:
        os.link(file, path)
