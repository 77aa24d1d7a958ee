"""Messages between the two processes of `qwen_engine`: words through a socket, arrays through shared memory.

In and out: what `multiprocessing` can send; both ends are processes of one run. The arrays of a message are left out of
its words and written once into a file in memory (memfd, Linux) whose descriptor goes along; the other end maps it, so
that no array passes through a pipe. The memory lives as long as an array that was received.
"""

from __future__ import annotations

import io
import itertools
import mmap
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

LOADS: Any = vars(ForkingPickler)["loads"]
IOV_MAX = 1024  # buffers that one writing call may take


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
        began, words, arrays = time.thread_time(), io.BytesIO(), list[memoryview]()
        ForkingPickler(words, 5, True, lambda found: arrays.append(found.raw())).dump(message)
        sizes = [array.nbytes for array in arrays]
        self._connection.send((words.getvalue(), sizes))
        if any(sizes):
            memory = os.memfd_create("thinkdiff")
            try:
                write_all(memory, arrays)
                self._with_socket(lambda end: socket.send_fds(end, [b"\0"], [memory]))
            finally:
                os.close(memory)
        self.sent_seconds += time.thread_time() - began

    def receive(self) -> Any:
        """Wait for a message. Its arrays can be written to."""
        began = time.thread_time()
        words, sizes = self._connection.recv()
        whole = memoryview(bytearray())
        if any(sizes):
            _, (memory,), _, _ = self._with_socket(lambda end: socket.recv_fds(end, 1, 1))
            try:
                whole = memoryview(mmap.mmap(memory, sum(sizes), mmap.MAP_SHARED | mmap.MAP_POPULATE))
            finally:
                os.close(memory)
        ends = itertools.accumulate(sizes)
        message = LOADS(words, buffers=[whole[end - size : end] for size, end in zip(sizes, ends, strict=True)])
        self.received_seconds += time.thread_time() - began
        return message

    def waits(self, seconds: float | None) -> bool:
        """Whether there is a message, or the other end is gone, within so many seconds; None: as long as it takes."""
        return self._connection.poll(seconds)

    def _with_socket(self, use: Callable[[socket.socket], Any]) -> Any:
        end = socket.socket(fileno=self._connection.fileno())
        try:
            return use(end)
        finally:
            end.detach()


def write_all(memory: int, arrays: Sequence[memoryview]) -> None:
    """Writes arrays one behind the other."""
    left = deque(array for array in arrays if array.nbytes)
    while left:
        written = os.writev(memory, list(itertools.islice(left, IOV_MAX)))
        while left and written >= left[0].nbytes:
            written -= left.popleft().nbytes
        if written:
            left[0] = left[0][written:]
