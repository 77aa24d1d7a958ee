"""Tars of strangers and our own shards: against the standard library's tarfile, and against hostile bytes."""

# ruff: noqa: F811 - a fixture is imported and then is a parameter's name

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import place, s3  # noqa: F401
from store_artifacts import artifact_of, cut, flip

from thinkdiff.schemas.errors import InputError, StoreError
from thinkdiff.schemas.images import ImageSet, TarSource
from thinkdiff.storage.caption_sample import SampledCaption
from thinkdiff.storage.image_parts import ImageParts, Spool
from thinkdiff.storage.image_shards import ImageReader
from thinkdiff.storage.image_sources import TarSample, find_tars, read_samples, short_batches
from thinkdiff.storage.root import Folder
from thinkdiff.storage.tar_stream import Member, TarBuilder, TarReader, pax_path_and_size

MAX_BYTES = 10_000


def about(number: int, **changes: Any) -> bytes:
    return json.dumps(
        {"url": f"http://x/{number}", "caption": f"caption {number}", "status": "success"} | changes
    ).encode()


def sample(number: int, **changes: Any) -> dict[str, bytes]:
    """The three members of a good sample."""
    return {
        f"{number:09}.jpg": bytes([number]) * (600 + number),
        f"{number:09}.txt": f"caption {number}".encode(),
        f"{number:09}.json": about(number, **changes),
    }


def tar_of(members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT, mtime: float = 0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime  # pyright: ignore[reportAttributeAccessIssue]
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(folder: Folder, data: bytes) -> list[TarSample]:
    folder.write("0.tar", data)
    return list(read_samples(folder, "0.tar", MAX_BYTES))


def image(folder: Folder, found: TarSample, name: str = "0.tar") -> bytes:
    """The picture that a sample points to."""
    return folder.read_range(name, found.offset, found.offset + found.size)


def members_of(data: bytes) -> Iterator[Member]:
    return TarReader(io.BytesIO(data), "x.tar").members(lambda name: MAX_BYTES)


def test_tars_of_a_source_give_their_samples_in_order(place: Folder):
    for tar in (1, 0):
        place.write(f"cc3m/part-{tar}/0000{tar}.tar", tar_of(sample(2 * tar) | sample(2 * tar + 1)))
    place.write("cc3m/part-0/notes.txt", b"no tar")
    tars = find_tars(place.uri, TarSource(collection="cc3m", glob="cc3m/part-*/*.tar"))
    found = [(folder, name, s) for folder, name in tars for s in read_samples(folder, name, MAX_BYTES)]
    assert [(s.url, s.caption, s.reason) for *_, s in found] == [
        (f"http://x/{i}", f"caption {i}", None) for i in range(4)
    ]
    assert [image(folder, s, name) for folder, name, s in found] == [bytes([i]) * (600 + i) for i in range(4)]


def test_source_without_tars_is_refused(place: Folder):
    with pytest.raises(InputError, match=r"nowhere/\*\.tar: found no tar of collection sbu"):
        find_tars(place.uri, TarSource(collection="sbu", glob="nowhere/*.tar"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("stem", ["short", "folder/" * 20 + "x" * 90, "ünï/" * 30 + "name"])
def test_members_are_those_of_tarfile_in_every_format(form: int, stem: str):
    if form == tarfile.USTAR_FORMAT and not stem.isascii():
        stem = "folder/" * 20 + "y" * 80
    contents = {f"{stem}.jpg": b"x" * 700, f"{stem}.json": b"{}", "empty": b"", "exact": b"y" * 512}
    data = tar_of(contents, form, mtime=1234.5)
    found = list(members_of(data))
    assert {member.name: member.data for member in found} == contents
    for member in found:
        assert data[member.offset : member.offset + member.size] == member.data


def test_members_that_are_no_files_are_passed_over():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("../../etc/passwd")
            info.type, info.linkname = kind, "/etc/shadow"
            tar.addfile(info)
        info = tarfile.TarInfo("/absolute/../name.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert [(member.name, member.data) for member in members_of(buffer.getvalue())] == [
        ("/absolute/../name.jpg", b"abc")
    ]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"1.txt": b"caption 1", "1.json": about(1)}, "no picture"),
        ({"1.jpg": b"x" * (MAX_BYTES + 1), "1.json": about(1)}, f"{MAX_BYTES + 1} bytes, more than {MAX_BYTES}"),
        ({"1.json": about(1, status="failed_to_download", error_message="HTTP Error 404")}, "404"),
        ({"1.jpg": b"x", "1.json": about(1, status="failed_to_resize", error_message=None)}, "failed_to_resize"),
    ],
)
def test_failed_sample_has_a_reason_and_no_picture(tmp_path: Path, members: dict[str, bytes], reason: str):
    (found,) = read(Folder(str(tmp_path)), tar_of(members))
    assert (found.url, found.caption) == ("http://x/1", "caption 1")
    assert reason in str(found.reason)


