"""Messages between the two processes of `qwen_engine`: words through a socket, arrays through shared memory.

In and out: dataclasses, lists and tuples with arrays in them, and whatever `multiprocessing` can send. All arrays of a
message are written once into a file in memory (memfd, Linux) whose descriptor goes along; the other end maps it, so
that no array passes through a pipe. The memory lives as long as an array that was received.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import ml_dtypes  # noqa: F401 - makes numpy know bfloat16 by name
import numpy as np


@dataclasses.dataclass(frozen=True)
class Placed:
    """An array that lies elsewhere: what it is, and its first byte."""

    dtype: str
    shape: tuple[int, ...]
    at: int


class Arrays:
    """The arrays of a message, one behind the other; `size` in bytes."""

    def __init__(self) -> None:
        self.found: list[np.ndarray] = []
        self.size = 0

    def add(self, array: np.ndarray) -> None:
        """Put an array behind the others."""
        self.found.append(array)
        self.size += array.nbytes


class Wire:
    """One end. `sent_seconds` and `received_seconds` are the thread time that messages took.

    One thread may send while another receives. Both raise EOFError or ConnectionError when the other end is gone.
    """

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self.sent_seconds = self.received_seconds = 0.0

    def close(self) -> None:
        """Close this end; the other one sees the end of the stream."""
        self._connection.close()

    def send(self, message: Any) -> None:
        """Send a message."""
        began, arrays = time.thread_time(), Arrays()
        words = without_arrays(message, arrays)
        self._connection.send((words, arrays.size))
        if arrays.size:
            memory = os.memfd_create("thinkdiff")
            try:
                at = 0
                for array in arrays.found:
                    at += write_all(memory, array, at)
                self._with_socket(lambda end: socket.send_fds(end, [b"\0"], [memory]))
            finally:
                os.close(memory)
        self.sent_seconds += time.thread_time() - began

    def receive(self) -> Any:
        """Wait for a message. Its arrays can be written to."""
        began = time.thread_time()
        words, size = self._connection.recv()
        whole: mmap.mmap | bytearray = bytearray()
        if size:
            _, (memory,), _, _ = self._with_socket(lambda end: socket.recv_fds(end, 1, 1))
            try:
                whole = mmap.mmap(memory, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
            finally:
                os.close(memory)
        message = with_arrays(words, whole)
        self.received_seconds += time.thread_time() - began
        return message

    def _with_socket(self, use: Callable[[socket.socket], Any]) -> Any:
        end = socket.socket(fileno=self._connection.fileno())
        try:
            return use(end)
        finally:
            end.detach()


def write_all(memory: int, array: np.ndarray, at: int) -> int:
    """Writes an array's bytes at a place; returns how many they are."""
    left = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    while left:
        written = os.pwrite(memory, left, at)
        at, left = at + written, left[written:]
    return array.nbytes


def without_arrays(value: Any, arrays: Arrays) -> Any:
    """The value with `Placed` for each array, which is added to the others."""
    if isinstance(value, np.ndarray):
        arrays.add(value)
        return Placed(value.dtype.name, value.shape, arrays.size - value.nbytes)
    return changed(value, lambda part: without_arrays(part, arrays))


def with_arrays(value: Any, whole: Any) -> Any:
    """The value with the arrays that are in `whole`."""
    if isinstance(value, Placed):
        return np.ndarray(value.shape, np.dtype(value.dtype), whole, value.at)
    return changed(value, lambda part: with_arrays(part, whole))


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with its parts changed, where it has any."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: change(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **parts)
    if isinstance(value, list):  # of ids, mostly
        return value if value and type(value[0]) is int else [change(part) for part in value]
    return tuple(change(part) for part in value) if isinstance(value, tuple) else value
