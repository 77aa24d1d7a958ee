"""The requests that carry the bytes of an S3 bucket, through obstore, at a fraction of s3fs's processor time.

In: keys below a bucket. Out: bytes, and whether a conditional PUT has won. Endpoint, region and credentials are those
that botocore finds (variables, profiles, roles), so that both clients speak to the same place. It knows no artifact.

`THINKDIFF_S3_CLIENT=s3fs` leaves all requests to s3fs. So do a configuration of fsspec's own for s3, a place whose
region only AWS knows, and a process forked from one that has used obstore, whose threads a fork does not copy.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import botocore.session
import fsspec
import fsspec.config
import obstore
from botocore.credentials import Credentials, RefreshableCredentials
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError
from obstore.store import S3Store

from thinkdiff.schemas.errors import SpecError
from thinkdiff.storage.disk import Octets

CLIENT, PATIENCE = "THINKDIFF_S3_CLIENT", "THINKDIFF_S3_TIMEOUT"
REQUESTS_AT_ONCE = 32
SLOWEST = 1 << 19  # bytes a second below which an upload is given up
PART = 1 << 26
PAUSES = (0.2, 1.0)  # seconds before a request is made again
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
Settings = tuple[tuple[str, str], ...]
T = TypeVar("T")
R = TypeVar("R")
_threads_of: int | None = None  # the process that has obstore's


class Site(NamedTuple):
    """Where a bucket is and who asks; endpoint is None for AWS."""

    region: str
    endpoint: str | None
    credentials: Credentials | None


class Bucket:
    """The objects of one bucket. Raises FileNotFoundError, and obstore's BaseError for what the store refuses."""

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, key: str) -> bytes:
        """All bytes of an object."""
        return self._ask(lambda store: bytes(obstore.get(store, key).bytes()))

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of an object, fewer where it ends before."""
        return bytes(self._range(key, start, end))

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """`read_range` of many (key, start, end), several at a time."""
        return list(at_once(lambda wanted: self.read_range(*wanted), ranges))

    def each_range(self, ranges: Sequence[tuple[str, int, int]], act: Callable[[int, Any], object]) -> None:
        """Calls `act` with the number and a view of the bytes of each (key, start, end), in several threads."""

        def one(place: int) -> None:
            act(place, self._range(*ranges[place]))

        for _ in at_once(one, range(len(ranges))):
            pass

    def _range(self, key: str, start: int, end: int) -> bytes | obstore.Bytes:
        if start >= end:
            return b""
        try:
            return self._ask(lambda store: obstore.get_range(store, key, start=start, end=end))
        except BaseError as error:
            if error_code(error) != "InvalidRange":
                raise
            return b""

    def write(self, key: str, data: Octets) -> None:
        """Replaces an object, in several parts when it is large."""
        self._ask(lambda store: obstore.put(store, key, octets(data), chunk_size=PART), upload_seconds(len(data)))

    def create(self, key: str, data: Octets) -> bool:
        """Writes an object by `If-None-Match: *`; False if there is one, be it our own whose answer was lost."""
        try:
            self._ask(lambda store: obstore.put(store, key, octets(data), mode="create"), upload_seconds(len(data)))
        except AlreadyExistsError:
            return False
        return True

    def _ask(self, request: Callable[[S3Store], T], seconds: int = 0) -> T:
        """A request's answer; what obstore gives up at once is tried again, with expired credentials looked up anew."""
        for pause in PAUSES:
            try:
                return request(client(settings(), self.name, seconds))
            except BaseError as error:
                if not passing(error):
                    raise
                if error_code(error) in EXPIRED:
                    site.cache_clear()
                    client.cache_clear()
            time.sleep(pause)
        return request(client(settings(), self.name, seconds))


def at_once(act: Callable[[R], T], requests: Sequence[R]) -> Iterator[T]:
    """The results of requests, in their order, several being under way at a time."""
    if len(requests) < 2:
        yield from map(act, requests)
        return
    pool = ThreadPoolExecutor(min(REQUESTS_AT_ONCE, len(requests)))
    try:
        yield from pool.map(act, requests)
    finally:
        pool.shutdown(cancel_futures=True)


def bucket_of(uri: str) -> Bucket | None:
    """The bucket of an `s3://` URI for obstore; None where s3fs is to be asked.

    Raises SpecError when THINKDIFF_S3_CLIENT names neither.
    """
    chosen, name = os.environ.get(CLIENT, "obstore"), uri.removeprefix("s3://").split("/", 1)[0]
    if chosen not in ("obstore", "s3fs"):
        raise SpecError(f"{CLIENT}: found {chosen!r}, expected obstore or s3fs.")
    forked = _threads_of not in (None, os.getpid())
    if chosen == "s3fs" or forked or "s3" in fsspec.config.conf or name.startswith("arn:"):
        return None
    return Bucket(name) if site(settings()) else None


