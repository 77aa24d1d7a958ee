"""The draw: which rows of the collections are in the sample, whatever their order and however they are cut.

In: splits of collections, a seed, filters, a limit. Out of a split: the rows whose keyed URL hash lies below the limit
(`candidates`), and counts of all others. Out of all of them together: the n rows of the smallest hashes, each URL once
(`lowest`). The limit is guessed from the beginning of the files so that about a tenth too many rows come together; it
changes no result, since too few rows for n say so and are drawn again under a higher one.

A row's priority is its hash over its collection's weight (Ohlsson 1998); the smaller goes first.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import methodcaller

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from thinkdiff.schemas.captions import CaptionSpec
from thinkdiff.storage.caption_blocks import MalformedRows, Text
from thinkdiff.storage.caption_formats import Split
from thinkdiff.storage.caption_scan import gather
from thinkdiff.storage.caption_shards import read_blocks, rows_per_byte
from thinkdiff.tasks.caption_filters import REASONS, reasons
from thinkdiff.tasks.url_hash import url_hashes

SPAN = 2.0**64
NOTHING = pa.scalar(b"", pa.large_binary())
BATCH = 1 << 16
MARGIN = 1.1  # candidates for each caption of the sample


@dataclass(frozen=True)
class Columns:
    """N rows of a split: hashes of URLs, keys as two numbers each, numbers in the split, and texts as bytes."""

    hashes: npt.NDArray[np.uint64]
    keys: npt.NDArray[np.uint64]
    number: npt.NDArray[np.int64]
    url: pa.Array
    caption: pa.Array


@dataclass(frozen=True)
class Tally:
    """What became of all the rows of a split."""

    rows: int
    filtered: Counter[str]
    malformed: MalformedRows


def candidates(split: Split, spec: CaptionSpec, limit: float) -> tuple[Tally, Columns]:
    """The rows of a split whose priority is below `limit` (a share of all that there are, 1 for all of them)."""
    weight = next(c.weight for c in spec.collections if c.name == split.collection)
    below = np.uint64(min(limit * weight * SPAN, SPAN - 2048))
    everything = limit * weight >= 1
    rows, counts = 0, np.zeros(len(REASONS) + 1, np.int64)
    malformed = MalformedRows()
    hashes, numbers, urls, captions = [], [], [], []
    for block in read_blocks(split):
        codes = reasons(block.caption, spec.filters)
        counts += np.bincount(codes, minlength=len(counts))
        kept = np.flatnonzero(codes == 0)
        found = url_hashes(block.url.rows(kept), spec.seed)
        low = np.arange(len(found)) if everything else np.flatnonzero(found < below)
        kept = kept[low]
        hashes.append(found[low])
        numbers.append(block.number[kept])
        urls.append(block.url.rows(kept).take())
        captions.append(block.caption.rows(kept).take())
        malformed.extend(block.malformed)
        rows += block.rows
    filtered = Counter({reason: int(count) for reason, count in zip(REASONS, counts[1:], strict=True) if count})
    url, caption = joined(urls), joined(captions)
    return Tally(rows, filtered, malformed), Columns(
        np.concatenate(hashes or [np.zeros(0, np.uint64)]),
        keys_of(split.collection, url, caption),
        np.concatenate(numbers or [np.zeros(0, np.int64)]),
        url,
        caption,
    )


def first_limit(splits: Sequence[Split], spec: CaptionSpec) -> float:
    """A limit that about MARGIN times n rows lie below, by what the beginning of each collection's files holds."""
    share = {name: 0.0 for name in dict.fromkeys(split.collection for split in splits)}
    expected = 0.0
    for name in share:
        these = [split for split in splits if split.collection == name]
        per_byte, kept = beginning(these[0], spec)
        weight = next(c.weight for c in spec.collections if c.name == name)
        expected += sum(split.bytes for split in these) * per_byte * kept * weight
    return min(1.0, (MARGIN * spec.n + 6 * spec.n**0.5) / expected) if expected else 1.0


def beginning(split: Split, spec: CaptionSpec) -> tuple[float, float]:
    """Rows for each byte of a file, and the share of them that no filter leaves out."""
    per_byte, block = rows_per_byte(split)
    if block is None:
        return per_byte, 1.0
    kept = int((reasons(block.caption, spec.filters) == 0).sum())
    return per_byte, kept / block.rows


@dataclass(frozen=True)
class Drawn:
    """The sample, in the order of its keys, as columns; `file` and `row` say where each stood."""

    key: pa.Array
    collection: pa.Array
    url: pa.Array
    caption: pa.Array
    file: pa.Array
    row: pa.Array
    duplicates: int  # rows left out because a row of the sample has their URL
    same_captions: int  # rows left out because a row of a smaller priority has their caption
    distinct: float  # estimate of how many URLs there are in all, those filtered out not counted