@pytest.mark.parametrize(
    "json_member", [b"", b"{", b"[]", b"[" * 100_000, b'{"url": 3, "caption": "c"}', b'{"url": "http://x"}', b"\xff"]
)
def test_sample_without_a_usable_json_cannot_be_matched(tmp_path: Path, json_member: bytes):
    members = {"1.jpg": b"x", "1.json": json_member} | sample(2)
    found = read(Folder(str(tmp_path)), tar_of(members))
    assert [s.url for s in found] == ["", "http://x/2"]
    assert "json" in str(found[0].reason)


def test_caption_falls_back_to_the_text_member(tmp_path: Path):
    members = {"1.JPG": b"x", "1.txt": "ünï".encode(), "1.json": b'{"url": "http://x/1"}'}
    folder = Folder(str(tmp_path))
    (found,) = read(folder, tar_of(members))
    assert (found.caption, image(folder, found)) == ("ünï", b"x")


def test_every_truncation_of_a_tar_is_refused_by_name(tmp_path: Path):
    folder, data = Folder(str(tmp_path)), tar_of(sample(1) | sample(2))
    end = data.rindex(about(2)) + 512
    for size in (*range(1, end, 211), 512, 1024, end):
        with pytest.raises(InputError, match=r"0\.tar: found a tar that ends at byte"):
            read(folder, data[:size])
    assert len(read(folder, data[: end + 512])) == 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "an empty file"),
        (b"\x1f\x8b" + b"z" * 2000, "no tar header at byte 0"),
        (b"PK\x03\x04" + b"z" * 2000, "no tar header"),
    ],
)
def test_what_is_no_tar_is_refused(tmp_path: Path, data: bytes, says: str):
    with pytest.raises(InputError, match=says):
        read(Folder(str(tmp_path)), data)


def with_size(field: bytes, kind: bytes = b"0") -> bytes:
    """A tar of one member whose header claims a size and a type, its checksum right."""
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    header[124:136], header[156:157] = field, kind
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + bytes(4096)


@pytest.mark.parametrize(
    ("field", "kind", "says"),
    [
        (b"77777777777\0", b"0", "ends at byte"),
        (b"\x80" + b"\xff" * 11, b"0", "ends at byte"),
        (b"\xff" * 12, b"0", "impossible size"),
        (b"-0000000001\0", b"0", "impossible size"),
        (b"12x4\0\0\0\0\0\0\0\0", b"0", "impossible size"),
        (b"77777777777\0", b"L", "a header of"),
        (b"77777777777\0", b"x", "a header of"),
        (b"77777777777\0", b"g", "ends at byte"),
        (b"77777777777\0", b"S", "ends at byte"),
    ],
)
def test_header_that_claims_an_impossible_size_is_refused(field: bytes, kind: bytes, says: str):
    with pytest.raises(InputError, match=says):
        list(members_of(with_size(field, kind)))


@pytest.mark.parametrize(
    "text", [b"99999999 path=x\n", b"x" * 100, b"0 \n", b"9 size=zz\n", b" " * 60_000, b"7 path\n"]
)
def test_crafted_extended_header_ends(text: bytes):
    header = bytearray(with_size(f"{len(text):011o}\0".encode(), b"x")[:512])
    data = bytes(header) + text + bytes(-len(text) % 512) + tar_of({"a.jpg": b"abc"})
    assert [member.data for member in members_of(data)] == [b"abc"]


def test_failed_downloads_beside_a_tar_are_samples_with_a_reason(place: Folder):
    place.write("00000.tar", tar_of(sample(0)))
    sink = pa.BufferOutputStream()
    rows = {
        "url": ["http://x/0", "http://x/1", None],
        "caption": ["caption 0", "caption 1", "c"],
        "status": ["success", "failed_to_download", "failed_to_download"],
        "error_message": [None, "HTTP Error 404: Not Found", None],
        "width": [1, None, None],
    }
    pq.write_table(pa.table(rows), sink)
    place.write("00000.parquet", memoryview(sink.getvalue()))
    good, failed = read_samples(place, "00000.tar", MAX_BYTES)
    assert good.reason is None
    assert (failed.url, failed.caption) == ("http://x/1", "caption 1")
    assert failed.reason == "failed_to_download: HTTP Error 404: Not Found"


