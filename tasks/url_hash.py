"""The keyed hash of a URL by which captions are drawn: equal for URLs that mean the same file.

In: a column of URLs and a seed. Out: MurmurHash64A (Austin Appleby, public domain) of each normalised URL, so that a
draw depends on nothing but seed and URL. Nearly all URLs are normal already, which is found eight bytes at a time.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from thinkdiff.storage.caption_blocks import HIGH, Flags, Text, U, Words, spread, zero_bytes

M = U(0xC6A4A7935BD1E995)
R = U(47)
PARTS = re.compile(rb"([a-z]+)://([^/?#]*)([^#]*)", re.IGNORECASE | re.DOTALL)
DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}
HOST_WORDS = 8  # of a plain host at most


def normal_url(url: bytes) -> bytes:
    """A URL with scheme and host in lower case, without default port and fragment, an empty path as `/`.

    RFC 3986, 6.2.2.1 and 6.2.3. Anything that is no URL comes back as it is.
    """
    parts = PARTS.match(url)
    if parts is None:
        return url
    scheme, authority, rest = parts[1].lower(), parts[2], parts[3]
    user, at, host = authority.rpartition(b"@")
    host = host.lower().removesuffix(DEFAULT_PORTS.get(scheme, b":")).removesuffix(b":")
    rest = rest if rest.startswith(b"/") else b"/" + rest
    return scheme + b"://" + user + at + host + rest


def url_hashes(urls: Text, seed: int) -> Words:
    """(N,) uint64: the hash of each normalised URL."""
    hashes = murmur(urls, seed)
    odd = np.flatnonzero(~is_normal(urls))
    if len(odd):
        normal = Text.of(pa.array([normal_url(urls.bytes_of(row)) for row in odd.tolist()], pa.large_binary()))
        hashes[odd] = murmur(normal, seed)
    return hashes


def murmur(text: Text, seed: int) -> Words:
    """(N,) uint64: MurmurHash64A of each string."""
    length = text.end - text.start
    hashes = U(seed) ^ (length.astype(np.uint64) * M)
    order, state = np.zeros(0, np.int64), hashes[:0]
    for rows, word, past in text.words:
        if not len(order):
            order, state = rows, hashes[rows]
        word_mixed = word * M
        word_mixed ^= word_mixed >> R
        word_mixed *= M
        last = slice(len(rows) - len(past), len(rows))
        word_mixed[last] = np.where(
            length[rows[last]] & 7, word[last], word_mixed[last]
        )  # a part of a word is not mixed
        now = state[: len(rows)]
        now ^= word_mixed
        now *= M
    hashes[order] = state
    hashes = (hashes ^ (hashes >> R)) * M
    return hashes ^ (hashes >> R)


def is_normal(urls: Text) -> Flags:
    """Which URLs `normal_url` would surely leave as they are."""
    opening = urls.words_at(urls.start)
    https = opening == U(int.from_bytes(b"https://", "little"))
    http = (opening & U(0x00FFFFFFFFFFFFFF)) == U(int.from_bytes(b"http://", "little"))
    normal = https | http
    normal &= ~urls.flagged(lambda word: zero_bytes(word ^ spread(ord("#"))), 0)
    place = urls.start + np.where(https, 8, 7)
    open_, at = np.flatnonzero(normal), place
    for j in range(HOST_WORDS):
        word = urls.words_at(at[open_] + 8 * j)
        slash = zero_bytes(word ^ spread(ord("/")))
        first = slash & -slash
        before = HIGH & (first - U(1))  # the bytes in front of the first slash; all where there is none
        special = (outside(word, 0x2D, 0x39) & outside(word, 0x5B, 0x7E)) & before
        odd = special != 0
        if j == 0:
            odd |= (word & U(0xFF)) == U(ord("/"))  # no host
        normal[open_[odd]] = False
        open_ = open_[~odd & (slash == 0)]
        if not len(open_):
            break
    normal[open_] = False  # a host that is longer than plain ones are
    return normal & (urls.end - urls.start > 8)


def outside(word: Words, low: int, high: int) -> Words:
    """The high bit of every byte that is not from `low` to `high`, all below 0x80; also of every byte from 0x80 on."""
    seven = word & ~HIGH
    below = ~(seven + spread(0x80 - low)) & HIGH
    above = (seven + spread(0x7F - high)) & HIGH
    return below | above | (word & HIGH)
