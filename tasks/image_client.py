"""Pictures by URL from strangers' servers: a URL in, the body's bytes or the reason why not out.

Polite: so many requests in all and to one host, pauses that grow and are drawn at random, `Retry-After` heard, a host
that has stopped answering given up, a truthful User-Agent, the opt-out of `X-Robots-Tag` heard whomever it addresses.
Wary: http and https only, each redirect vetted anew, a connection goes to the very address that was looked at, a body
is read up to a limit and never decompressed, no cookie, no proxy or password from the environment.

Why not img2dataset (1.47, proven on sets of billions; its tars are read as they are): tried on a local server, its
downloader stays with a body that drips or never ends, tries again at once, `Retry-After` or not, follows a redirect to
a private address and opens file: and data: URLs; it decodes in the process that downloads and begins a shard anew. It
honours opt-outs, as here, except those that name another robot.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import heapq
import itertools
import logging
import random
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from thinkdiff.schemas.artifact import Execution, Fetching
from thinkdiff.schemas.errors import EngineError
from thinkdiff.tasks.image_addresses import AddressRefused, Networks, Unfetched, must_be_public, networks, vetted

REDIRECTS = {301, 302, 303, 307, 308}
PASSING = {408, 425, 429, *range(500, 600)}
OPT_OUT = {"noai", "noimageai"}
DNS_SECONDS, IDLE_SECONDS = 60, 3
NO_NAME, NO_HOST, NO_CONNECTION = "the host's name was not resolved", "the host has no address", "no connection"
NO_ANSWER, BROKEN = "no answer in time", "the connection broke"
UNREACHED = {NO_NAME, NO_HOST, NO_CONNECTION, NO_ANSWER, BROKEN}
T = TypeVar("T")
log = logging.getLogger(__name__)


class Passing(Unfetched):
    """A fault that may pass. `after` is what the server asks us to wait; `silent`, that it did not answer at all."""

    def __init__(self, reason: str, after: float | None = None, silent: bool = False) -> None:
        super().__init__(reason)
        self.after, self.silent = after, silent


class PublicResolver(AbstractResolver):
    """Resolves names, and refuses a host of which any address is not public."""

    def __init__(self, inner: AbstractResolver, allowed: Networks) -> None:
        self.inner, self.allowed = inner, allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self.inner.resolve(host, port, family)
        for result in found:
            must_be_public(result["host"], self.allowed)
        return found

    async def close(self) -> None:
        await self.inner.close()


class Turns:
    """So many at a time; of those that wait the smallest number goes first: old rows are done before new ones."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    @contextlib.asynccontextmanager
    async def turn(self, number: int) -> AsyncIterator[None]:
        """Waits for a place and holds it while the block runs."""
        if self._free:
            self._free -= 1
        else:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (number, next(self._count), waiter))
            try:
                await waiter
            except asyncio.CancelledError:
                if not waiter.cancelled():
                    self._release()
                raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        while self._waiting:
            *_, waiter = heapq.heappop(self._waiting)
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1