def settings() -> Settings:
    """The variables that say where S3 is and who asks: clients are made anew when they change."""
    return tuple((name, value) for name, value in os.environ.items() if name.startswith("AWS_") or name == PATIENCE)


@functools.lru_cache(maxsize=8)
def site(settings: Settings) -> Site | None:
    """Where S3 is by these settings and botocore's files; None when the region is not known."""
    session = botocore.session.Session()
    region = session.get_config_variable("region")
    url = session.create_client("s3", region_name=region or "us-east-1").meta.endpoint_url
    endpoint = None if ".amazonaws.com" in url else url
    return Site(region or "us-east-1", endpoint, session.get_credentials()) if region or endpoint else None


@functools.lru_cache(maxsize=64)
def client(settings: Settings, name: str, seconds: int) -> S3Store:
    """The client of a bucket; seconds: how long a whole request may take, 0 for as long as bytes come."""
    global _threads_of
    _threads_of = os.getpid()
    found = site(settings)
    assert found is not None
    credentials = found.credentials

    def current() -> dict[str, Any]:
        assert credentials is not None
        frozen = credentials.get_frozen_credentials()
        end = credentials._expiry_time if isinstance(credentials, RefreshableCredentials) else None
        keys = {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key, "token": frozen.token}
        return {**keys, "expires_at": end}

    waits = {"timeout": seconds} if seconds else {"timeout": 86_400, "read_timeout": patience()}
    waits |= {"connect_timeout": min(patience(), 10)}
    options: dict[str, Any] = {"credential_provider": current} if credentials else {"skip_signature": True}
    options["checksum_algorithm"] = "SHA256"  # the server refuses what was altered on its way
    if found.endpoint:
        options["endpoint"] = found.endpoint
    http: Any = {"allow_http": True} | {what: timedelta(seconds=long) for what, long in waits.items()}
    return S3Store(name, region=found.region, client_options=http, **options)


def octets(data: Octets) -> memoryview:
    """The bytes as obstore takes them; of numbers of another type it would send one by one."""
    return memoryview(data).cast("B")


def upload_seconds(size: int) -> int:
    """How long an upload of that many bytes may take: a power of two, so that there are few clients."""
    return 1 << (patience() + size // SLOWEST).bit_length()


def patience() -> int:
    """Seconds without an answer after which a request is given up."""
    found = os.environ.get(PATIENCE, "60")
    if not found.isdecimal() or not int(found):
        raise SpecError(f"{PATIENCE}: found {found!r}, expected a whole number of seconds.")
    return int(found)


def error_code(error: BaseException) -> str:
    """The S3 error code that the server gave, "" when there is none."""
    found = re.search(r"<Code>(\w+)</Code>", str(error))
    return found[1] if found else ""


def passing(error: BaseError) -> bool:
    """Whether a request may do better when it is made again.

    obstore tries again itself where it may, and says so; not after a PUT without an answer, nor within a body.
    """
    if error_code(error) in (*EXPIRED, "BadDigest", "XAmzContentSHA256Mismatch"):
        return True
    return isinstance(error, GenericError) and not re.search(r"after \d+ retries|status code: 4\d\d", brief(error))


def brief(error: BaseException) -> str:
    """What an error says, without obstore's own structures."""
    return str(error).split("\n\nDebug source")[0]


def reason(error: BaseException) -> str:
    """What has happened in a line."""
    said = re.search(r"<Message>(.*?)</Message>", str(error))
    code = error_code(error)
    return f"{code}: {said[1]}" if said and code else brief(error)


@functools.lru_cache(maxsize=8)
def filesystem(scheme: str, process: int, settings: Settings) -> Any:
    """The fsspec filesystem of a scheme: one for each process, and for S3 one for its settings."""
    if scheme != "s3":
        return fsspec.filesystem(scheme)
    from botocore.exceptions import FlexibleChecksumError
    from s3fs.core import add_retryable_error

    add_retryable_error(FlexibleChecksumError)  # bytes that were altered on their way
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if "config_kwargs" not in fsspec.config.conf.get("s3", {}):
        options["config_kwargs"] = {"read_timeout": patience(), "connect_timeout": min(patience(), 10)}
    return fsspec.filesystem(scheme, **options)
