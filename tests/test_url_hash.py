"""The keyed URL hash: MurmurHash64A as published, of URLs that mean the same as one."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkdiff.storage.caption_blocks import Text
from thinkdiff.tasks import url_hash
from thinkdiff.tasks.url_hash import normal_url, url_hashes

MASK = 2**64 - 1
M = 0xC6A4A7935BD1E995


def plain_murmur(data: bytes, seed: int) -> int:
    """MurmurHash64A, byte by byte."""
    h = seed ^ (len(data) * M & MASK)
    whole = len(data) // 8 * 8
    for at in range(0, whole, 8):
        k = int.from_bytes(data[at : at + 8], "little") * M & MASK
        k = (k ^ (k >> 47)) * M & MASK
        h = (h ^ k) * M & MASK
    if data[whole:]:
        h = (h ^ int.from_bytes(data[whole:], "little")) * M & MASK
    h = (h ^ (h >> 47)) * M & MASK
    return h ^ (h >> 47)


def column(strings: list[bytes]) -> Text:
    return Text.of(pa.array(strings, pa.large_binary()))


def murmur(strings: list[bytes], seed: int) -> list[int]:
    text = column(strings)
    return url_hash.murmur(text.data, text.start, text.end, np.uint64(seed)).tolist()


def is_normal(strings: list[bytes]) -> list[bool]:
    text = column(strings)
    return url_hash.is_normal(text.data, text.start, text.end).tolist()


def test_murmur_has_the_published_verification_value():
    # SMHasher: the hash, seeded 0, of the hashes of {}, {0}, {0, 1}, ... with seeds 256, 255, 254, ...
    hashes = b"".join(
        murmur([bytes(range(n))], 256 - n)[0].to_bytes(8, "little") for n in range(256)
    )  # fmt: skip
    assert murmur([hashes], 0)[0] & 0xFFFFFFFF == 0x1F0D3804


@given(st.lists(st.binary(max_size=70)), st.integers(0, MASK))
def test_murmur_of_a_column_is_that_of_each_string(strings: list[bytes], seed: int):
    assert murmur(strings, seed) == [plain_murmur(s, seed) for s in strings]


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://a.example/x", "http://a.example/x"),
        ("HTTP://A.Example/X?Y#z", "http://a.example/X?Y"),
        ("http://a.example", "http://a.example/"),
        ("http://a.example?q", "http://a.example/?q"),
        ("http://a.example#f", "http://a.example/"),
        ("http://a.example:80/x", "http://a.example/x"),
        ("https://a.example:443/x", "https://a.example/x"),
        ("https://a.example:80/x", "https://a.example:80/x"),
        ("http://a.example:8080/x", "http://a.example:8080/x"),
        ("http://a.example:/x", "http://a.example/x"),
        ("http://User@A.example/x", "http://User@a.example/x"),
        ("http://a.example/%7Ex", "http://a.example/%7Ex"),
        ("http://", "http:///"),
        ("http:///x", "http:///x"),
        ("no url", "no url"),
    ],
)
def test_normal_url_keeps_what_matters(url: str, normal: str):
    assert normal_url(url.encode()).decode() == normal
    assert normal_url(normal.encode()).decode() == normal
    assert url_hashes(column([url.encode()]), 5).tolist() == [plain_murmur(normal.encode(), 5)]


HOSTS = st.text("abcXYZ019.-_:@/?#%[]\x7fé", max_size=30)


@given(st.lists(st.builds("{}://{}{}".format, st.sampled_from(["http", "https", "HTTP"]), HOSTS, HOSTS)))
def test_hash_of_a_column_is_that_of_each_normal_url(urls: list[str]):
    data = [url.encode() for url in urls]
    assert url_hashes(column(data), 7).tolist() == [plain_murmur(normal_url(url), 7) for url in data]
    for url, sure in zip(data, is_normal(data), strict=True):
        assert not sure or normal_url(url) == url


def test_usual_urls_are_normal_at_a_glance():
    usual = [b"https://i.example.com/a/B/1.jpg?x=%20", b"http://farm4.static_x.example/1_2.jpg", b"http://x/"]
    assert all(is_normal(usual))
    assert all(re.fullmatch(rb"https?://[a-z0-9._-]+/[^#]*", url) for url in usual)
