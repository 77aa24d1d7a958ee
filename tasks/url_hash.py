"""The keyed hash of a URL by which captions are drawn: equal for URLs that mean the same file.

In: a column of URLs and a seed. Out: MurmurHash64A (Austin Appleby, public domain) of each normalised URL, so that a
draw depends on nothing but seed and URL. Nearly all URLs are normal already, which a compiled loop sees.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thinkdiff.storage.caption_blocks import Text
from thinkdiff.storage.caption_scan import Bytes, Flags, Places, compiled

Hashes = npt.NDArray[np.uint64]
M = np.uint64(0xC6A4A7935BD1E995)
R = np.uint64(47)
PARTS = re.compile(rb"([a-z]+)://([^/?#]*)([^#]*)", re.IGNORECASE | re.DOTALL)
DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


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


def url_hashes(urls: Text, seed: int) -> Hashes:
    """(N,) uint64: the hash of each normalised URL."""
    hashes = murmur(urls.data, urls.start, urls.end, np.uint64(seed))
    odd = np.flatnonzero(~is_normal(urls.data, urls.start, urls.end))
    if len(odd):
        normal = Text.of(pa.array([normal_url(urls.bytes_of(row)) for row in odd.tolist()], pa.large_binary()))
        hashes[odd] = murmur(normal.data, normal.start, normal.end, np.uint64(seed))
    return hashes


@compiled
def murmur(data: Bytes, start: Places, end: Places, seed: np.uint64) -> Hashes:
    """(N,) MurmurHash64A of each range of bytes."""
    hashes = np.empty(len(start), np.uint64)
    for row in range(len(start)):
        at, length = start[row], end[row] - start[row]
        state = seed ^ (np.uint64(length) * M)
        for _ in range(length >> 3):
            word = np.uint64(0)
            for place in range(8):
                word |= np.uint64(data[at + place]) << np.uint64(8 * place)
            word *= M
            word ^= word >> R
            state = (state ^ (word * M)) * M
            at += 8
        if length & 7:
            word = np.uint64(0)
            for place in range(length & 7):
                word |= np.uint64(data[at + place]) << np.uint64(8 * place)
            state = (state ^ word) * M
        state = (state ^ (state >> R)) * M
        hashes[row] = state ^ (state >> R)
    return hashes


@compiled
def is_normal(data: Bytes, start: Places, end: Places) -> Flags:
    """(N,) which URLs `normal_url` would surely leave as they are: http(s), a plain host, a path, no fragment."""
    normal = np.zeros(len(start), np.bool_)
    for row in range(len(start)):
        at, stop = start[row], end[row]
        if stop - at < 9:
            continue
        if data[at] != 0x68 or data[at + 1] != 0x74 or data[at + 2] != 0x74 or data[at + 3] != 0x70:
            continue
        at += 5 if data[at + 4] == 0x73 else 4
        if data[at] != 0x3A or data[at + 1] != 0x2F or data[at + 2] != 0x2F:
            continue
        host = at + 3
        at = host
        while at < stop and (0x30 <= data[at] <= 0x39 or 0x5B <= data[at] <= 0x7E or 0x2D <= data[at] <= 0x2E):
            at += 1
        if at == host or at == stop or data[at] != 0x2F:
            continue
        hashes = 0
        for place in range(at, stop):
            hashes += data[place] == 0x23
        normal[row] = hashes == 0
    return normal
