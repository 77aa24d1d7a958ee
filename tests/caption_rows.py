"""All rows of a collection in order, for tests that compare them with what was written."""

from __future__ import annotations

from dataclasses import replace

from thinkdiff.schemas.captions import Collection
from thinkdiff.storage.caption_rows import CaptionRow, Malformed
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
