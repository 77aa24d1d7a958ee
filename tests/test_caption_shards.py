"""Collections in the wild: three formats, headers, hostile bytes, and the sample's files."""

# ruff: noqa: F811 - a fixture is imported and then is a parameter's name

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from caption_rows import columns_of, rows_of
from s3_server import place, s3  # noqa: F401
from store_artifacts import artifact_of, cut, flip

from thinkdiff.schemas.captions import CaptionSet, Collection, CollectionFormat
from thinkdiff.schemas.errors import InputError, StoreError
from thinkdiff.storage.caption_lines import CHUNK
from thinkdiff.storage.caption_rows import MAX_LINE, CaptionRow, Malformed
from thinkdiff.storage.caption_sample import MalformedLog, SampledCaption, read_captions, read_malformed, write_captions
from thinkdiff.storage.root import Folder

GOOD = [
    ("https://a.example/1.jpg", "a dog"),
    ("http://b.example/2.png?x=1", "zwei Hunde, ü"),
    ("HTTPS://c/3", "c\x0bd"),
]
TSV: list[CollectionFormat] = ["cc3m-tsv", "cc12m-tsv"]
FORMATS: list[CollectionFormat] = [*TSV, "sbu-json"]


def file_bytes(form: CollectionFormat, rows: list[tuple[str, str]], header: bool = False) -> bytes:
    """Rows of (url, caption) as people have them."""
    if form == "sbu-json":
        urls, captions = [url for url, _ in rows], [caption for _, caption in rows]
        return json.dumps({"image_urls": urls, "captions": captions, "user_ids": ["x"] * len(rows)}).encode()
    order = -1 if form == "cc3m-tsv" else 1
    lines = [("url", "caption")] * header + rows
    return "".join("\t".join(line[::order]) + "\n" for line in lines).encode()


def read(folder: Folder, form: CollectionFormat, data: bytes) -> list[CaptionRow | Malformed]:
    folder.write("file", data)
    return rows_of(Collection(name="x", format=form, url="file"), folder)


def local(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path))


@pytest.mark.parametrize("form", FORMATS)
def test_rows_come_in_order_with_the_digest_of_the_file(place: Folder, form: CollectionFormat):
    data = file_bytes(form, GOOD)
    place.write("sub/file", data)
    digest = hashlib.sha256(data).hexdigest()
    found = rows_of(Collection(name="x", format=form, url="sub/file", sha256=digest), place)
    assert found == [CaptionRow(number, url, caption) for number, (url, caption) in enumerate(GOOD)]


@pytest.mark.parametrize("form", TSV)
def test_header_byte_order_mark_carriage_returns_and_no_last_newline_are_understood(
    tmp_path: Path, form: CollectionFormat
):
    data = b"\xef\xbb\xbf" + file_bytes(form, GOOD, header=True).replace(b"\n", b"\r\n")[:-2]
    assert read(local(tmp_path), form, data) == [CaptionRow(i, url, caption) for i, (url, caption) in enumerate(GOOD)]


@pytest.mark.parametrize("form", TSV)
def test_lines_across_chunks_are_whole(tmp_path: Path, form: CollectionFormat):
    rows = [(f"https://a.example/{i}", f"caption {i} " + "x" * (i % 97)) for i in range(CHUNK // 40)]
    assert len(file_bytes(form, rows)) > CHUNK
    found = read(local(tmp_path), form, file_bytes(form, rows))
    assert [(row.url, row.caption) for row in found if isinstance(row, CaptionRow)] == rows


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "empty line"),
        (b"only a caption", "1 fields"),
        (b"a\tb\thttp://x/1", "3 fields"),
        (b"caption\tftp://x/1", "not http"),
        (b"caption\t//x/1", "not http"),
        (b"caption\thttp://x/1 2", "not http"),
        (b"caption\thttp://x/\x00", "not http"),
        (b"caption\tjavascript:http://x", "not http"),
        (b"http://x/1\tcaption", "exchanged"),
        (b"  \thttp://x/1", "empty caption"),
        (b"caf\xe9\thttp://x/1", "not UTF-8"),
        (b"\xed\xa0\x80\thttp://x/1", "not UTF-8"),
        (b"x" * (MAX_LINE + 1) + b"\thttp://x/1", "longer than"),
    ],
)
def test_malformed_line_is_a_row_with_its_reason(tmp_path: Path, line: bytes, reason: str):
    good = file_bytes("cc3m-tsv", GOOD)
    found = read(local(tmp_path), "cc3m-tsv", good + line + b"\n" + good)
    assert [row.row for row in found] == list(range(7))
    assert [isinstance(row, CaptionRow) for row in found] == [True] * 3 + [False] + [True] * 3
    assert isinstance(found[3], Malformed)
    assert reason in found[3].reason
    assert len(found[3].excerpt) <= 80
    assert found[3].excerpt.isprintable()


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ([1, "caption"], "not two strings"),
        (["http://x/1", None], "not two strings"),
        (["http://x/1", "\ud800"], "Unicode"),
        (["x", "y"], "not http"),
        (["http://x/1", "y" * (MAX_LINE + 1)], "longer than"),
    ],
)
def test_malformed_pair_of_sbu_is_a_row_with_its_reason(tmp_path: Path, pair: list, reason: str):
    data = json.dumps({"image_urls": ["http://x/0", pair[0]], "captions": ["good", pair[1]]}).encode()
    good, bad = read(local(tmp_path), "sbu-json", data)
    assert isinstance(good, CaptionRow)
    assert isinstance(bad, Malformed)
    assert reason in bad.reason


