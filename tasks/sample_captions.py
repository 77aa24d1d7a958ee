"""Stage 1. Collections as people have them -> a uniform sample of captions, the same whatever the order of rows.

Every distinct (collection, URL, caption) has a key; the n smallest keyed hashes win (bottom-n), so memory is constant
in the size of the collections. Malformed rows are counted and listed with their numbers, never silently dropped.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from typing import TYPE_CHECKING

from thinkdiff.schemas.captions import CaptionSet, CaptionSpec, sample_key
from thinkdiff.schemas.errors import InputError
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    from thinkdiff.storage.caption_sample import SampledCaption


class BottomN:
    """The n captions of the smallest keyed hash, each key once."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.salt = n, seed.to_bytes(8, "little")
        self._heap: list[tuple[int, str]] = []
        self._kept: dict[str, SampledCaption] = {}
        self.duplicates = 0

    def offer(self, caption: SampledCaption) -> None:
        """Keeps the caption if it is among the n smallest so far."""
        key = caption.key
        if key in self._kept:
            self.duplicates += 1
            return
        hashed = hashlib.blake2b(key.encode(), digest_size=16, key=self.salt, person=b"thinkdiff-sample").digest()
        entry = (-int.from_bytes(hashed, "big"), key)
        if len(self._heap) < self.n:
            heapq.heappush(self._heap, entry)
        else:
            dropped = heapq.heappushpop(self._heap, entry)
            if dropped[1] == key:
                return
            del self._kept[dropped[1]]
        self._kept[key] = caption

    def sample(self) -> list[SampledCaption]:
        """The sample in the order of the keys."""
        return [self._kept[key] for key in sorted(self._kept)]


@step(CaptionSet)
def sample_captions(work: Work, spec: CaptionSpec) -> Made:
    """Draws the sample and writes it as one Parquet file beside the list of malformed rows."""
    from thinkdiff.storage.caption_sample import MalformedLog, SampledCaption, write_captions
    from thinkdiff.storage.caption_shards import CaptionFile, Malformed

    race, malformed, first = BottomN(spec.n, spec.seed), MalformedLog(), ""
    rows: Counter[str] = Counter()
    digests: dict[str, str | None] = {}
    with work.progress(len(spec.collections), "collections") as progress:
        for collection in spec.collections:
            file, name = CaptionFile.of(collection, work.run.data_root), collection.name
            for row in file:
                rows[name] += 1
                if isinstance(row, Malformed):
                    malformed.add(name, collection.url, row)
                    first = first or f"{collection.url} row {row.row + 1}: {row.reason}"
                    continue
                key = sample_key(name, row.url, row.caption)
                race.offer(SampledCaption(key, name, row.url, row.caption, collection.url, row.row))
            digests[name] = file.sha256
            progress.advance()
    bad = malformed.counts.total()
    if bad:
        work.log.warning("sample_captions: found %d malformed rows, first %s; malformed.parquet lists all.", bad, first)
    sample = race.sample()
    if len(sample) < spec.n:
        raise InputError(
            f"sample_captions: found {len(sample)} distinct captions in {rows.total()} rows ({bad} malformed), "
            f"expected at least n = {spec.n}. Lower n or add a collection."
        )
    taken = Counter(caption.collection for caption in sample)
    return Made(
        files=(write_captions(work.folder, sample), malformed.write(work.folder)),
        counts={
            "captions": len(sample),
            "rows": rows.total(),
            "malformed": bad,
            "duplicates_met": race.duplicates,
            **{f"rows_{name}": count for name, count in rows.items()},
            **{f"sampled_{name}": count for name, count in taken.items()},
        },
        stats={
            "collection_sha256": digests,
            "malformed": {f"{name}: {reason}": count for (name, reason), count in malformed.counts.items()},
        },
        page="\n".join(f"- `{caption.caption[:100]}` ({caption.collection})" for caption in sample[:10]),
    )
