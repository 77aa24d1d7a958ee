"""Zips as strangers send them: good ones give their members, those that could do harm one sentence and nothing else."""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zipfile

import pytest
from small_benchmark import zip_of

from thinkdiff.schemas.errors import InputError
from thinkdiff.storage import zip_stream
from thinkdiff.storage.zip_stream import ZipReader


def reader(data: bytes) -> ZipReader:
    return ZipReader(io.BytesIO(data), "x.zip")


def special(name: str, mode: int) -> zipfile.ZipInfo:
    """A member that is a link, a device or the like."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    return info


def altered(data: bytes, central: int, local: int, value: bytes) -> bytes:
    """The zip with a field of its first member changed, in the directory and in the member's own header."""
    found = bytearray(data)
    for signature, at in ((b"PK\x01\x02", central), (b"PK\x03\x04", local)):
        start = data.index(signature) + at
        found[start : start + len(value)] = value
    return bytes(found)


PLAIN = zip_of([("a.jpg", b"one" * 1000)])
LYING = altered(PLAIN, 24, 22, struct.pack("<I", 10))  # a member of 3,000 bytes that says 10
GREEDY = altered(PLAIN, 24, 22, struct.pack("<I", 5000))
TWICE = [("a.jpg", b"1"), ("a.jpg", b"2")]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    HARMFUL = {
        "parent": (zip_of([("../a.jpg", b"")]), "a member that leaves its folder: '../a.jpg'"),
        "parent inside": (zip_of([("a/../../b", b"")]), "a member that leaves its folder: 'a/../../b'"),
        "absolute": (zip_of([("/etc/a", b"")]), "a member that leaves its folder: '/etc/a'"),
        "drive": (zip_of([("C:/a", b"")]), "a member that leaves its folder: 'C:/a'"),
        "backslash": (zip_of([("a\\..\\b", b"")]), "a member that leaves its folder"),
        "control": (zip_of([("a\x1b[2J", b"")]), "a member of a name with control characters"),
        "cut name": (zip_of([("a.jpgXb", b"")]).replace(b"a.jpgXb", b"a.jpg\0b"), "control characters"),
        "link": (zip_of([(special("a.jpg", stat.S_IFLNK), b"/etc/passwd")]), "that is a link or a device: 'a.jpg'"),
        "device": (zip_of([(special("a.jpg", stat.S_IFBLK), b"")]), "that is a link or a device: 'a.jpg'"),
        "encrypted": (altered(PLAIN, 8, 6, b"\x01\x00"), "a member that is encrypted: 'a.jpg'"),
        "twice": (zip_of(TWICE), "two members of the name 'a.jpg'"),
        "lzma": (zip_of([("a.jpg", b"x")], zipfile.ZIP_LZMA), "of the compression method 14: 'a.jpg'"),
        "bzip2": (zip_of([("a.jpg", b"x")], zipfile.ZIP_BZIP2), "of the compression method 12: 'a.jpg'"),
        "large": (altered(PLAIN, 24, 22, struct.pack("<I", 1 << 30)), "of 1073741824 bytes, more than 67108864"),
        "many": (zip_of((f"{i}", b"") for i in range(20_001)), "more than 20000 members"),
        "no zip": (b"<html>not found</html>", "no end of a zip"),
        "empty": (b"", "no end of a zip"),
        "cut": (PLAIN[:-30], "no end of a zip"),
        "headless": (PLAIN[-60:], "no zip that can be read"),
    }


@pytest.mark.parametrize("fault", HARMFUL)
def test_zip_that_could_do_harm_is_refused_as_a_whole(fault: str):
    data, says = HARMFUL[fault]
    with pytest.raises(InputError) as caught:
        reader(data)
    assert says in str(caught.value)
    assert str(caught.value).startswith("x.zip: found ")
    assert "Nothing was unpacked" in str(caught.value)


def test_members_are_read_by_name_and_folders_are_none():
    members = [("datasets/", b""), ("datasets/a b.jpg", b"\0" * 10_000), ("datasets/ä.txt", "ä".encode()), ("c", b"")]
    found = reader(zip_of(members))
    assert found.names == ["datasets/a b.jpg", "datasets/ä.txt", "c"]
    assert [found.read(name) for name in found.names] == [data for _, data in members[1:]]
    with pytest.raises(KeyError):
        found.read("datasets/d.jpg")


@pytest.mark.parametrize("data", [LYING, GREEDY, altered(PLAIN, 16, 14, b"abcd")], ids=["more", "fewer", "checksum"])
def test_member_of_other_bytes_than_declared_is_refused(data: bytes):
    with pytest.raises(InputError, match=r"x\.zip: found (the member 'a\.jpg' damaged|3000 bytes in the member)"):
        reader(data).read("a.jpg")


def test_members_that_are_large_together_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zip_stream, "MAX_TOTAL", 5000)
    bomb = zip_of([("a.jpg", bytes(3000)), ("b.jpg", bytes(3000))])
    assert len(bomb) < 300
    with pytest.raises(InputError, match="members of 6000 bytes, more than 5000"):
        reader(bomb)


def test_directory_of_64_bits_is_refused_before_it_is_read():
    end = PLAIN.index(b"PK\x05\x06")
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 0, 1)
    with pytest.raises(InputError, match="more than 20000 members, or a directory of more than"):
        reader(PLAIN[:end] + locator + PLAIN[end:])


def test_more_members_than_the_end_record_says_are_counted():
    many = bytearray(zip_of((f"{i}", b"") for i in range(20_001)))
    many[-14:-10] = struct.pack("<HH", 1, 1)
    with pytest.raises(InputError, match="more than 20000 members"):
        reader(bytes(many))
