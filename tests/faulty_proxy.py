"""An HTTP proxy on loopback that hands requests on to a real S3 server, and does one of them a wrong now and then.

    with FaultyProxy(server_url) as proxy, proxy.fault("reset", method="GET", path=r"features/c/1"): ...

The Host header is handed on as it came, so that a request's signature still holds. A fault strikes the requests whose
method and path fit (behind the path stands whose key has signed) and of which `when` says so, by their number and by
how often that very request has come before.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

How = Literal[
    "500",  # InternalError
    "503",  # SlowDown
    "expired",  # 403, ExpiredToken
    "skewed",  # 403, RequestTimeTooSkewed
    "unsigned",  # 403, SignatureDoesNotMatch
    "hang",  # no answer
    "reset",  # the connection is reset before the answer
    "cut",  # it is reset in mid-body
    "short",  # half a body and the end, under the length of the whole
    "shorter",  # half a body under its own length: an answer that looks right
    "flip",  # the answer's body has one byte inverted
    "flip sent",  # the request's body has one byte inverted on its way to the server
    "lost",  # the server does what it was told, and the connection is reset instead of its answer
]
When = Callable[[int, int], bool]
REFUSALS = {
    "500": (500, "InternalError"), "503": (503, "SlowDown"), "expired": (403, "ExpiredToken"),
    "skewed": (403, "RequestTimeTooSkewed"), "unsigned": (403, "SignatureDoesNotMatch"),
}  # fmt: skip
HOP = ("connection", "keep-alive", "expect", "transfer-encoding", "content-length")
PATIENCE = 30.0


def always(number: int, repeat: int) -> bool:
    """Every request that fits."""
    return True


def once_each(number: int, repeat: int) -> bool:
    """Every request that fits, when it comes for the first time."""
    return repeat == 0


@dataclass
class Fault:
    """What goes wrong in turn with which requests; `struck` counts how often it did."""

    hows: tuple[How, ...]
    method: str
    path: str
    when: When
    seen: Counter[str] = field(default_factory=Counter)
    struck: int = 0

    def strikes(self, method: str, path: str, span: str) -> How | None:
        """What goes wrong with this request."""
        if not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return None
        key = f"{method} {path} {span}"
        hit = self.when(self.seen.total(), self.seen[key])
        self.seen[key] += 1
        self.struck += hit
        return self.hows[(self.struck - 1) % len(self.hows)] if hit else None


class FaultyProxy(ThreadingHTTPServer):
    """Stands before the server at `upstream` while the block runs."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.upstream = urlsplit(upstream).netloc
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.faults: list[Fault] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    @contextlib.contextmanager
    def fault(self, *hows: How, method: str = ".*", path: str = "", when: When = once_each) -> Iterator[Fault]:
        """Does this wrong while the block runs."""
        fault = Fault(hows, method, path, when)
        with self.lock:
            self.faults.append(fault)
        try:
            yield fault
        finally:
            with self.lock:
                self.faults.remove(fault)

    def struck(self, method: str, path: str, span: str) -> How | None:
        """What goes wrong with a request."""
        with self.lock:
            return next((how for fault in self.faults if (how := fault.strikes(method, path, span))), None)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Closes without a farewell, so that a reset is one."""
        self.close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients leave when they have waited long enough."""


class Connection(BaseHTTPRequestHandler):
    """One client's connection, kept alive, with one to the server."""

    protocol_version = "HTTP/1.1"
    server: FaultyProxy  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.onward = http.client.HTTPConnection(self.server.upstream, timeout=PATIENCE)

    def finish(self) -> None:
        self.onward.close()
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def answer(self) -> None:
        """Hands one request on and its answer back, or does what a fault says."""
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        who = self.headers.get("Authorization", "").split(",")[0]
        how = self.server.struck(self.command, f"{self.path} {who}", self.headers.get("Range", ""))
        if how == "hang":
            self.server.closing.wait(PATIENCE)
        if how in ("reset", "hang"):
            return self.reset()
        if how in REFUSALS:
            status, code = REFUSALS[how]
            body = f"<Error><Code>{code}</Code><Message>a fault of the test</Message></Error>".encode()
            return self.send(status, [("Content-Type", "application/xml")], body, len(body))
        reply = self.ask(flipped(sent) if how == "flip sent" else sent)
        body, headers = reply.read(), reply.getheaders()
        length = len(body)
        if self.command == "HEAD":
            length = int(reply.getheader("Content-Length") or 0)
        if how == "lost":
            return self.reset()
        if how in ("cut", "short"):
            self.send(reply.status, headers, body[: length // 2], length)
            self.close_connection = True
            return self.reset() if how == "cut" else None
        if how == "shorter":
            body = body[: length // 2]
            length = len(body)
        self.send(reply.status, headers, flipped(body) if how == "flip" else body, length)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def ask(self, body: bytes) -> http.client.HTTPResponse:
        """The server's answer."""
        self.onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP:
                self.onward.putheader(name, value)
        self.onward.putheader("Content-Length", str(len(body)))
        self.onward.endheaders(body)
        return self.onward.getresponse()

    def send(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int) -> None:
        """An answer whose head says `length`, whatever the body holds."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")
        self.wfile.flush()

    def reset(self) -> None:
        """Ends the connection with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


def flipped(data: bytes) -> bytes:
    """The bytes with the one in the middle inverted."""
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 1]) + data[middle + 1 :]
