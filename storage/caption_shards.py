"""Image-caption collections as people have them: their files, cut into splits that can be read side by side.

In: a `Collection`, whose format is declared. Out: `Split`s, and the rows of a split as `Block`s, from a stream. Plain
TSV is cut at any byte, Parquet at its row groups; a compressed file, a JSON file, a pair of text files and a tar are
one split each. A header line as img2dataset wants it is skipped. Row numbers count from 0 in a split; a file's own are
known when the splits before it have been read.

What a row is stands in `caption_rows.py`; the files that the sample is written to are in `caption_sample.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from thinkdiff.schemas.captions import Collection, CollectionFormat
from thinkdiff.schemas.errors import InputError
from thinkdiff.storage.caption_blocks import Block, Bytes, arrow_block, lists_block, tsv_block
from thinkdiff.storage.caption_lines import COMPRESSIONS, compression, line_chunks, lines_array, open_stream
from thinkdiff.storage.caption_rows import (
    BYTE_ORDER_MARK,
    COLUMNS,
    MAX_LINE,
    SWAPPED,
    Malformed,
    excerpt,
)
from thinkdiff.storage.image_sources import read_samples
from thinkdiff.storage.root import Folder, locate, matching

MAX_JSON = 1 << 30
PROBE = 100
ROWS = 1 << 13  # of a block that is not cut by bytes
HINTS: dict[CollectionFormat, str] = {
    "cc3m-tsv": "it looks like cc12m-tsv; declare that format.",
    "cc12m-tsv": "it looks like cc3m-tsv; declare that format.",
    "sbu-json": "exchange the two lists.",
    "sbu-txt": "exchange url and captions_url.",
}
PARQUET: dict[CollectionFormat, tuple[str, str]] = {
    "img2dataset-parquet": ("url", "caption"),
    "hub-parquet": ("image_url", "caption"),
}


@dataclass(frozen=True)
class Split:
    """A part of a collection's file that can be read by itself.

    `start` and `stop` are bytes of a plain TSV file (the split owns the lines that begin there), row groups of a
    Parquet file, and 0 and the size in bytes of any other file; `bytes` is about how much of the file it reads.
    """

    collection: str
    form: CollectionFormat
    uri: str
    name: str
    start: int
    stop: int
    bytes: int
    captions: str | None = None  # of sbu-txt: the path of the other file

    @property
    def where(self) -> str:
        """The full path or URL, for messages."""
        return Folder(self.uri).full(self.name)


def collection_files(collection: Collection, data_root: str) -> list[tuple[Folder, str]]:
    """Folder and name of each file, sorted. Raises InputError when there is none."""
    found = matching(data_root, collection.url)
    if not found:
        folder, name = locate(data_root, collection.url)
        raise InputError(
            f"{folder.uri}/{name}: found no such file, expected a collection of format {collection.format}. Relative "
            "urls start at the data root; check the path and --data."
        )
    return found


def collection_splits(collection: Collection, data_root: str, size: int) -> list[Split]:
    """The splits of a collection, each of about `size` bytes at most where its format can be cut, in file order.

    Raises InputError for a file that is missing, empty, or of another digest than declared.
    """
    files = collection_files(collection, data_root)
    if collection.sha256 is not None:
        check_digest(files, collection.sha256)
    other = None
    if collection.captions_url is not None:
        folder, name = locate(data_root, collection.captions_url)
        other = folder.full(name)
    found: list[Split] = []
    for folder, name in files:
        length = folder.size(name)
        whole = Split(collection.name, collection.format, folder.uri, name, 0, length, length, other)
        if not length:
            raise InputError(
                f"{whole.where}: found an empty file, expected a collection of format {collection.format}. "
                "Copy it again."
            )
        if collection.format in PARQUET:
            cuts = row_group_cuts(whole, size)
        elif collection.format in COLUMNS and compression(name) is None:
            parts = max(1, -(-length // size))
            cuts = [length * i // parts for i in range(parts + 1)]
        else:
            cuts = [0, length]
        found += [
            Split(whole.collection, whole.form, whole.uri, name, *cut, length // (len(cuts) - 1), other)
            for cut in pairwise(cuts)
        ]
    return found


def check_digest(files: list[tuple[Folder, str]], expected: str) -> None:
    """Raises InputError unless there is one file and it has that sha256."""
    if len(files) > 1:
        raise InputError(f"{files[0][0].uri}: found {len(files)} files, expected the one whose sha256 is declared.")
    folder, name = files[0]
    found = folder.hash(name).sha256
    if found != expected:
        raise InputError(
            f"{folder.full(name)}: found sha256 {found}, expected {expected} as declared. It is another version of "
            "the collection; take the right file or change the declaration."
        )


def read_blocks(split: Split) -> Iterator[Block]:
    """The rows of a split. Raises InputError when the file is of another format than declared, or cut off."""
    if split.form in COLUMNS:
        blocks = tsv_blocks(split)
    elif split.form in PARQUET:
        blocks = parquet_blocks(split)
    elif split.form == "sbu-txt":
        blocks = pair_blocks(split)
    elif split.form == "webdataset":
        blocks = tar_blocks(split)
    else:
        blocks = json_blocks(split)
    if split.start:
        yield from blocks
        return
    first = next(blocks, None)
    check_format(split, first)
    assert first is not None
    yield first
    yield from blocks


def tsv_blocks(split: Split) -> Iterator[Block]:
    """The lines that begin in a split."""
    number, first = 0, split.start == 0
    stop = None if compression(split.name) else split.stop
    for lines in line_chunks(Folder(split.uri), split.name, split.start, stop):
        if first:
            first = False
            lines = without_header(split, lines)
            if not len(lines):
                continue
        block = tsv_block(split.form, lines, number)
        number += block.rows
        yield block


def rows_per_byte(split: Split) -> tuple[float, Block | None]:
    """About how many rows a byte of a file holds, by its beginning; and that beginning, where it is cheap to read.

    It counts too few rather than too many.
    """
    folder = Folder(split.uri)
    if split.form in PARQUET:
        with folder.open(split.name) as file:
            metadata = parquet_file(split, file).metadata
        return metadata.num_rows / folder.size(split.name), next(read_blocks(split), None)
    if split.form == "webdataset":
        block = next(read_blocks(split))
        return block.rows / split.bytes, block
    if split.form == "sbu-json":
        with open_stream(folder, split.name) as stream:
            head = stream.read(1 << 20)
        expansion = 4 if compression(split.name) else 1
        return expansion * head.count(b'"http') / max(len(head), 1) / 4, None
    block = next(read_blocks(split))
    with open_stream(folder, split.name) as stream:
        lines = stream.read(1 << 20)
    expansion = 3 if compression(split.name) else 1
    return expansion * max(lines.count(b"\n"), 1) / len(lines), block


def without_header(split: Split, lines: Bytes) -> Bytes:
    """The lines without byte order mark and header. Raises InputError for a header of the other column order."""
    if lines[:3].tobytes() == BYTE_ORDER_MARK:
        lines = lines[3:]
    line, newline, _ = lines[: MAX_LINE + 1].tobytes().partition(b"\n")
    names = tuple(line.decode("utf-8", "replace").strip().lower().split("\t"))
    if names == COLUMNS[split.form][::-1]:
        raise swapped(split)
    return lines[len(line) + len(newline) :] if names == COLUMNS[split.form] else lines


def pair_blocks(split: Split) -> Iterator[Block]:
    """The lines of two text files side by side. Raises InputError when they have not as many lines."""
    assert split.captions is not None
    parent, _, name = split.captions.rpartition("/")
    places = ((split.uri, split.name), (parent, name))
    sides = [Lines(line_chunks(Folder(uri), name, 0, None)) for uri, name in places]
    number = 0
    while count := min(side.ready() for side in sides):
        urls, captions = (side.take(count) for side in sides)
        yield arrow_block(urls, captions, number)
        number += count
    if any(side.ready() for side in sides):
        raise InputError(
            f"{split.where}: found another number of lines than in {split.captions} (they part after {number}), "
            "expected as many. One of the two was cut off; copy them again."
        )


class Lines:
    """Lines of a stream, taken by number."""

    def __init__(self, chunks: Iterator[Bytes]) -> None:
        self._chunks = chunks
        self._held = pa.array([], pa.large_string())

    def ready(self) -> int:
        """How many lines can be taken; 0 at the end."""
        while not len(self._held) and (chunk := next(self._chunks, None)) is not None:
            self._held = lines_array(chunk)
        return len(self._held)

    def take(self, count: int) -> pa.Array:
        """The next lines."""
        taken, self._held = self._held[:count], self._held[count:]
        return taken


def row_group_cuts(split: Split, size: int) -> list[int]:
    """Where to cut a Parquet file so that every part has about `size` bytes."""
    with Folder(split.uri).open(split.name) as file:
        metadata = parquet_file(split, file).metadata
    cuts, held = [0], 0
    for group in range(metadata.num_row_groups):
        held += metadata.row_group(group).total_byte_size
        if held >= size or group == metadata.num_row_groups - 1:
            cuts.append(group + 1)
            held = 0
    if len(cuts) == 1:
        raise InputError(f"{split.where}: found no rows, expected a collection of format {split.form}.")
    return cuts


def parquet_file(split: Split, file: IO[bytes]) -> pq.ParquetFile:
    """A Parquet file with the declared columns. Raises InputError when it is none."""
    wanted = PARQUET[split.form]
    try:
        found = pq.ParquetFile(file)
        kinds = {name: found.schema_arrow.field(name).type for name in found.schema_arrow.names}
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InputError(
            f"{split.where}: found no readable Parquet file ({str(error)[:80]}), expected format {split.form}."
        ) from error
    strings = (pa.string(), pa.large_string(), pa.string_view())
    if any(kinds.get(name) not in strings for name in wanted):
        other = next((form for form, names in PARQUET.items() if set(names) <= set(kinds)), None)
        hint = f"it looks like {other}; declare that format." if other else "Declare the format that the file has."
        raise InputError(
            f"{split.where}: found the columns {', '.join(kinds)}, expected strings {' and '.join(wanted)}: {hint}"
        )
    return found


def parquet_blocks(split: Split) -> Iterator[Block]:
    """The rows of some row groups."""
    url, caption = PARQUET[split.form]
    with Folder(split.uri).open(split.name) as file:
        table = parquet_file(split, file)
        number = 0
        try:
            for batch in table.iter_batches(
                1 << 16, row_groups=list(range(split.start, split.stop)), columns=[url, caption]
            ):
                block = arrow_block(batch.column(url), batch.column(caption), number)
                number += block.rows
                yield block
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{split.where}: found a Parquet file that cannot be read ({str(error)[:80]}), expected a whole one. "
                "Copy it again."
            ) from error


def tar_blocks(split: Split) -> Iterator[Block]:
    """The captions of a tar of img2dataset's, pictures passed over.

    A sample without url and caption is malformed, and so is, as one row, whatever stands behind a damage.
    """
    urls: list[object] = []
    captions: list[object] = []
    number, damage = 0, None
    samples = read_samples(Folder(split.uri), split.name, 0)
    while damage is None:
        try:
            sample = next(samples, None)
        except InputError as error:
            sample, damage = None, str(error)
        if sample is not None:
            urls.append(sample.url or None)
            captions.append(sample.caption or None)
        if len(urls) == ROWS or sample is None:
            block = lists_block(urls, captions, number)
            if damage is not None:
                bad = Malformed(number + block.rows, "the tar is damaged from here on", excerpt(damage))
                block = replace(block, rows=block.rows + 1, malformed=[*block.malformed, bad])
            yield block
            number += len(urls)
            urls, captions = [], []
        if sample is None:
            return


def json_blocks(split: Split) -> Iterator[Block]:
    """The pairs of SBU's parallel lists. Read by Arrow, and pair by pair where it finds anything unusual."""
    with open_stream(Folder(split.uri), split.name) as stream:
        data = stream.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise InputError(f"{split.where}: found more than {MAX_JSON} bytes, expected a smaller sbu-json file.")
    lists = json_lists(data)
    if lists is None:
        yield json_block_by_pairs(split, data)
        return
    del data
    urls, captions = lists
    for first in range(0, max(len(urls), 1), ROWS):
        yield arrow_block(urls.slice(first, ROWS), captions.slice(first, ROWS), first)