@pytest.mark.parametrize("data", [b"", b"PAR1 nothing PAR1"])
def test_unreadable_table_beside_a_tar_is_a_warning(tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture):
    folder = Folder(str(tmp_path))
    folder.write("00000.tar", tar_of(sample(0)))
    folder.write("00000.parquet", data)
    assert len(list(read_samples(folder, "00000.tar", MAX_BYTES))) == 1
    assert "00000.parquet: found no table" in caplog.text


def captions(count: int) -> list[SampledCaption]:
    keys = [hashlib.sha256(bytes([i])).hexdigest()[:32] for i in range(count)]
    return [SampledCaption(key, "sbu", f"http://x/{i}", f"c {i}") for i, key in enumerate(keys)]


def number(row: SampledCaption) -> int:
    return int(row.url.rsplit("/", 1)[1])


def picture(row: SampledCaption) -> bytes:
    return row.key.encode() * (1 + number(row))


def write(folder: Folder, rows: list[SampledCaption], shard_size: int = 4) -> ImageSet:
    """All pictures but every third, the shards and the pictures of each in the order given."""
    ordered = sorted(rows, key=lambda row: row.key)
    parts = ImageParts(folder, len(rows), shard_size)
    parts.prepare()
    for shard in dict.fromkeys(ordered.index(row) // shard_size for row in rows):
        captions, spool = [ordered[place] for place in parts.span(shard)], Spool()
        reasons = {i: "does not decode" if number(row) % 6 == 0 else "HTTP 404" for i, row in enumerate(captions)}
        for row in rows:
            if row in captions and number(row) % 3:
                spool.hold(captions.index(row), picture(row), number(row), 2 * number(row), "png")
        parts.commit(shard, captions, spool, reasons)
        spool.close()
    files, reasons = parts.files()
    assert reasons.total() == sum(number(row) % 3 == 0 for row in rows)
    return artifact_of(ImageSet, folder, files)


def test_pictures_are_read_back_by_row_in_any_order(place: Folder):
    rows = captions(20)
    images = write(place, rows)
    reader = ImageReader(images)
    by_key = {row.key: row for row in rows}
    assert [row.key for row in reader.rows] == sorted(by_key)
    assert [row.key for row in reader.ok] == sorted(row.key for row in rows if number(row) % 3)
    asked = [*reader.ok[::-2], reader.ok[0], reader.ok[0]]
    assert reader.read(asked) == [picture(by_key[row.key]) for row in asked]
    for row in reader.failed:
        assert row.reason == ("does not decode" if number(by_key[row.key]) % 6 == 0 else "HTTP 404")
        assert (row.shard, row.sha256, row.width) == (None, None, None)
    assert {row.width for row in reader.ok} == {number(row) for row in rows if number(row) % 3}
    with pytest.raises(StoreError, match="found no picture"):
        reader.read(reader.failed[:1])
    place.delete(f"shards/{reader.ok[0].shard:05}.tar")
    with pytest.raises(StoreError, match="expected a shard of pictures"):
        reader.read(reader.ok[:1])


def test_shards_are_plain_tars_in_the_order_of_keys_and_the_same_for_any_order(tmp_path: Path):
    rows = captions(20)
    one, other = write(Folder(str(tmp_path / "a")), rows), write(Folder(str(tmp_path / "b")), rows[::-1])
    assert one.digest == other.digest
    assert one.names("shards/") == [f"shards/{i:05}.tar" for i in range(5)]
    assert [row.shard for row in ImageReader(one).ok] == [
        i // 4 for i, row in enumerate(ImageReader(one).rows) if row.size
    ]
    names: list[str] = []
    for shard in one.names("shards/"):
        with tarfile.open(one.path(shard)) as tar:
            assert all((m.mtime, m.uid, m.uname) == (0, 0, "") for m in tar)
            names += tar.getnames()
    assert names == [f"{row.key}.png" for row in ImageReader(one).ok]


def read_all(artifact: ImageSet) -> None:
    reader = ImageReader(artifact)
    reader.read(reader.ok)


@pytest.mark.parametrize("name", ["shards/00001.tar", "index.parquet"])
def test_altered_cut_or_lost_file_raises(tmp_path: Path, name: str):
    folder = Folder(str(tmp_path))
    artifact = write(folder, captions(20))
    read_all(artifact)
    flip(folder, name, 530)
    with pytest.raises(StoreError, match="other bytes"):
        read_all(artifact)
    cut(folder, name, 700)
    with pytest.raises(StoreError, match="700 bytes"):
        ImageReader(artifact)
    folder.delete(name)
    with pytest.raises(StoreError, match="missing"):
        ImageReader(artifact)


@pytest.mark.parametrize(
    ("column", "value"),
    [("offset", 1 << 40), ("offset", -1), ("size", -5), ("shard", 9), ("status", "maybe"), ("sha256", None)],
)
def test_index_that_contradicts_itself_raises(tmp_path: Path, column: str, value: Any):
    folder = Folder(str(tmp_path))
    artifact = write(folder, captions(20))
    table = pq.read_table(folder.full("index.parquet"))
    rows = table.to_pylist()
    next(row for row in rows if row["status"] == "ok")[column] = value
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, table.schema), sink)
    entry = folder.write("index.parquet", memoryview(sink.getvalue()))
    files = [entry if e.path == entry.path else e for e in artifact.files]
    with pytest.raises(StoreError, match="without a place in a shard or a reason"):
        ImageReader(artifact_of(ImageSet, folder, files))