class Host:
    """What is remembered of a host while rows wait for it."""

    def __init__(self, places: int) -> None:
        self.places = Turns(places)
        self.users, self.silence = 0, 0
        self.not_before = 0.0
        self.given_up: str | None = None

    async def wait(self) -> None:
        """Sits out the pause that the host asked for. Raises Unfetched when it is given up."""
        while (pause := self.not_before - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        if self.given_up:
            raise Unfetched(self.given_up)

    def note(self, fault: Passing, settings: Fetching) -> None:
        """Draws conclusions for the rows that wait for the same host; they fail for the same reason."""
        self.silence += fault.silent
        if self.silence >= settings.host_patience or (fault.after or 0) > settings.longest_pause:
            self.given_up = str(fault)
        elif fault.after:
            self.not_before = max(self.not_before, time.monotonic() + fault.after)

    def is_forgettable(self) -> bool:
        """Whether a newcomer knows as much."""
        return not (self.silence or self.given_up or self.not_before > time.monotonic())


class ImageClient:
    """Fetches pictures; use as an asynchronous context manager, one for each event loop."""

    def __init__(
        self, run: Execution, max_bytes: int, honour_opt_out: bool, resolver: AbstractResolver | None = None
    ) -> None:
        self.settings, self.max_bytes, self.honour_opt_out = run.fetching, max_bytes, honour_opt_out
        self.allowed = networks(run.allow_networks)
        self._inner = resolver
        self._places = Turns(run.fetching.concurrency)
        self._room = Turns(2 * run.fetching.concurrency)
        self._hosts: dict[tuple[str, int], Host] = {}

    async def __aenter__(self) -> Self:
        settings = self.settings
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=IDLE_SECONDS, ttl_dns_cache=DNS_SECONDS, socket_factory=self._socket,
            resolver=PublicResolver(self._inner or aiohttp.ThreadedResolver(), self.allowed),
        )  # fmt: skip
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=settings.total_seconds, connect=settings.connect_seconds, sock_read=settings.read_seconds
            ),
            headers={"User-Agent": settings.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False,
        )  # fmt: skip
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, text: str, use: Callable[[bytes], Awaitable[T]], number: int = 0) -> T:
        """What `use` makes of the bytes behind a URL; so many bodies may wait for it as there are requests under way.

        Smaller numbers go first. Raises Unfetched with the reason why there are no bytes.
        """
        url, redirects, tries = vetted(text, self.allowed), 0, 0
        while True:
            try:
                async with contextlib.AsyncExitStack() as room:
                    with self._host(url) as host:
                        async with host.places.turn(number):
                            await host.wait()
                            await room.enter_async_context(self._room.turn(number))
                            async with self._places.turn(number):
                                answer = await self._ask(url, host)
                    if isinstance(answer, bytes):
                        return await use(answer)
            except Passing as fault:
                tries += 1
                if tries > self.settings.retries:
                    raise Unfetched(str(fault)) from None
                if fault.after is None:
                    longest = min(self.settings.longest_pause, self.settings.backoff_seconds * 2 ** (tries - 1))
                    await asyncio.sleep(random.uniform(0, longest))
                continue
            redirects += 1
            if redirects > self.settings.redirects:
                raise Unfetched(f"more than {self.settings.redirects} redirects")
            url = vetted(answer, self.allowed, base=url)

    @contextlib.contextmanager
    def _host(self, url: URL) -> Iterator[Host]:
        """What is known of a URL's host; forgotten when nobody waits for it and there is nothing to remember."""
        name = (str(url.raw_host), int(url.port or 0))
        host = self._hosts.setdefault(name, Host(self.settings.per_host))
        host.users += 1
        try:
            yield host
        finally:
            host.users -= 1
            if not host.users and host.is_forgettable():
                self._hosts.pop(name, None)

    async def _ask(self, url: URL, host: Host) -> bytes | str:
        """One request: the body, or where a redirect points."""
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                host.silence = 0
                return await self._answer(response)
        except EngineError:
            raise
        except Exception as error:
            fault = error if isinstance(error, Unfetched) else fault_of(error)
            if isinstance(fault, Passing):
                host.note(fault, self.settings)
            raise fault from None

    async def _answer(self, response: aiohttp.ClientResponse) -> bytes | str:
        headers, status = response.headers, response.status
        if self.honour_opt_out and (word := opted_out(headers.getall("X-Robots-Tag", []))):
            raise Unfetched(f"opted out (X-Robots-Tag: {word})")
        if status in REDIRECTS:
            if location := headers.get("Location"):
                return location
            raise Unfetched(f"HTTP {status} without a Location")
        if status in PASSING:
            raise Passing(f"HTTP {status}", retry_after(headers.get("Retry-After")))
        if status != 200:
            raise Unfetched(f"HTTP {status}")
        if headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
            raise Unfetched("a compressed body")
        too_large = Unfetched(f"more than {self.max_bytes} bytes")
        if (response.content_length or 0) > self.max_bytes:
            raise too_large
        pieces, size = [], 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > self.max_bytes:
                raise too_large
            pieces.append(piece)
        if not size:
            raise Unfetched("an empty body")
        return b"".join(pieces)

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """The last gate: every connection, of a name or a literal address, passes here with its very address."""
        family, kind, protocol, _, address = info
        must_be_public(str(address[0]), self.allowed)
        try:
            return socket.socket(family, kind, protocol)
        except OSError as error:
            raise EngineError(
                f"fetch_images: found no room for another connection ({error.strerror}), expected it for "
                f"{self.settings.concurrency}. Raise `ulimit -n`, or lower run.fetching.concurrency."
            ) from error


def opted_out(values: list[str]) -> str | None:
    """The word of `X-Robots-Tag` by which a picture is kept from such use, whichever robot it names."""
    words = {word.strip().lower() for value in values for word in re.split("[,:]", value)}
    return min(words & OPT_OUT, default=None)


def retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After`, given as such or as a date; None when there is none that can be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def fault_of(error: Exception) -> Unfetched:
    """What went wrong, in words that are the same in every run, and whether it may pass."""
    cause = getattr(error, "os_error", None)
    if isinstance(cause, AddressRefused):
        return Unfetched(str(cause))
    match error:
        case aiohttp.ClientConnectorDNSError() if getattr(cause, "errno", None) == socket.EAI_AGAIN:
            return Passing(NO_NAME, silent=True)
        case aiohttp.ClientConnectorDNSError():
            return Unfetched(NO_HOST)
        case aiohttp.ClientSSLError():
            return Unfetched("no trusted TLS connection")
        case TimeoutError():
            return Passing(NO_ANSWER, silent=True)
        case aiohttp.ClientConnectorError():
            return Passing(NO_CONNECTION, silent=True)
        case aiohttp.ClientPayloadError():
            return Passing("the body broke off")
        case OSError() | aiohttp.ServerDisconnectedError():
            return Passing(BROKEN, silent=True)
        case aiohttp.InvalidURL() | UnicodeError():
            return Unfetched("not a URL")
        case aiohttp.ClientError():
            return Unfetched("not an HTTP answer")
    log.warning("fetch_images: found a %s in a request, expected none; its picture fails.", type(error).__name__)
    return Unfetched(f"could not be asked ({type(error).__name__})")
