"""The rows of a part of a collection's file, format by format.

In: a `Split`. Out: its rows as `Block`s, from a stream. What a row is stands in `caption_rows.py`, which file a
collection has and how it is cut in `caption_shards.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import IO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from thinkdiff.schemas.captions import CollectionFormat
from thinkdiff.schemas.errors import InputError
from thinkdiff.storage.caption_blocks import Block, arrow_block, lists_block, tsv_block
from thinkdiff.storage.caption_json import JsonError, list_items
from thinkdiff.storage.caption_lines import compression, decompressed, line_chunks, lines_array
from thinkdiff.storage.caption_rows import BYTE_ORDER_MARK, COLUMNS, EXCERPT, MAX_LINE, Malformed, excerpt
from thinkdiff.storage.caption_scan import Bytes
from thinkdiff.storage.image_sources import read_samples, short_batches
from thinkdiff.storage.root import Folder

T = TypeVar("T")
ROWS = 1 << 13  # of a block that is not cut by bytes
BLOCK = 1 << 24  # bytes or characters that end a block before it has its rows
FEW = 1 << 6  # items of a list that are taken without a look at their lengths
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
            batches = short_batches(file, table, [url, caption], range(split.start, split.stop))
            for some in gathered(batches, 1 << 16, lambda batch: batch.num_rows, lambda batch: batch.nbytes):
                left, right = (pa.concat_arrays([batch.column(name) for batch in some]) for name in (url, caption))
                block = arrow_block(left, right, number)
                number += block.rows
                yield block
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{split.where}: found a Parquet file that cannot be read ({str(error)[:80]}), expected a whole one. "
                "Copy it again."
            ) from error


def gathered(parts: Iterable[T], most: int, rows: Callable[[T], int], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Parts in their order, as many together as have `most` rows or BLOCK bytes."""
    held: list[T] = []
    count = held_bytes = 0
    for part in parts:
        held.append(part)
        count, held_bytes = count + rows(part), held_bytes + size(part)
        if count >= most or held_bytes >= BLOCK:
            yield held
            held, count, held_bytes = [], 0, 0
    if held:
        yield held


def tar_blocks(split: Split) -> Iterator[Block]:
    """The captions of a tar of img2dataset's, pictures passed over.

    A sample without url and caption is malformed, and so is, as one row, whatever stands behind a damage.
    """
    urls: list[object] = []
    captions: list[object] = []
    number, size, damage = 0, 0, None
    samples = read_samples(Folder(split.uri), split.name, 0)
    while damage is None:
        try:
            sample = next(samples, None)
        except InputError as error:
            sample, damage = None, str(error)
        if sample is not None:
            urls.append(sample.url or None)
            captions.append(sample.caption or None)
            size += len(sample.url) + len(sample.caption)
        if len(urls) == ROWS or size >= BLOCK or sample is None:
            block = lists_block(urls, captions, number)
            if damage is not None:
                block.malformed.add(Malformed(number + block.rows, "the tar is damaged from here on", excerpt(damage)))
                block = replace(block, rows=block.rows + 1)
            yield block
            number += len(urls)
            urls, captions, size = [], [], 0
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
        try:
            for some in gathered(few_pairs(*sides), ROWS, lambda part: len(part[0]), characters):
                urls, captions = (list(chain.from_iterable(lists)) for lists in zip(*some, strict=True))
                if len(urls) != len(captions):
                    raise no_lists
                yield string_block(urls, captions, number)
                number += len(urls)
        except JsonError as error:
            raise no_lists from error


class Odd:
    """An item that is no string; of what it is only that is kept which an excerpt shows."""

    def __init__(self, item: object) -> None:
        self._shown = repr(item)[:EXCERPT]

    def __repr__(self) -> str:
        return self._shown


def few_pairs(*sides: Iterator[object]) -> Iterator[tuple[list[object], ...]]:
    """The next FEW items of each list, until none has any; of a string too long for a row its beginning."""
    while True:
        lists = tuple([item if short(item) else shortened(item) for item in islice(side, FEW)] for side in sides)
        if not any(lists):
            return
        yield lists


def short(item: object) -> bool:
    """Whether an item is kept as it is."""
    return len(item) <= MAX_LINE if isinstance(item, str) else item is None


def shortened(item: object) -> object:
    """What has the same reason and the same excerpt as an item that makes its row malformed."""
    return item[: MAX_LINE + 1] if isinstance(item, str) else Odd(item)


def characters(lists: Iterable[list[object]]) -> int:
    """Characters of the strings in some lists."""
    return sum(len(item) for items in lists for item in items if isinstance(item, str))


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
