"""Image-caption collections as people have them: their files, cut into splits that can be read side by side.

In: a `Collection`, whose format is declared. Out: `Split`s, and the rows of a split as `Block`s, from a stream. Plain
TSV is cut at any byte, Parquet at its row groups; a compressed file, a JSON file, a pair of text files and a tar are
one split each. A header line as img2dataset wants it is skipped. Row numbers count from 0 in a split; a file's own are
known when the splits before it have been read.

What a row is stands in `caption_rows.py`; the files that the sample is written to are in `caption_sample.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from thinkdiff.schemas.captions import Collection
from thinkdiff.schemas.errors import InputError
from thinkdiff.storage.caption_blocks import Block
from thinkdiff.storage.caption_formats import (
    PARQUET,
    Split,
    json_blocks,
    pair_blocks,
    parquet_blocks,
    parquet_file,
    swapped,
    tar_blocks,
    tsv_blocks,
)
from thinkdiff.storage.caption_lines import COMPRESSIONS, compression, open_stream
from thinkdiff.storage.caption_rows import COLUMNS, SWAPPED
from thinkdiff.storage.root import Folder, locate, matching

PROBE = 100


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
