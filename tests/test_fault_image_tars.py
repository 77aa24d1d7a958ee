"""Hostile and broken tars through the whole stage: each of their captions is a row, and no other tar is disturbed."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_images import PICKLE, rgb, saved
from small_images import captions_of, execution, fetch, rows_by_caption

from thinkdiff.schemas.images import ImageSpec, TarSource
from thinkdiff.storage.image_shards import IndexRow
from thinkdiff.storage.root import Folder

GOOD = saved(rgb(), "JPEG")
MAX_BYTES = 50_000


class Builder:
    """A tar of one case, whose captions are `<case> 0`, `<case> 1`, ..."""

    def __init__(self, first: int, form: int = tarfile.PAX_FORMAT) -> None:
        self.first, self.buffer = first, io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buffer, mode="w", format=form)

    def about(self, place: int, **changes: object) -> bytes:
        """The `.json` of a caption."""
        number = self.first + place
        return json.dumps({"url": f"http://x/{number}", "caption": f"caption {number}"} | changes).encode()

    def add(self, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> None:
        """A member."""
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        self.tar.addfile(info, io.BytesIO(data))

    def sample(self, place: int, stem: str = "", data: bytes = GOOD) -> None:
        """A whole sample."""
        stem = stem or f"{place:09d}"
        self.add(f"{stem}.jpg", data)
        self.add(f"{stem}.json", self.about(place))

    def bytes(self) -> bytes:
        """The whole tar."""
        self.tar.close()
        return self.buffer.getvalue()


def forged(data: bytes, at: int, field: bytes, kind: bytes | None = None) -> bytes:
    """A tar in which a header claims another size or type, its checksum right."""
    header = bytearray(data[at : at + 512])
    header[124:136] = field
    header[156:157] = kind or header[156:157]
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return data[:at] + bytes(header) + data[at + 512 :]


def links(b: Builder) -> bytes:
    b.sample(0)
    for number, kind in enumerate(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    ):
        b.add(f"{number + 1:09d}.jpg", kind=kind, linkname="/etc/passwd")
        b.add(f"{number + 1:09d}.json", b.about(number + 1))
    return b.bytes()


def names(b: Builder) -> bytes:
    for place, stem in enumerate(
        ("../../../etc/cron.d/x", "/etc/passwd", "a/../../b", "ü" * 120, "a\nb", "..", "C:\\x")
    ):
        b.sample(place, stem)
    return b.bytes()


def duplicates(b: Builder) -> bytes:
    b.sample(0, data=b"junk")
    b.sample(1)
    b.sample(0)
    b.sample(0, data=b"junk")
    return b.bytes()


def twice_in_one(b: Builder) -> bytes:
    b.add("1.jpg", GOOD)
    b.add("1.jpg", b"junk")
    b.add("1.json", b.about(0))
    b.add("1.json", b.about(1))
    return b.bytes()


def parts_missing(b: Builder) -> bytes:
    b.add("1.json", b.about(0))
    b.add("2.jpg", GOOD)
    b.add("3.jpg", GOOD)
    b.add("3.txt", b"caption")
    b.sample(2)
    return b.bytes()


def broken_json(b: Builder) -> bytes:
    for number, data in enumerate(
        (b"", b"{", b"[" * 50_000, b"\xff", b"null", b'{"url": 1}', b'{"url":' + b"9" * 9000)
    ):
        b.add(f"{number}.jpg", GOOD)
        b.add(f"{number}.json", data)
    b.sample(0)
    return b.bytes()


def pickles(b: Builder) -> bytes:
    b.sample(0, data=PICKLE)
    b.add("1.jpg", GOOD)
    b.add("1.json", PICKLE)
    b.add("2.pkl", PICKLE)
    b.sample(1)
    return b.bytes()


def too_large(b: Builder) -> bytes:
    b.sample(0, data=GOOD + bytes(MAX_BYTES))
    b.add("2.json", b" " * (2 << 20))
    b.sample(1)
    return b.bytes()


def failures(b: Builder) -> bytes:
    b.add("1.json", b.about(0, status="failed_to_download", error_message="\ud800 \x00 [31m" + "x" * 9999))
    b.add("2.json", b.about(1, status="failed_to_download", error_message={"a": []}))
    b.add("3.json", b.about(2, status=["odd"], error_message=None))
    return b.bytes()


def many_members(b: Builder) -> bytes:
    for number in range(3000):
        b.add(f"1.kind{number}", b"x")
    b.add("1.jpg", GOOD)
    b.add("1.json", b.about(0))
    return b.bytes()


def with_good(change: Callable[[bytes], bytes]) -> Callable[[Builder], bytes]:
    """A good sample, another one, and what was done to the tar."""

    def build(b: Builder) -> bytes:
        b.sample(0)
        b.sample(1)
        return change(b.bytes())

    return build


def at_second(field: bytes, kind: bytes | None = None) -> Callable[[Builder], bytes]:
    """A forged header of the second sample's picture."""
    return with_good(lambda data: forged(data, data.index(b"000000001.jpg"), field, kind))


