"""The rows of a part of a collection's file, format by format.

In: a `Split`. Out: its rows as `Block`s, from a stream. What a row is stands in `caption_rows.py`, which file a
collection has and how it is cut in `caption_shards.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from thinkdiff.schemas.captions import CollectionFormat
from thinkdiff.schemas.errors import InputError
from thinkdiff.storage.caption_blocks import Block, arrow_block, lists_block, tsv_block
from thinkdiff.storage.caption_json import JsonError, list_items
from thinkdiff.storage.caption_lines import compression, decompressed, line_chunks, lines_array
from thinkdiff.storage.caption_rows import BYTE_ORDER_MARK, COLUMNS, MAX_LINE, Malformed, excerpt
from thinkdiff.storage.caption_scan import Bytes
from thinkdiff.storage.image_sources import read_samples
from thinkdiff.storage.root import Folder

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
    """The pairs of SBU's parallel lists. Raises InputError when the file holds no such lists."""
    no_lists = InputError(
        f"{split.where}: found no JSON object with lists image_urls and captions of one length, expected format "
        "sbu-json. Declare the format that the file has, or copy the file again."
    )
    folder, number = Folder(split.uri), 0
    with decompressed(folder, split.name) as one, decompressed(folder, split.name) as other:
        sides = list_items(one, "image_urls"), list_items(other, "captions", whole=True)
        while True:
            try:
                urls, captions = (list(islice(side, ROWS)) for side in sides)
            except JsonError as error:
                raise no_lists from error
            if len(urls) != len(captions):
                raise no_lists
            if not urls:
                return
            yield string_block(urls, captions, number)
            number += len(urls)


def string_block(urls: list[object], captions: list[object], first: int) -> Block:
    """The block of two lists of strings, or of anything else."""
    try:
        url, caption = (pa.array(values, pa.large_string()) for values in (urls, captions))
    except (pa.ArrowException, UnicodeError, TypeError):  # an item is no string, or not valid Unicode
        return lists_block(urls, captions, first)
    return arrow_block(url, caption, first)


def swapped(split: Split) -> InputError:
    """The sentence for columns in the other order."""
    hint = HINTS.get(split.form, "exchange the two columns.")
    return InputError(
        f"{split.where}: found the url where format {split.form} has the caption, expected the other order: {hint}"
    )