def json_lists(data: bytes) -> tuple[pa.Array, pa.Array] | None:
    """The two lists of one JSON object as Arrow reads them; None where anything in it is unusual."""
    strings = pa.list_(pa.string())
    schema = pa.schema([("image_urls", strings), ("captions", strings)])
    parsing = pj.ParseOptions(schema, newlines_in_values=True, unexpected_field_behavior="ignore")
    reading = pj.ReadOptions(use_threads=False, block_size=min(len(data) + 1, 2**31 - 1))
    try:
        table = pj.read_json(pa.BufferReader(data), reading, parsing)
        urls, captions = (table.column(name).combine_chunks().flatten() for name in ("image_urls", "captions"))
    except (pa.ArrowException, ValueError):
        return None
    return (urls, captions) if table.num_rows == 1 and len(urls) == len(captions) else None


def json_block_by_pairs(split: Split, data: bytes) -> Block:
    """All pairs of SBU's lists, one by one. Raises InputError when the file holds no such lists."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    urls, captions = (found.get("image_urls"), found.get("captions")) if isinstance(found, dict) else (None, None)
    if not isinstance(urls, list) or not isinstance(captions, list) or len(urls) != len(captions):
        raise InputError(
            f"{split.where}: found no JSON object with lists image_urls and captions of one length, expected "
            "format sbu-json. Declare the format that the file has, or copy the file again."
        )
    return lists_block(urls, captions, 0)


def check_format(split: Split, block: Block | None) -> None:
    """Raises InputError when the beginning of a file is not of the declared format."""
    if block is None or not block.rows:
        raise InputError(f"{split.where}: found no rows, expected a collection of format {split.form}.")
    head = min(block.rows, PROBE)
    good = int(np.searchsorted(block.number, head))
    bad = [row for row in block.malformed if row.row < head]
    if sum(row.reason == SWAPPED for row in bad) > good:
        raise swapped(split)
    if not good:
        raise InputError(
            f"{split.where}: found no good row among the first {head} (row 0: {bad[0].reason}), expected format "
            f"{split.form}. Declare the format that the file has; a compressed file's name ends in "
            f"{', '.join(COMPRESSIONS)}."
        )


def swapped(split: Split) -> InputError:
    """The sentence for columns in the other order."""
    hint = HINTS.get(split.form, "exchange the two columns.")
    return InputError(
        f"{split.where}: found the url where format {split.form} has the caption, expected the other order: {hint}"
    )
