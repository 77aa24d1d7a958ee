"""A few processes that decode untrusted pictures, so that a crash or a runaway costs one picture and nothing else.

In: a picture's bytes. Out: the picture as it is kept, or the reason why not. A process holds up to DEPTH pictures and
answers one after the other; when it dies, the one in hand is the culprit, and the others go to its successor. Its
answers are plain lengths and numbers and are checked: a picture that takes the process over gains a row of the index.
(A pool of `multiprocessing`, or pebble's, would read a pickle from it.)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from thinkdiff.schemas.artifact import Fetching
from thinkdiff.schemas.errors import EngineError
from thinkdiff.tasks.image_child import HEAD, KEPT, LENGTH, MADE, REFUSED
from thinkdiff.tasks.pictures import FORMATS, Demands, Picture, PictureRefused, printable

DEPTH = 4
MAX_ANSWER = 1 << 29
PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
CHILD = (sys.executable, "-m", "thinkdiff.tasks.image_child")


@dataclasses.dataclass(slots=True)
class Job:
    """A picture and who waits for it."""

    data: bytes
    answer: asyncio.Future[Picture]


class ImagePool:
    """Decoding processes; use as an asynchronous context manager."""

    def __init__(self, demands: Demands, fetching: Fetching, child: Sequence[str] = CHILD) -> None:
        self.count = fetching.decoders or len(os.sched_getaffinity(0))
        self.seconds = fetching.decode_seconds
        limits = {"memory": fetching.decode_memory, "seconds": fetching.decode_seconds}
        self._command = (*child, json.dumps(limits | {"demands": dataclasses.asdict(demands)}))
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._broken: EngineError | None = None

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self.count)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def prepare(self, data: bytes) -> Picture:
        """The picture as it is kept. Raises PictureRefused with the reason, EngineError when nothing decodes."""
        if self._broken:
            raise self._broken
        job = Job(data, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(job)
        return await job.answer

    async def _work(self) -> None:
        """Keeps one process alive and fed."""
        flight: deque[Job] = deque()
        try:
            while True:
                process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
                    env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
                )  # fmt: skip
                line = Line(process, flight, self.seconds)
                try:
                    await line.serve(self._queue)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
                if flight:
                    settle(flight.popleft(), PictureRefused(line.reason()))
        except (EngineError, OSError) as error:
            self._broken = error if isinstance(error, EngineError) else cannot_start(error)
            while flight or not self._queue.empty():
                settle(flight.popleft() if flight else self._queue.get_nowait(), self._broken)


def cannot_start(error: OSError) -> EngineError:
    """The sentence for a machine that starts no process."""
    return EngineError(
        f"picture decoder: found that no process can be started ({error}), expected one. Free memory, or lower "
        "run.fetching.decoders."
    )


class Line:
    """One process and the pictures it has been given, the one in hand first."""

    def __init__(self, process: asyncio.subprocess.Process, flight: deque[Job], seconds: float) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.flight, self.seconds = process, flight, seconds
        self.input, self.output = process.stdin, process.stdout
        self._room = asyncio.Semaphore(DEPTH - len(flight))
        self._since, self._late = 0.0, False

    async def serve(self, queue: asyncio.Queue[Job]) -> None:
        """Feeds the process and hands its answers out until it dies. Raises EngineError when it does not start."""
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._ready()
            tasks = [asyncio.create_task(self._send(queue)), asyncio.create_task(self._watch())]
            while await self._receive():
                self._room.release()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def reason(self) -> str:
        """Why the picture in hand was the last one of its process."""
        if self._late or self.process.returncode == -signal.SIGXCPU:
            return f"took more than {self.seconds:g} s to decode"
        return "crashed its decoder"

    async def _ready(self) -> None:
        try:
            await self.output.readexactly(HEAD.size)
        except asyncio.IncompleteReadError:
            raise EngineError(
                f"picture decoder: found exit code {await self.process.wait()} at its start, expected it to wait for "
                "pictures. Nothing can be decoded; give it more room (run.fetching.decode_memory), or run "
                f"`python -m {CHILD[-1]}` to see why."
            ) from None

    async def _send(self, queue: asyncio.Queue[Job]) -> None:
        for job in list(self.flight):
            await self._write(job)
        while True:
            await self._room.acquire()
            job = await queue.get()
            if not self.flight:
                self._since = asyncio.get_running_loop().time()
            self.flight.append(job)
            await self._write(job)

    async def _write(self, job: Job) -> None:
        self.input.writelines((LENGTH.pack(len(job.data)), job.data))
        await self.input.drain()

    async def _receive(self) -> bool:
        """Hands one answer out; False when it is none that an honest process gives."""
        status, width, height, length = HEAD.unpack(await self.output.readexactly(HEAD.size))
        if length > MAX_ANSWER or not self.flight:
            return False
        body = await self.output.readexactly(length)
        job = self.flight[0]
        if status == KEPT and (kind := body.decode("ascii", "replace")) in FORMATS.values():
            answer: Picture | PictureRefused = Picture(job.data, width, height, kind)
        elif status == MADE:
            answer = Picture(body, width, height, "jpg")
        elif status == REFUSED:
            answer = PictureRefused(printable(body.decode("ascii", "replace")))
        else:
            return False
        self.flight.popleft()
        self._since = asyncio.get_running_loop().time()
        settle(job, answer)
        return True

    async def _watch(self) -> None:
        """Ends the process when the picture in hand takes too long by the clock; the kernel sees to processor time."""
        loop, self._since = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(min(self.seconds / 4, 1.0))
            if self.flight and loop.time() - self._since > self.seconds:
                self._late = True
                self.process.kill()


def settle(job: Job, answer: Picture | Exception) -> None:
    """Answers a job, unless nobody waits any more."""
    if job.answer.done():
        return
    if isinstance(answer, Picture):
        job.answer.set_result(answer)
    else:
        job.answer.set_exception(answer)