@pytest.mark.parametrize(("form", "other"), [("cc3m-tsv", "cc12m-tsv"), ("cc12m-tsv", "cc3m-tsv")])
@pytest.mark.parametrize("header", [False, True])
def test_exchanged_columns_are_refused_with_a_hint(
    tmp_path: Path, form: CollectionFormat, other: CollectionFormat, header: bool
):
    with pytest.raises(InputError, match=f"it looks like {other}"):
        read(local(tmp_path), form, file_bytes(other, GOOD, header))


def test_exchanged_lists_of_sbu_are_refused(tmp_path: Path):
    swapped = json.dumps({"captions": [url for url, _ in GOOD], "image_urls": [text for _, text in GOOD]}).encode()
    with pytest.raises(InputError, match="exchange the two lists"):
        read(local(tmp_path), "sbu-json", swapped)


@pytest.mark.parametrize("form", FORMATS)
def test_missing_and_empty_file_are_refused_by_name(place: Folder, form: CollectionFormat):
    with pytest.raises(InputError, match="file: found no such file"):
        rows_of(Collection(name="x", format=form, url="file"), place)
    with pytest.raises(InputError, match="file: found an empty file"):
        read(place, form, b"")


@pytest.mark.parametrize(
    ("form", "data", "says"),
    [
        ("cc3m-tsv", b"{}", "no good row"),
        ("cc3m-tsv", b"\x1f\x8b\x08\x00 gzip", "a compressed file's name ends in"),
        ("cc12m-tsv", b"\x00" * (3 * MAX_LINE), "no good row"),
        ("cc12m-tsv", b"url\tcaption\n", "no rows"),
        ("sbu-json", b"a dog\thttp://x/1\n", "no JSON object"),
        ("sbu-json", b"[" * 200_000, "no JSON object"),
        ("sbu-json", b"[1, 2]", "no JSON object"),
        ("sbu-json", b'{"image_urls": ["http://x"], "captions": []}', "of one length"),
        ("sbu-json", b'{"image_urls": "http://x", "captions": "http://x"}', "no JSON object"),
        ("sbu-json", b'{"image_urls": [], "captions": []}', "no rows"),
        ("sbu-json", b'{"image_urls": ["http://x"], "captions": ["a"]', "no JSON object"),
        ("sbu-json", b"\xff\xfe", "no JSON object"),
    ],
)
def test_file_of_another_format_is_refused(tmp_path: Path, form: CollectionFormat, data: bytes, says: str):
    with pytest.raises(InputError, match=says):
        read(local(tmp_path), form, data)


def test_declared_digest_is_checked(tmp_path: Path):
    folder, data = local(tmp_path), file_bytes("cc3m-tsv", GOOD)
    folder.write("file", data)
    with pytest.raises(InputError, match="found sha256"):
        rows_of(Collection(name="x", format="cc3m-tsv", url="file", sha256="0" * 64), folder)


def test_one_endless_line_costs_no_memory_and_no_time(tmp_path: Path):
    data = file_bytes("cc3m-tsv", GOOD) + b"x" * (40 << 20) + b"\n" + file_bytes("cc3m-tsv", GOOD)
    began = time.process_time()
    found = read(local(tmp_path), "cc3m-tsv", data)
    assert time.process_time() - began < 5
    assert [isinstance(row, CaptionRow) for row in found] == [True] * 3 + [False] + [True] * 3


def sampled(count: int) -> list[SampledCaption]:
    keys = sorted(hashlib.sha256(bytes([i])).hexdigest()[:32] for i in range(count))
    return [SampledCaption(key, "sbu", f"http://x/{i}", f"c {i}\x00ü") for i, key in enumerate(keys)]


def test_sample_is_read_back_in_the_order_of_keys(place: Folder):
    rows = sampled(50)
    entry = write_captions(place, columns_of(rows))
    assert read_captions(artifact_of(CaptionSet, place, [entry])) == rows
    assert entry.content


def test_sample_out_of_order_or_with_a_key_twice_is_not_written(tmp_path: Path):
    folder, rows = local(tmp_path), sampled(50)
    for wrong in (rows[::-1], [rows[0], *rows]):
        with pytest.raises(StoreError, match="twice or out of order"):
            write_captions(folder, columns_of(wrong))


def test_altered_sample_is_not_read(tmp_path: Path):
    folder = local(tmp_path)
    entry = write_captions(folder, columns_of(sampled(20)))
    artifact = artifact_of(CaptionSet, folder, [entry])
    flip(folder, entry.path, 100)
    with pytest.raises(StoreError, match=r"captions\.parquet: found other bytes"):
        read_captions(artifact)
    cut(folder, entry.path, 100)
    with pytest.raises(StoreError, match="100 bytes"):
        read_captions(artifact)
    foreign = folder.write(entry.path, b"PAR1 no parquet")
    with pytest.raises(StoreError, match="no readable table"):
        read_captions(artifact_of(CaptionSet, folder, [foreign]))


def test_malformed_rows_are_all_listed_and_counted(tmp_path: Path):
    folder, log = local(tmp_path), MalformedLog()
    for number in range(40_000):
        log.add("sbu", "f.json", Malformed(number, "empty caption" if number % 2 else "not UTF-8", "x"))
    entry = log.write(folder)
    found = read_malformed(artifact_of(CaptionSet, folder, [entry]))
    assert [row["row"] for row in found] == list(range(40_000))
    assert found[1] == {"collection": "sbu", "file": "f.json", "row": 1, "reason": "empty caption", "excerpt": "x"}
    assert log.counts == {("sbu", "empty caption"): 20_000, ("sbu", "not UTF-8"): 20_000}


def test_no_malformed_rows_make_an_empty_list(tmp_path: Path):
    folder = local(tmp_path)
    assert read_malformed(artifact_of(CaptionSet, folder, [MalformedLog().write(folder)])) == []