# name: how the tar is made, and for each of its captions the reason in the index ("" for a picture that is taken)
LACKING = "not in the tars"
CASES: dict[str, tuple[Callable[[Builder], bytes], list[str]]] = {
    "links-and-devices": (links, ["", *["no picture in the tar"] * 5]),
    "names-that-climb": (names, ["", "", "", "", "", LACKING, ""]),  # `...jpg` has no stem
    "duplicated-keys": (duplicates, ["", ""]),
    "member-twice": (twice_in_one, ["", LACKING]),
    "part-missing": (parts_missing, ["no picture in the tar", LACKING, ""]),
    "broken-json": (broken_json, [""]),
    "pickles": (pickles, ["not a JPEG, PNG, WebP or GIF picture", ""]),
    "a-pickle": (lambda b: PICKLE * 500, [LACKING]),
    "too-large": (too_large, [f"more than {MAX_BYTES}", ""]),
    "failures": (failures, ["^failed_to_download: ", "^failed_to_download: ", "odd"]),
    "many-members": (many_members, [""]),
    "empty-file": (lambda b: b"", [LACKING]),
    "gzip": (lambda b: b"\x1f\x8b\x08" + bytes(3000), [LACKING]),
    "zip": (lambda b: b"PK\x03\x04" + bytes(3000), [LACKING]),
    "zeros": (lambda b: bytes(20_480), [LACKING]),
    "html": (lambda b: b"<html>" * 500, [LACKING]),
    "cut": (with_good(lambda data: data[: data.rindex(b'{"url"') + 3]), ["", LACKING]),
    "no-end": (with_good(lambda data: data[: data.rindex(b'{"url"') + 512]), ["", ""]),
    "junk-behind": (with_good(lambda data: data + b"junk" * 500), ["", ""]),
    "flipped-header": (with_good(lambda data: data.replace(b"000000001.jpg", b"000000009.jpg", 1)), ["", LACKING]),
    "huge-size": (at_second(b"77777777777\0"), ["", LACKING]),
    "base-256-size": (at_second(b"\x80" + b"\xff" * 11), ["", LACKING]),
    "negative-size": (at_second(b"\xff" * 12), ["", LACKING]),
    "odd-size": (at_second(b"12x4" + bytes(8)), ["", LACKING]),
    "huge-long-name": (at_second(b"77777777777\0", b"L"), ["", LACKING]),
    "huge-pax": (at_second(b"77777777777\0", b"x"), ["", LACKING]),
    "sparse": (at_second(b"00000000000\0", b"S"), ["", LACKING]),
    "unknown-type": (at_second(f"{len(GOOD):011o}\0".encode(), b"Z"), ["", "no picture in the tar"]),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[IndexRow]]:
    """The index of one run over all tars, by case."""
    tmp_path, first = tmp_path_factory.mktemp("tars"), 0
    for name, (build, outcomes) in CASES.items():
        (tmp_path / f"{name}.tar").write_bytes(build(Builder(first)))
        first += len(outcomes)
    captions = captions_of(Folder(str(tmp_path / "captions")), [f"http://x/{number}" for number in range(first)])
    spec = ImageSpec(tars=(TarSource(collection="cc3m", glob="*.tar"),), shard_size=9, max_bytes=MAX_BYTES)
    run = execution(tmp_path, data=str(tmp_path))
    found, numbers = rows_by_caption(fetch(Folder(str(tmp_path / "images")), captions, spec, run)), iter(range(first))
    assert sorted(found) == list(range(first))
    return {name: [found[next(numbers)] for _ in outcomes] for name, (_, outcomes) in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_tar_has_its_outcome(rows: dict[str, list[IndexRow]], case: str):
    for row, reason in zip(rows[case], CASES[case][1], strict=True):
        if reason:
            assert row.status == "failed"
            assert re.search(reason, str(row.reason)), row.reason
        else:
            assert (row.status, row.reason) == ("ok", None)


def test_reason_of_a_stranger_is_one_plain_line(rows: dict[str, list[IndexRow]]):
    for row in rows["failures"]:
        assert str(row.reason).isprintable()
        assert len(str(row.reason)) <= 202


def test_nothing_is_written_beside_the_artifact(rows: dict[str, list[IndexRow]], tmp_path: Path):
    assert rows
    assert not list(tmp_path.parent.parent.rglob("cron.d"))
