"""Lines of a file, plain or compressed, some MiB at a time.

In: a folder and a name, perhaps a range of bytes. Out: arrays of bytes that hold whole lines. Files come from
strangers: of an endless line only the beginning is kept, and a compressed file is never held as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import pyarrow as pa

from thinkdiff.schemas.errors import InputError
from thinkdiff.storage.caption_blocks import Text
from thinkdiff.storage.caption_rows import MAX_LINE
from thinkdiff.storage.caption_scan import Bytes, cut_lines
from thinkdiff.storage.root import Folder

CHUNK = 1 << 22
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


def compression(name: str) -> str | None:
    """What a file is compressed with, by the end of its name."""
    return next((kind for end, kind in COMPRESSIONS.items() if name.endswith(end)), None)


def open_stream(folder: Folder, name: str) -> Any:
    """The bytes of a file, decompressed. Raises InputError when there is no such file."""
    try:
        file: IO[bytes] = folder.open(name)
    except FileNotFoundError:
        raise InputError(f"{folder.full(name)}: found no such file, expected a part of a collection.") from None
    kind = compression(name)
    return file if kind is None else pa.CompressedInputStream(pa.PythonFile(file, mode="r"), kind)


@contextmanager
def decompressed(folder: Folder, name: str) -> Iterator[Any]:
    """`open_stream`, while it is read. Raises InputError when a compressed file is cut off or none."""
    try:
        with open_stream(folder, name) as stream:
            yield stream
    except (OSError, EOFError, ValueError) as error:
        kind = compression(name)
        if kind is None or isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder.full(name)}: found bytes that do not decompress ({str(error)[:80]}), expected a whole {kind} "
            "file. It was cut off or is no such file; copy it again."
        ) from error


def line_chunks(folder: Folder, name: str, start: int, stop: int | None) -> Iterator[Bytes]:
    """The lines that begin at bytes `start` to `stop`; of one longer than MAX_LINE the first bytes at least.

    The last line of a file may lack its newline. Raises InputError when a compressed file is cut off or none.
    """
    with decompressed(folder, name) as stream:
        at = max(start - 1, 0)
        if at:
            stream.seek(at)
        yield from whole_lines(stream, at, start > 0, stop)


def whole_lines(stream: Any, at: int, skip: bool, stop: int | None, chunk: int = CHUNK) -> Iterator[Bytes]:
    """Lines of a stream that stands at byte `at`, up to the line that holds byte `stop - 1`.

    `skip`: begin behind the first newline.
    """
    rest, done = b"", False
    while not done:
        data = stream.read(chunk)
        done = not data
        if stop is not None and at + len(data) >= stop:  # the last line ends at the first newline from stop - 1 on
            cut = data.find(b"\n", max(stop - 1 - at, 0))
            done = done or cut >= 0
            at += len(data)
            data = data if cut < 0 else data[: cut + 1]
        else:
            at += len(data)
        if skip:
            newline = data.find(b"\n") + 1
            if not newline:
                continue
            data, skip = data[newline:], False
        end = len(data) if done else data.rfind(b"\n") + 1
        if end:
            yield np.frombuffer(rest + data[:end], np.uint8)
            rest = data[end:]
        else:
            rest += data
        rest = rest[: MAX_LINE + 1]
    if rest:
        yield np.frombuffer(rest, np.uint8)


def lines_array(chunk: Bytes) -> pa.Array:
    """Lines as strings that nobody has checked, without their newlines."""
    start, _, end = cut_lines(chunk)
    binary = Text(chunk, start, end).take()
    return pa.LargeStringArray.from_buffers(len(binary), *binary.buffers()[1:])
