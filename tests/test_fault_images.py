"""Hostile and broken URLs, answers and pictures through the whole stage: each is a row with its own outcome.

One run takes them all together, from a real server, so that none can stop the stage, escape or push another aside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hostile_images import pictures, rgb, saved
from picture_server import PictureServer, Reply
from small_images import captions_of, execution, fetch, rows_by_caption

from thinkdiff.schemas.images import ImageSpec
from thinkdiff.storage.image_shards import IndexRow
from thinkdiff.storage.root import Folder

GOOD = saved(rgb(), "JPEG", quality=90)
MAX_BYTES = 300_000


def to(where: str, status: int = 302) -> Reply:
    """A redirect."""
    return Reply(status=status, headers=(("Location", where),))


def tagged(value: str) -> Reply:
    """A picture with an X-Robots-Tag."""
    return Reply(GOOD, headers=(("X-Robots-Tag", value),))


# path: what the server does, and the reason in the index ("" for a picture that is fetched)
ANSWERS: dict[str, tuple[Reply | list[Reply], str]] = {
    "/plain": (Reply(GOOD), ""),
    "/wrong-type": (Reply(GOOD, headers=(("Content-Type", "text/html"),)), ""),
    "/no-type": (Reply(GOOD, headers=()), ""),
    "/404": (Reply(status=404), "HTTP 404"),
    "/410": (Reply(status=410), "HTTP 410"),
    "/403": (Reply(status=403), "HTTP 403"),
    "/401": (Reply(status=401), "HTTP 401"),
    "/204": (Reply(status=204), "HTTP 204"),
    "/206": (Reply(GOOD[:100], 206), "HTTP 206"),
    "/304": (Reply(status=304), "HTTP 304"),
    "/500": (Reply(status=500), "HTTP 500"),
    "/503-then-good": ([Reply(status=503), Reply(status=502), Reply(GOOD)], ""),
    "/503-too-long": ([Reply(status=503)] * 3 + [Reply(GOOD)], "HTTP 503"),
    "/408-then-good": ([Reply(status=408), Reply(GOOD)], ""),
    "/425-then-good": ([Reply(status=425), Reply(GOOD)], ""),
    "/429-then-good": ([Reply(status=429, headers=(("Retry-After", "0"),)), Reply(GOOD)], ""),
    "/429-junk-then-good": ([Reply(status=429, headers=(("Retry-After", "soon"),)), Reply(GOOD)], ""),
    "/reset": (Reply(how="reset"), "the connection broke"),
    "/reset-then-good": ([Reply(how="reset"), Reply(GOOD)], ""),
    "/closed": (Reply(how="close"), "the connection broke"),
    "/silent": (Reply(how="silent"), "no answer in time"),
    "/stall": (Reply(GOOD, how="stall"), "no answer in time"),
    "/stall-then-good": ([Reply(GOOD, how="stall"), Reply(GOOD)], ""),
    "/drip": (Reply(GOOD, how="slow"), "no answer in time"),
    "/short": (Reply(GOOD, how="short"), "the body broke off"),
    "/no-http": (Reply(b"SSH-2.0-OpenSSH_9.2\r\n", how="raw"), "not an HTTP answer"),
    "/half-http": (Reply(b"HTTP/1.1 200 OK\r\nContent-Le", how="raw"), "the connection broke|not an HTTP answer"),
    "/two-lengths": (
        Reply(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 9\r\n\r\nabc", how="raw"),
        "not an HTTP answer|the body broke off",
    ),
    "/long-header": (Reply(GOOD, headers=(("X-A", "a" * 100_000),)), "not an HTTP answer"),
    "/many-headers": (Reply(GOOD, headers=tuple((f"X-{i}", "a") for i in range(5000))), "not an HTTP answer"),
    "/endless": (Reply(how="endless"), f"more than {MAX_BYTES} bytes"),
    "/too-large": (Reply(bytes(MAX_BYTES + 1)), f"more than {MAX_BYTES} bytes"),
    "/claims-too-large": (Reply(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000000\r\n\r\n", how="raw"), "more than"),
    "/empty": (Reply(), "an empty body"),
    "/gzip": (Reply(GOOD, headers=(("Content-Encoding", "gzip"),)), "a compressed body"),
    "/brotli": (Reply(GOOD, headers=(("Content-Encoding", "br"),)), "a compressed body"),
    "/moved": (to("plain", 301), ""),
    "/moved-often": (to("/moved-1", 307), ""),
    "/moved-1": (to("/moved-2", 308), ""),
    "/moved-2": (to("/plain", 303), ""),
    "/loop": (to("/loop"), "more than 5 redirects"),
    "/nowhere": (Reply(status=302), "HTTP 302 without a Location"),
    "/to-file": (to("file:///etc/passwd"), "another scheme"),
    "/to-data": (to("data:image/png;base64,AAAA"), "another scheme"),
    "/to-metadata": (to("http://169.254.169.254/latest/"), "not public"),
    "/to-private": (to("http://192.168.1.1/"), "not public"),
    "/to-loopback": (to("http://127.0.0.2/"), "not public"),
    "/to-mapped": (to("http://[::ffff:127.0.0.1]/"), "not public"),
    "/to-number": (to("http://2130706433/"), "spelled as a number"),
    "/to-credentials": (to("http://a:b@127.0.0.1/"), "credentials"),
    "/to-junk": (to("http://[/"), "not a URL"),
    "/noai": (tagged("noai"), "opted out .X-Robots-Tag: noai."),
    "/noimageai": (tagged("noindex, NoImageAI"), "opted out .X-Robots-Tag: noimageai."),
    "/noai-prefixed": (tagged("otherbot: noindex, noai"), "opted out .X-Robots-Tag: noai."),
    "/noai-redirect": (Reply(status=302, headers=(("Location", "/plain"), ("X-Robots-Tag", "noai"))), "opted out"),
    "/noindex": (tagged("noindex, nofollow"), ""),
}
URLS = {
    "file:///etc/passwd": "another scheme",
    "data:image/png;base64,AAAA": "another scheme",
    "a caption in the wrong column": "not a URL",
    "http://user:secret@127.0.0.1/": "credentials",
    "http://127.0.0.1/\r\nHost: evil": "control characters",
    "http://127.0.0.2/": "not public",
    "http://10.0.0.1/": "not public",
    "http://169.254.169.254/": "not public",
    "http://[::1]/": "not public",
    "http://0x7f000001/": "spelled as a number",
    "http://127.0.0.1:1/": "no connection",
    "http://no-such-host.invalid/": "the host has no address|was not resolved|no answer in time",
    "http://" + "a" * 300 + ".example/": "not a URL|the host has no address|was not resolved",
    "http://\ud7ff\u202e.example/": "not a URL|the host has no address|was not resolved|no answer in time",
}
PICTURES = pictures()
CASES = [*URLS, *ANSWERS, *PICTURES]


def expected(case: str) -> str:
    """The reason that a case must have, "" for none."""
    return URLS.get(case) or (ANSWERS[case][1] if case in ANSWERS else PICTURES.get(case, (b"", ""))[1])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, IndexRow]]:
    """The index of one run over all cases."""
    tmp_path = tmp_path_factory.mktemp("fault")
    routes = {path: answer for path, (answer, _) in ANSWERS.items()}
    routes |= {f"/picture/{name}": Reply(data) for name, (data, _) in PICTURES.items()}
    with PictureServer(routes) as server:
        urls = [case if case in URLS else server.url(case if case in ANSWERS else f"/picture/{case}") for case in CASES]
        captions = captions_of(Folder(str(tmp_path / "captions")), urls)
        spec = ImageSpec(by_url=True, shard_size=40, max_bytes=MAX_BYTES)
        images = fetch(Folder(str(tmp_path / "images")), captions, spec, execution(tmp_path))
        yield rows_by_caption(images)


def test_every_case_is_a_row_of_the_index(rows: dict[int, IndexRow]):
    assert len(CASES) >= 100
    assert sorted(rows) == list(range(len(CASES)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case)[:40])
def test_case_has_its_outcome(rows: dict[int, IndexRow], case: str):
    row, reason = rows[CASES.index(case)], expected(case)
    if reason:
        assert row.status == "failed"
        assert re.search(reason, str(row.reason)), row.reason
    else:
        assert (row.status, row.reason) == ("ok", None)
        assert min(row.width or 0, row.height or 0) >= 16
