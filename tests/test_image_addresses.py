"""Which URLs are asked and which addresses are connected to, against the standard library's own opinion."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address

import pytest
from yarl import URL

from thinkdiff.tasks.image_addresses import Unfetched, is_public, networks, vetted

REFUSED = {
    "file:///etc/passwd": "another scheme",
    "data:image/png;base64,iVBORw0KGgo=": "another scheme",
    "ftp://example.com/a.jpg": "another scheme",
    "javascript:alert(1)": "another scheme",
    "gopher://127.0.0.1:70/_": "another scheme",
    "": "not a URL",
    "a caption in the wrong column": "not a URL",
    "//example.com/a.jpg": "not a URL",
    "http:///a.jpg": "without a host|not a URL",
    "http://user:secret@example.com/a.jpg": "credentials",
    "http://user@example.com/a.jpg": "credentials",
    "http://example.com/a\nX-Header: b": "control characters",
    "http://example.com/\x00": "control characters",
    "http://exa\tmple.com/": "control characters",
    "http://example.com/" + "a" * 5000: "more than 4096 characters",
    "http://example.com:0/a.jpg": "without a port|not a URL",
    "http://example.com:99999/a.jpg": "not a URL",
    "http://[::1/a.jpg": "not a URL",
    "http://127.0.0.1/": "not public",
    "http://127.8.9.10:8080/": "not public",
    "http://0.0.0.0/": "not public",
    "http://10.1.2.3/": "not public",
    "http://172.31.255.255/": "not public",
    "http://192.168.0.1/": "not public",
    "http://169.254.169.254/latest/meta-data/": "not public",
    "http://168.63.129.16/": "not public",
    "http://100.100.100.200/": "not public",
    "http://192.0.0.192/": "not public",
    "http://224.0.0.251/": "not public",
    "http://255.255.255.255/": "not public",
    "http://[::1]/": "not public",
    "http://[::]/": "not public",
    "http://[fe80::1]/": "not public",
    "http://[fd00:ec2::254]/": "not public",
    "http://[ff02::1]/": "not public",
    "http://[::ffff:127.0.0.1]/": "not public",
    "http://[::ffff:8.8.8.8]/": "not public",
    "http://[::7f00:1]/": "not public",
    "http://[64:ff9b::10.0.0.1]/": "not public",
    "http://[64:ff9b:1::808:808]/": "not public",
    "http://[2002:7f00:1::]/": "not public",
    "http://[2001:0:53aa:64c:0:7fff:0:0]/": "not public",
    "http://[2001:db8::1]/": "not public",
    "http://2130706433/": "spelled as a number",
    "http://0x7f000001/": "spelled as a number",
    "http://0x7f.0.0.1/": "spelled as a number",
    "http://0177.0.0.1/": "spelled as a number",
    "http://127.1/": "spelled as a number",
    "http://127.0.0.1.5/": "spelled as a number",
    "http://256.0.0.1/": "spelled as a number",
    "http://8.8.8/": "spelled as a number",
    "http://①②⑦.⓪.⓪.①/": "not public|not a URL",
    "http://127。0。0。1/": "not public|not a URL",
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.items())
def test_url_that_must_not_be_asked_is_refused_with_its_reason(text: str, reason: str):
    with pytest.raises(Unfetched, match=reason):
        vetted(text, ())


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("http://example.com/a.jpg", "http://example.com/a.jpg"),
        (" https://example.com/a.jpg ", "https://example.com/a.jpg"),
        ("HTTP://EXAMPLE.com/A.jpg#top", "http://example.com/A.jpg"),
        ("http://example.com/two words.jpg?a=b c", "http://example.com/two%20words.jpg?a=b+c"),
        ("http://bücher.example/ü.jpg", "http://xn--bcher-kva.example/%C3%BC.jpg"),
        ("http://8.8.8.8/a.jpg", "http://8.8.8.8/a.jpg"),
        ("http://[2606:4700::1111]/a.jpg", "http://[2606:4700::1111]/a.jpg"),
        ("http://1.example/a", "http://1.example/a"),
    ],
)
def test_url_of_a_public_host_is_asked(text: str, asked: str):
    assert str(vetted(text, ())) == asked


def test_redirect_is_taken_from_where_it_came_and_vetted_anew():
    base = URL("https://example.com/a/b.jpg")
    assert str(vetted("../c.jpg", (), base)) == "https://example.com/c.jpg"
    assert str(vetted("//other.example/d", (), base)) == "https://other.example/d"
    for text in ("file:///etc/passwd", "http://127.0.0.1/", "//169.254.169.254/"):
        with pytest.raises(Unfetched):
            vetted(text, (), base)


def test_address_is_never_public_where_the_standard_library_says_it_is_not():
    rng = random.Random(0)
    fours = [IPv4Address(rng.getrandbits(32)) for _ in range(20_000)]
    sixes = [IPv6Address(rng.getrandbits(125) | (rng.choice((1, 1, 0, 7)) << 125)) for _ in range(20_000)]
    for address in (*fours, *sixes):
        if is_public(str(address)):
            assert address.is_global, address
            assert not address.is_multicast, address
            assert not address.is_reserved, address
    assert sum(is_public(str(address)) for address in fours) > 15_000
    assert sum(is_public(str(address)) for address in sixes) > 8_000


def test_translated_address_is_as_public_as_the_one_inside():
    assert is_public("64:ff9b::8.8.8.8")
    assert not is_public("64:ff9b::192.168.1.1")


def test_allowed_network_opens_itself_and_nothing_else():
    allowed = networks(("127.0.0.1/32", "fd00::/8"))
    assert is_public("127.0.0.1", allowed)
    assert is_public("fd12::1", allowed)
    assert not is_public("127.0.0.2", allowed)
    assert not is_public("::1", allowed)
    assert not is_public("::ffff:127.0.0.1", allowed)
    assert not is_public("no address", allowed)