def lowest(splits: Sequence[Split], tallies: Sequence[Tally], found: list[Columns], spec: CaptionSpec) -> Drawn | int:
    """The n rows of the lowest priorities, or how many there are when they are fewer.

    Empties the list `found`, so that the candidates are not held twice.
    """
    names = [c.name for c in spec.collections]
    weights = np.array([c.weight for c in spec.collections])
    of_split = np.repeat(np.arange(len(splits)), [len(part.hashes) for part in found])
    collection = np.array([names.index(split.collection) for split in splits], np.int64)[of_split]
    hashes = np.concatenate([part.hashes for part in found])
    priority = hashes.astype(np.float64) / weights[collection]
    number = np.concatenate([part.number for part in found]) + first_rows(splits, tallies)[of_split]
    keys = np.concatenate([part.keys for part in found])
    urls, captions = [part.url for part in found], [part.caption for part in found]
    found.clear()

    order = np.argsort(hashes)
    begins = np.flatnonzero(np.append(True, np.diff(hashes[order]) != 0)) if len(order) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(begins, len(order)))
    winners = order[begins]
    repeated = np.flatnonzero(np.repeat(sizes > 1, sizes))  # places in `order` of rows that share their URL
    if len(repeated):
        rows = order[repeated]
        group = np.repeat(np.arange(len(sizes)), sizes)[repeated]
        best = np.lexsort((rows, keys[rows, 1], keys[rows, 0], priority[rows], group))
        head = np.append(True, np.diff(group[best]) != 0)
        winners[group[best][head]] = rows[best][head]
    first = np.lexsort((hashes[winners], priority[winners])) if len(set(weights)) > 1 else np.arange(len(winners))
    same = 0
    if spec.distinct_captions:
        codes = picked(captions, winners[first]).dictionary_encode().indices.to_numpy()
        unseen = np.sort(np.unique(codes, return_index=True)[1])
        same = int(unseen[spec.n - 1] - spec.n + 1) if len(unseen) >= spec.n else len(first) - len(unseen)
        first = first[unseen]
    if len(first) < spec.n:
        return len(first)
    first = first[: spec.n]
    taken = winners[first]
    highest = float(priority[taken[-1]]) * float(weights.max()) / SPAN
    taken = taken[sorting(keys[taken])]
    url, caption = picked(urls, taken), picked(captions, taken)
    urls.clear()
    captions.clear()
    pa.default_memory_pool().release_unused()
    return Drawn(
        key=hex_keys(keys[taken]),
        collection=pa.array(names, pa.string()).take(collection[taken]),
        url=url,
        caption=caption,
        file=pa.array([split.where for split in splits], pa.string()).take(of_split[taken]),
        row=pa.array(number[taken]),
        duplicates=int((sizes[first] - 1).sum()),
        same_captions=same,
        distinct=(spec.n + same - 1) / highest if len(set(weights)) == 1 and spec.n > 1 else float("nan"),
    )


def joined(parts: list[pa.Array]) -> pa.Array:
    """Byte strings one behind the other; empties the list, so that none is held twice."""
    whole = pa.concat_arrays(parts or [pa.array([], pa.large_binary())])
    parts.clear()
    return whole


def picked(parts: Sequence[pa.Array], rows: npt.NDArray[np.intp]) -> pa.Array:
    """Some rows of arrays that count as one, in the order asked, as strings; the whole is never put together."""
    texts = [Text.of(part) for part in parts]
    first = np.cumsum([0, *map(len, texts)])
    order = np.argsort(rows)
    cuts = np.searchsorted(rows[order], first)
    shares = [order[begin:end] for begin, end in pairwise(cuts)]
    chosen = [text.rows(rows[share] - begin) for text, share, begin in zip(texts, shares, first, strict=False)]
    sizes = np.empty(len(rows), np.int64)
    for text, share in zip(chosen, shares, strict=True):
        sizes[share] = text.end - text.start
    ends = np.concatenate([[0], np.cumsum(sizes)])
    data = np.empty(ends[-1], np.uint8)
    for text, share in zip(chosen, shares, strict=True):
        gather(text.data, text.start, text.end, data, ends[share])
    return pa.LargeStringArray.from_buffers(len(rows), pa.py_buffer(ends), pa.py_buffer(data))


def first_rows(splits: Sequence[Split], tallies: Sequence[Tally]) -> npt.NDArray[np.int64]:
    """The number that the first row of each split has in its file."""
    seen: Counter[str] = Counter()
    first = []
    for split, part in zip(splits, tallies, strict=True):
        first.append(seen[split.where])
        seen[split.where] += part.rows
    return np.array(first, np.int64)


def keys_of(collection: str, url: pa.Array, caption: pa.Array) -> npt.NDArray[np.uint64]:
    """(N, 2) `sample_key` of each row as two numbers, the first half of its digits and the second; from bytes."""
    name = collection.encode()
    head = pa.scalar(len(name).to_bytes(8, "little") + name, pa.large_binary())
    digests = []
    for first in range(0, len(url), BATCH):
        fields = [array.slice(first, BATCH) for array in (url, caption)]
        sized = [part for array in fields for part in (sizes_of(array), array)]
        records = pc.call_function("binary_join_element_wise", [head, *sized, NOTHING]).to_pylist()
        digests += map(methodcaller("digest"), map(hashlib.sha256, records))
    return np.frombuffer(b"".join(digests), ">u8").reshape(-1, 4)[:, :2].astype(np.uint64)


def sorting(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """The order of keys; by their first halves alone where these differ, which is ten times as fast."""
    order = np.argsort(keys[:, 0])
    first = keys[order, 0]
    return order if (first[1:] != first[:-1]).all() else np.lexsort((keys[:, 1], keys[:, 0]))


def sizes_of(array: pa.Array) -> pa.Array:
    """The length of each string as `sample_key` writes it: eight bytes, little-endian."""
    lengths = pc.call_function("binary_length", [array]).to_numpy(zero_copy_only=False).astype("<u8")
    fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), len(array), [None, pa.py_buffer(lengths)])
    return fixed.cast(pa.large_binary())


def hex_keys(keys: npt.NDArray[np.uint64]) -> pa.Array:
    """Keys as 32 hex digits each."""
    digits = keys.astype(">u8").tobytes().hex().encode()
    ends = np.arange(0, len(digits) + 1, 32, dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(keys), pa.py_buffer(ends), pa.py_buffer(digits))
