"""Rows of a collection as they are read, and of a sample as they are written, for tests."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from thinkdiff.schemas.captions import Collection
from thinkdiff.storage.caption_rows import CaptionRow, Malformed
from thinkdiff.storage.caption_sample import SampledCaption
from thinkdiff.storage.caption_shards import collection_splits, read_blocks
from thinkdiff.storage.root import Folder


def rows_of(collection: Collection, place: Folder, size: int = 1 << 30) -> list[CaptionRow | Malformed]:
    """The rows of a collection below `place`, cut into splits of about that many bytes; every number once."""
    found: dict[int, CaptionRow | Malformed] = {}
    begin = 0
    for split in collection_splits(collection, place.uri, size):
        number = 0
        for block in read_blocks(split):
            for row in (*block.good(), *block.malformed):
                assert begin + row.row not in found
                found[begin + row.row] = replace(row, row=begin + row.row)
            number += block.rows
        begin += number
    assert sorted(found) == list(range(begin))
    return [found[number] for number in range(begin)]


def columns_of(rows: list[SampledCaption]) -> dict[str, pa.Array]:
    """Rows of a sample as the columns that are written."""
    return {name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in SampledCaption._fields}
