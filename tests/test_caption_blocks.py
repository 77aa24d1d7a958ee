"""Rows by the thousand are the rows one by one: any bytes in, no crash, every line accounted for."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caption_rows import rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkdiff.schemas.captions import Collection, CollectionFormat
from thinkdiff.schemas.errors import InputError
from thinkdiff.storage.caption_blocks import MalformedRows, Text, arrow_block, tsv_block
from thinkdiff.storage.caption_lines import whole_lines
from thinkdiff.storage.caption_rows import CaptionRow, Malformed, judged, parsed
from thinkdiff.storage.root import Folder

PIECES = st.sampled_from(
    [b"http://a.example/1", b"HTTPS://B/", b"https://", b"http://x/\x00", b"\t", b"\t", b"\n", b"\n", b"\r\n", b"\r",
     b" ", b"a dog", b"caf\xc3\xa9", b"\xc3", b"\xa9", b"\xed\xa0\x80", b"\x7f", b"\x00", b"\xc2\xa0", b"#", b"\xff"]
)  # fmt: skip
FILES = st.lists(PIECES, max_size=60).map(b"".join) | st.binary(max_size=300)
TSV: list[CollectionFormat] = ["cc3m-tsv", "cc12m-tsv"]


def by_line(form: CollectionFormat, data: bytes) -> list[CaptionRow | Malformed]:
    """The definition, line by line."""
    lines = data.split(b"\n")
    return [parsed(form, i, line) for i, line in enumerate(lines[:-1] if not lines[-1] else lines)]


def of_block(block) -> list[CaptionRow | Malformed]:
    return sorted([*block.good(), *block.malformed], key=lambda row: row.row)


@settings(max_examples=400)
@given(FILES, st.sampled_from(TSV), st.integers(0, 7))
def test_block_of_any_bytes_holds_every_line_as_the_definition_has_it(data: bytes, form: CollectionFormat, first: int):
    block = tsv_block(form, np.frombuffer(data, np.uint8), first)
    expected = by_line(form, data)
    assert block.rows == len(expected)
    assert of_block(block) == [parsed(form, first + r.row, line) for r, line in zip(expected, data.split(b"\n"))]  # noqa: B905


@settings(max_examples=200)
@given(FILES, st.lists(st.integers(0, 300), max_size=6), st.integers(1, 40))
def test_splits_of_any_bytes_share_the_lines_out(data: bytes, cuts: list[int], chunk: int):
    bounds = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    found = b""
    for start, stop in pairwise(bounds):
        at = max(start - 1, 0)
        lines = whole_lines(io.BytesIO(data[at:]), at, start > 0, stop, chunk)
        part = b"".join(line.tobytes() for line in lines)
        assert not part or part.endswith(b"\n") or data.endswith(part)
        found += part
    assert found == data


@given(st.lists(st.tuples(st.none() | st.text(max_size=20), st.none() | st.text(max_size=20))))
def test_block_of_arrays_is_judged_pair_by_pair(pairs: list[tuple[str | None, str | None]]):
    pairs = [(url and f"http://{url}", caption) for url, caption in pairs]
    url, caption = (pa.array([pair[i] for pair in pairs], pa.string()) for i in (0, 1))
    assert of_block(arrow_block(url, caption, 3)) == [judged(3 + i, *pair) for i, pair in enumerate(pairs)]


def test_strings_that_are_no_utf_8_are_malformed_though_together_they_are():
    halves = pa.array([b"a \xc3", b"\xa9 b"], pa.binary()).view(pa.string())
    block = arrow_block(pa.array(["http://x/1", "http://x/2"]), halves, 0)
    assert [row.reason for row in block.malformed] == ["not UTF-8", "not UTF-8"]


@given(st.lists(st.binary(max_size=30)))
def test_text_gives_back_its_strings(strings: list[bytes]):
    text = Text.of(pa.array(strings, pa.large_binary()))
    assert text.take().to_pylist() == strings
    chosen = np.arange(1, len(strings), 2)
    assert text.rows(chosen).take().to_pylist() == strings[1::2]


ROWS = [(f"https://a.example/{i}.jpg", f"caption {i} é") for i in range(500)]


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("size", [1 << 30, 1000])
def test_compressed_and_cut_files_hold_the_same_rows(tmp_path: Path, ending: str, size: int):
    data = "".join(f"{url}\t{caption}\r\n" for url, caption in ROWS).encode()
    packed = {
        "": lambda: data,
        ".gz": lambda: gzip.compress(data[:5000]) + gzip.compress(data[5000:]),
        ".bz2": lambda: bz2.compress(data),
        ".zst": lambda: pa.compress(data, codec="zstd", asbytes=True),
    }[ending]()
    (tmp_path / f"x.tsv{ending}").write_bytes(packed)
    found = rows_of(Collection(name="x", format="cc12m-tsv", url=f"x.tsv{ending}"), Folder(str(tmp_path)), size)
    assert found == [CaptionRow(i, *pair) for i, pair in enumerate(ROWS)]
    if ending:
        (tmp_path / f"x.tsv{ending}").write_bytes(packed[: len(packed) // 2])
        with pytest.raises(InputError, match=r"do not decompress|found no rows"):
            rows_of(Collection(name="x", format="cc12m-tsv", url=f"x.tsv{ending}"), Folder(str(tmp_path)), size)


def test_glob_takes_the_files_in_the_order_of_their_names(tmp_path: Path):
    for name, part in (("b/2.tsv", ROWS[200:]), ("a/1.tsv", ROWS[:200]), ("a/other.txt", [])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(f"{caption}\t{url}\n" for url, caption in part))
    found = rows_of(Collection(name="x", format="cc3m-tsv", url="*/*.tsv"), Folder(str(tmp_path)))
    assert found == [CaptionRow(i, *pair) for i, pair in enumerate(ROWS)]


@pytest.mark.parametrize(("form", "column"), [("img2dataset-parquet", "url"), ("hub-parquet", "image_url")])
@pytest.mark.parametrize("size", [1 << 30, 1])
def test_parquet_is_cut_at_its_row_groups(tmp_path: Path, form: CollectionFormat, column: str, size: int):
    table = pa.table({"caption": [c for _, c in ROWS], column: [u for u, _ in ROWS], "x": range(len(ROWS))})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=64)
    found = rows_of(Collection(name="x", format=form, url="x.parquet"), Folder(str(tmp_path)), size)
    assert found == [CaptionRow(i, *pair) for i, pair in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (["image_url", "caption"], "it looks like hub-parquet"),
        (["link", "caption"], "found the columns link, caption"),
    ],
)
def test_parquet_of_other_columns_is_refused_with_a_hint(tmp_path: Path, columns: list[str], says: str):
    pq.write_table(pa.table({name: ["http://x/1"] for name in columns}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=says):
        rows_of(Collection(name="x", format="img2dataset-parquet", url="x.parquet"), Folder(str(tmp_path)))


@pytest.mark.parametrize("harm", ["cut", "flip", "text", "empty"])
def test_damaged_parquet_is_refused_in_a_sentence(tmp_path: Path, harm: str):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"url": [u for u, _ in ROWS], "caption": [c for _, c in ROWS]}), path)
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[100:130] = b"\xff" * 30
    path.write_bytes({"cut": data[:-50], "flip": data, "text": b"caption\turl\n", "empty": b""}[harm])
    with pytest.raises(InputError, match=r"x\.parquet: found"):
        rows_of(Collection(name="x", format="img2dataset-parquet", url="x.parquet"), Folder(str(tmp_path)))


def test_pair_of_text_files_is_read_side_by_side(tmp_path: Path):
    (tmp_path / "urls.txt").write_text("".join(f"{url}\n" for url, _ in ROWS))
    (tmp_path / "captions.txt").write_text("\n".join(caption for _, caption in ROWS))
    pair = Collection(name="sbu", format="sbu-txt", url="urls.txt", captions_url="captions.txt")
    assert rows_of(pair, Folder(str(tmp_path))) == [CaptionRow(i, *row) for i, row in enumerate(ROWS)]
    (tmp_path / "captions.txt").write_text("\n".join(caption for _, caption in ROWS[:-1]))
    with pytest.raises(InputError, match="found another number of lines"):
        rows_of(pair, Folder(str(tmp_path)))
    swapped = Collection(name="sbu", format="sbu-txt", url="captions.txt", captions_url="urls.txt")
    with pytest.raises(InputError, match="exchange url and captions_url"):
        rows_of(swapped, Folder(str(tmp_path)))
    (tmp_path / "captions.txt").unlink()
    with pytest.raises(InputError, match=r"captions\.txt: found no such file"):
        rows_of(pair, Folder(str(tmp_path)))


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1), st.booleans())
@settings(max_examples=60)
def test_lists_of_sbu_are_judged_pair_by_pair(tmp_path_factory, pairs: list[tuple[str, str]], escaped: bool):
    folder = Folder(str(tmp_path_factory.mktemp("sbu")))
    pairs = [("http://x/0", "good")] * 100 + [(f"http://x/{url}", caption) for url, caption in pairs]
    lists = {"image_urls": [p[0] for p in pairs], "captions": [p[1] for p in pairs], "user_ids": []}
    folder.write("x.json", json.dumps(lists, ensure_ascii=escaped, indent=1).encode("utf-8", "surrogatepass"))
    found = rows_of(Collection(name="sbu", format="sbu-json", url="x.json"), folder)
    assert found == [judged(i, *pair) for i, pair in enumerate(pairs)]


def test_malformed_rows_are_packed_and_come_back_in_order():
    rows = [Malformed(i, f"reason {i % 3}", f"\u6f22 {i}") for i in range(10_000)]
    packed = MalformedRows(rows[:5000])
    packed.extend(MalformedRows(rows[5000:9500]))
    packed.extend(MalformedRows(rows[9500:]))
    assert list(packed) == rows
    assert len(packed) == 10_000


BOMBS = """
import sys, resource
from thinkdiff.schemas.captions import Collection
from thinkdiff.storage.caption_shards import collection_splits
from thinkdiff.storage.caption_formats import json_blocks, parquet_blocks
form, path = sys.argv[1:]
readers = {"sbu-json": json_blocks, "img2dataset-parquet": parquet_blocks}
split = collection_splits(Collection(name="x", format=form, url=path), "/", 1 << 30)[0]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
rows = sum(block.rows for block in readers[form](split))
print(rows, peak() - before)
"""


@pytest.mark.parametrize("form", ["sbu-json", "img2dataset-parquet"])
def test_few_bytes_that_hold_much_text_take_little_memory(tmp_path: Path, form: CollectionFormat):
    path, rows = tmp_path / ("x.json.zst" if form == "sbu-json" else "x.parquet"), 1500
    if form == "sbu-json":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(b'{"image_urls":["http://x"' + b',"http://x"' * (rows - 1) + b'],"captions":["ok"')
            for _ in range(rows - 1):
                file.write(b',"' + b"x" * 900_000 + b'"')
            file.write(b"]}")
    else:
        words = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 900_000]))
        table = pa.table({"url": ["http://x"] * rows, "caption": words})
        pq.write_table(table, path, store_schema=False, compression="zstd")
    done = subprocess.run([sys.executable, "-c", BOMBS, form, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, mib = map(int, done.stdout.split())
    assert path.stat().st_size < 200_000
    assert found == rows
    assert mib < 400
