"""The client against real servers: rebinding, politeness, pauses, what is sent and what is heard."""

from __future__ import annotations

import asyncio
import email.utils
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from picture_server import PictureServer, Reply
from small_images import HASTY, execution

from thinkdiff.schemas.artifact import Fetching
from thinkdiff.tasks.image_addresses import Unfetched
from thinkdiff.tasks.image_client import ImageClient, opted_out, retry_after


class Answers(AbstractResolver):
    """A name server that gives its answers in turn, whatever the name; the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [ResolveResult(hostname=host, host=a, port=port, family=socket.AF_INET, proto=0, flags=0) for a in found]

    async def close(self) -> None: ...


def get(
    tmp_path: Path,
    *urls: str,
    fetching: Fetching = HASTY,
    resolver: AbstractResolver | None = None,
    honour_opt_out: bool = True,
    together: bool = False,
) -> list[bytes | str]:
    """The bodies of some URLs, or the reasons why not; one after the other, or all together."""

    async def keep(data: bytes) -> bytes:
        return data

    async def one(client: ImageClient, url: str) -> bytes | str:
        try:
            return await client.get(url, keep)
        except Unfetched as error:
            return str(error)

    async def all_of_them() -> list[bytes | str]:
        async with ImageClient(execution(tmp_path, fetching), 100_000, honour_opt_out, resolver) as client:
            if together:
                return list(await asyncio.gather(*(one(client, url) for url in urls)))
            return [await one(client, url) for url in urls]

    return asyncio.run(all_of_them())


NOT_PUBLIC = "the host is at an address that is not public"
ALONE = (("Connection", "close"),)


def test_rebound_name_is_refused_and_the_private_server_is_never_reached(tmp_path: Path):
    with (
        PictureServer(lambda path: Reply(b"public", headers=ALONE)) as public,
        PictureServer(lambda path: Reply(b"private"), "127.0.0.2", public.port) as private,
    ):
        resolver = Answers(["127.0.0.1"], ["127.0.0.2"])
        first, second = f"http://one.test:{public.port}/", f"http://two.test:{public.port}/"
        assert get(tmp_path, first, first, second, resolver=resolver) == [b"public", b"public", NOT_PUBLIC]
        assert resolver.asked == 2  # once a name: what was looked at is what is connected to
        assert private.connections == 0


def test_host_with_one_private_address_among_public_ones_is_refused(tmp_path: Path):
    with PictureServer(lambda path: Reply(b"public")) as server:
        url = f"http://mixed.test:{server.port}/"
        assert get(tmp_path, url, resolver=Answers(["127.0.0.1", "127.0.0.2"])) == [NOT_PUBLIC]
        assert server.connections == 0


def test_redirect_to_a_name_at_a_private_address_is_refused(tmp_path: Path):
    with PictureServer({"/": Reply(status=302, headers=(("Location", "http://inside.test/"),))}) as server:
        assert get(tmp_path, server.url("/"), resolver=Answers(["10.0.0.7"])) == [NOT_PUBLIC]


def test_last_gate_refuses_a_connection_whatever_was_resolved(tmp_path: Path):
    async def connect() -> None:
        async with ImageClient(execution(tmp_path), 1, True) as client:
            with pytest.raises(OSError, match="not public"):
                client._socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("169.254.169.254", 80)))

    asyncio.run(connect())


def test_request_says_who_we_are_and_brings_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    set_cookie = Reply(b"x", headers=(("Set-Cookie", "a=b; Path=/"),))
    with PictureServer({"/": set_cookie}) as server:
        agent = "thinkdiff-tests/1.0 (+https://example.org/contact)"
        fetching = HASTY.model_copy(update={"user_agent": agent})
        assert get(tmp_path, server.url("/"), server.url("/"), fetching=fetching) == [b"x", b"x"]
        assert server.headers["User-Agent"] == agent
        assert server.headers["Accept-Encoding"] == "identity"
        assert not {"Cookie", "Authorization", "Referer"} & server.headers.keys()


def test_one_host_gets_few_requests_together_and_the_others_are_not_held_up(tmp_path: Path):
    fetching = HASTY.model_copy(update={"per_host": 2, "concurrency": 8})
    with (
        PictureServer(lambda path: Reply(b"x", latency=0.05)) as slow,
        PictureServer(lambda path: Reply(b"y")) as other,
    ):
        urls = [slow.url(f"/{i}") for i in range(30)] + [other.url(f"/{i}") for i in range(30)]
        assert get(tmp_path, *urls, fetching=fetching, together=True) == [b"x"] * 30 + [b"y"] * 30
        assert slow.most_open == 2


def test_all_hosts_together_get_no_more_requests_than_asked_for(tmp_path: Path):
    fetching = HASTY.model_copy(update={"per_host": 8, "concurrency": 3})
    with PictureServer(lambda path: Reply(b"x", latency=0.02)) as server:
        assert get(tmp_path, *(server.url(f"/{i}") for i in range(30)), fetching=fetching, together=True)
        assert server.most_open == 3


def test_host_that_asks_for_a_pause_gets_it_for_all_its_rows(tmp_path: Path):
    asked = Reply(status=429, headers=(("Retry-After", "1"),))
    with PictureServer({"/a": [asked, Reply(b"a")], "/b": Reply(b"b")}) as server:
        began = time.monotonic()
        assert get(tmp_path, server.url("/a"), server.url("/b")) == [b"a", b"b"]
        assert time.monotonic() - began >= 1.0  # never less; how much more is the machine's business


def test_host_that_asks_for_too_long_a_pause_is_left_alone(tmp_path: Path):
    routes = {"/a": Reply(status=503, headers=(("Retry-After", "3600"),)), "/b": Reply(b"b")}
    with PictureServer(routes) as server:
        assert get(tmp_path, server.url("/a"), server.url("/b")) == ["HTTP 503", "HTTP 503"]
        assert (server.seen["/a"], server.seen["/b"]) == (1, 0)


def test_host_that_never_answers_is_given_up_and_its_rows_fail_alike(tmp_path: Path):
    fetching = HASTY.model_copy(update={"host_patience": 4, "retries": 1})
    with PictureServer(lambda path: Reply(how="close")) as server:
        found = get(tmp_path, *(server.url(f"/{i}") for i in range(50)), fetching=fetching)
        assert found == ["the connection broke"] * 50
        assert set(server.seen) == {"/0", "/1"}  # two attempts each


def test_passing_fault_is_tried_again_and_a_lasting_one_is_not(tmp_path: Path):
    with PictureServer({"/500": Reply(status=500), "/404": Reply(status=404)}) as server:
        assert get(tmp_path, server.url("/500"), server.url("/404")) == ["HTTP 500", "HTTP 404"]
        assert (server.seen["/500"], server.seen["/404"]) == (3, 1)


def test_body_is_not_read_past_the_limit(tmp_path: Path):
    with PictureServer({"/": Reply(how="endless")}) as server:
        assert get(tmp_path, server.url("/")) == ["more than 100000 bytes"]


def test_opt_out_is_heard_unless_the_spec_says_otherwise(tmp_path: Path):
    with PictureServer({"/": Reply(b"x", headers=(("X-Robots-Tag", "noai"),))}) as server:
        assert get(tmp_path, server.url("/")) == ["opted out (X-Robots-Tag: noai)"]
        assert get(tmp_path, server.url("/"), honour_opt_out=False) == [b"x"]


def test_hosts_are_forgotten_when_there_is_nothing_to_remember(tmp_path: Path):
    async def keep(data: bytes) -> bytes:
        return data

    async def remembered(port: int) -> int:
        async with ImageClient(execution(tmp_path), 1000, True, Answers(["127.0.0.1"])) as client:
            for name in range(20):
                await client.get(f"http://host-{name}.test:{port}/", keep)
            return len(client._hosts)

    with PictureServer(lambda path: Reply(b"x")) as server:
        assert asyncio.run(remembered(server.port)) == 0


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([], None),
        (["all"], None),
        (["noindex, nofollow"], None),
        (["NOAI"], "noai"),
        (["noindex,noimageai , max-snippet: 5"], "noimageai"),
        (["googlebot: noindex", "somebot: noai"], "noai"),
        (["unavailable_after: 25 Jun 2030 15:00:00 GMT"], None),
        (["noaim, xnoai"], None),
    ],
)
def test_opted_out_by_the_words_of_the_header(values: list[str], word: str | None):
    assert opted_out(values) == word


def test_retry_after_is_seconds_or_a_date():
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert retry_after("120") == 120
    assert 50 < (retry_after(in_a_minute) or 0) <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [retry_after(value) for value in (None, "", "soon", "-5", "1.5", "²")] == [None] * 6