def test_set_without_any_picture_is_an_index_of_failures(tmp_path: Path):
    parts = ImageParts(Folder(str(tmp_path)), 3, 4)
    rows = sorted(captions(3), key=lambda row: row.key)
    parts.commit(0, rows, Spool(), dict.fromkeys(range(3), "HTTP 404"))
    files, _ = parts.files()
    reader = ImageReader(artifact_of(ImageSet, parts.folder, files))
    assert ([*reader.ok], len(reader.failed)) == ([], 3)
    assert reader.read([]) == []


def test_builder_writes_what_tarfile_reads():
    contents = {"a.png": b"", "ü/" * 80 + "b.png": b"x" * 513, "c": b"y" * 512}
    builder = TarBuilder()
    data = b"".join(builder.pieces(contents.items()))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for (name, content), offset in zip(contents.items(), builder.offsets, strict=True):
            member = tar.extractfile(name)
            assert member is not None
            assert member.read() == content
            assert tar.getmember(name).offset_data == offset
    assert len(data) % tarfile.RECORDSIZE == 0


def test_extended_header_is_read_record_by_record():
    assert pax_path_and_size(b"2 " * 4000 + b"11 size=12\n12 path=a=b\n3 ", "n") == ("a=b", 12)
    for broken in (b"", b"x path=a", b"0 path=a", b"12 path=a", b"000000010 path=abc\n", b"12"):
        assert pax_path_and_size(broken, "n") == ("n", -1)


def test_damaged_page_of_a_table_of_failures_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder, sink = Folder(str(tmp_path)), pa.BufferOutputStream()
    rows = {
        name: [f"http://x/{name}/{i}" for i in range(500)] for name in ("url", "caption", "status", "error_message")
    }
    pq.write_table(pa.table(rows), sink, compression="zstd")
    folder.write("00000.tar", tar_of(sample(0)))
    damaged = bytearray(sink.getvalue())
    damaged[4] ^= 0xFF  # the header of the first page
    folder.write("00000.parquet", bytes(damaged))
    assert len(list(read_samples(folder, "00000.tar", MAX_BYTES))) == 1
    assert "00000.parquet: found no table" in caplog.text


def test_long_words_of_a_dictionary_are_decoded_a_few_rows_at_a_time(tmp_path: Path):
    path, rows = tmp_path / "x.parquet", 3000
    one = pa.array([0] * rows, pa.int32())
    words = {name: pa.DictionaryArray.from_arrays(one, pa.array(["x" * (1 << 20)])) for name in ("url", "caption")}
    pq.write_table(pa.table(words), path, store_schema=False, compression="zstd")
    with path.open("rb") as file:
        batches = short_batches(file, pq.ParquetFile(file), ["url", "caption"], range(1))
        sizes = [next(batches).nbytes for _ in range(3)]
    assert path.stat().st_size < 10_000
    assert max(sizes) < 40 << 20
