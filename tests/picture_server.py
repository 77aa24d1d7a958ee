"""A real HTTP server on loopback that serves pictures, and misbehaves in every way that servers of pictures do.

    with PictureServer({"/a.jpg": Reply(body=data)}) as server: server.url("/a.jpg")
    python tests/picture_server.py --latency 0.1         10,000 pictures for the benchmark; prints its URL

A path has one reply or a list of them, one for each request in turn, the last one for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import io
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

How = Literal["send", "reset", "close", "silent", "stall", "short", "slow", "endless", "raw"]
TICK = 0.05


@dataclasses.dataclass(frozen=True)
class Reply:
    """What is answered, and how: `send` it whole, or fail in one of several ways."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "image/jpeg"),)
    how: How = "send"
    latency: float = 0.0

    def head(self, length: int | None) -> bytes:
        """Status line and headers; without a length the body is chunked."""
        size = ("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))
        lines = [f"HTTP/1.1 {self.status} X", *(f"{name}: {value}" for name, value in (*self.headers, size))]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


Routes = Mapping[str, Reply | Sequence[Reply]] | Callable[[str], Reply]


class PictureServer:
    """Serves `routes` in a thread of its own while the block runs. `seen` counts requests by path."""

    _server: asyncio.Server

    def __init__(self, routes: Routes, host: str = "127.0.0.1", port: int = 0) -> None:
        self.routes, self.host, self.port = routes, host, port
        self.seen: Counter[str] = Counter()
        self.headers: dict[str, str] = {}
        self.open = self.most_open = self.connections = 0
        self.alive: set[Connection] = set()

    def url(self, path: str) -> str:
        """The URL of a path."""
        return f"http://{self.host}:{self.port}{path}"

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def start() -> None:
            made = self._loop.create_server(lambda: Connection(self), self.host, self.port, backlog=1024)
            self._server = await made
            self.port = self._server.sockets[0].getsockname()[1]
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.create_task(start())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ready.wait(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(30)

    def _stop(self) -> None:
        self._server.close()
        for connection in self.alive:
            connection.transport.abort()
        self._loop.call_soon(self._loop.stop)

    def reply(self, path: str) -> Reply:
        """The reply to the next request of a path."""
        number = self.seen[path]
        self.seen[path] += 1
        if not isinstance(self.routes, Mapping):
            return self.routes(path)
        found = self.routes.get(path, Reply(status=404))
        return found if isinstance(found, Reply) else found[min(number, len(found) - 1)]


class Connection(asyncio.Protocol):
    """One connection, kept alive."""

    transport: asyncio.Transport

    def __init__(self, server: PictureServer) -> None:
        self.server, self.buffer = server, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections += 1
        self.server.alive.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.alive.discard(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            self.server.headers = dict(line.split(": ", 1) for line in lines)
            reply = self.server.reply(first.split(" ")[1])
            self.server.open += 1
            self.server.most_open = max(self.server.most_open, self.server.open)
            if reply.latency:
                asyncio.get_running_loop().call_later(reply.latency, self.answer, reply)
            else:
                self.answer(reply)

    def answer(self, reply: Reply) -> None:
        """Does what the reply says."""
        self.server.open -= 1
        if self.transport.is_closing():
            return
        write, body = self.transport.write, reply.body
        if reply.how == "send":
            write(reply.head(len(body)) + body)
        elif reply.how == "reset":
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.transport.abort()
        elif reply.how == "close":
            self.transport.close()
        elif reply.how == "stall":
            write(reply.head(len(body)) + body[: len(body) // 2])
        elif reply.how == "short":
            write(reply.head(len(body) + 100) + body)
            self.transport.close()
        elif reply.how == "raw":
            write(body)
            self.transport.close()
        elif reply.how == "slow":
            write(reply.head(len(body)))
            self.trickle(body)
        elif reply.how == "endless":
            write(reply.head(None))
            self.flood(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    def trickle(self, body: bytes) -> None:
        """A byte now and then."""
        if body and not self.transport.is_closing():
            self.transport.write(body[:1])
            asyncio.get_running_loop().call_later(TICK, self.trickle, body[1:])

    def flood(self, piece: bytes) -> None:
        """As much as the other side takes."""
        if not self.transport.is_closing():
            if self.transport.get_write_buffer_size() < 1 << 20:
                self.transport.write(piece)
            asyncio.get_running_loop().call_later(0.001, self.flood, piece)


def jpeg(number: int, side: int = 64) -> bytes:
    """A picture that differs from that of any other number."""
    from PIL import Image

    noise = random.Random(number).randbytes(side * side * 3 // 64)
    small = Image.frombytes("RGB", (side // 8, side // 8), noise[: 3 * (side // 8) ** 2])
    sink = io.BytesIO()
    small.resize((side, side)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def main() -> None:
    """Pictures `/<n>.jpg` after a latency; a share of them are faults, the same in every run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--faults", type=float, default=0.0, help="share of the pictures that have one")
    parser.add_argument("--side", type=int, default=256)
    arguments = parser.parse_args()
    bodies = [jpeg(number, arguments.side) for number in range(64)]
    faults: list[Reply] = [
        Reply(status=404), Reply(status=403), Reply(how="reset"), Reply(how="close"),
        Reply(body=bodies[0], how="short"),
        Reply(status=301, headers=(("Location", "http://169.254.169.254/"),)), Reply(b"<html>"),
        Reply(body=bodies[0][:600]), Reply(bodies[0], headers=(("X-Robots-Tag", "noai"),)), Reply(how="stall"),
        Reply(status=503), Reply(bodies[0][:80], how="slow"),
    ]  # fmt: skip

    def route(path: str) -> Reply:
        number = int(path.strip("/").removesuffix(".jpg"))
        rng = random.Random(number)
        latency = arguments.latency * rng.uniform(0.5, 1.5)
        if rng.random() < arguments.faults:
            return dataclasses.replace(rng.choice(faults), latency=latency)
        return Reply(bodies[number % len(bodies)], latency=latency)

    with PictureServer(route) as server:
        print(server.url(""), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
