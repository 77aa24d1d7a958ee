"""Stage 1. Collections as people have them -> a uniform sample of captions, the same whatever the order of rows.

Every distinct (collection, URL, caption) has a key; the n smallest keyed hashes win (bottom-n), so memory is constant in
the size of the collections. Malformed rows are counted and listed with their line numbers, never silently dropped.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass

from thinkdiff.schemas.captions import CaptionSet, CaptionSpec, Collection, sample_key
from thinkdiff.schemas.errors import InputError
from thinkdiff.tasks.step import Made, Work, step

MALFORMED_KEPT = 1000


@dataclass(frozen=True)
class Candidate:
    """A caption in the race for the sample, with where it was seen first."""

    key: str
    collection: str
    url: str
    caption: str
    file: str
    row: int


class BottomN:
    """The n candidates of the smallest keyed hash, each key once."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.salt = n, seed.to_bytes(8, "little")
        self._heap: list[tuple[int, str]] = []
        self._kept: dict[str, Candidate] = {}
        self.duplicates = 0

    def offer(self, candidate: Candidate) -> None:
        """Keeps the candidate if it is among the n smallest so far."""
        key = candidate.key
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
        self._kept[key] = candidate

    def sample(self) -> list[Candidate]:
        """The sample in the order of the keys."""
        return [self._kept[key] for key in sorted(self._kept)]


@step(CaptionSet)
def sample_captions(work: Work, spec: CaptionSpec) -> Made:
    """Draws the sample and writes it as one Parquet file beside the list of malformed rows."""
    from thinkdiff.storage.caption_shards import write_captions, write_malformed

    race = BottomN(spec.n, spec.seed)
    counts: dict[str, int] = {"rows": 0, "malformed": 0}
    malformed: list[dict[str, object]] = []
    digests: dict[str, str] = {}
    with work.progress(len(spec.collections), "collections") as progress:
        for collection in spec.collections:
            rows, bad, digests[collection.name] = read_collection(work, collection, race, malformed)
            counts["rows"] += rows
            counts["malformed"] += bad
            counts[f"rows_{collection.name}"] = rows
            progress.advance()
    sample = race.sample()
    if len(sample) < spec.n:
        raise InputError(
            f"sample_captions: found {len(sample)} distinct captions in {counts['rows']} rows "
            f"({counts['malformed']} malformed), expected at least n = {spec.n}. Lower n or add a collection."
        )
    for collection in spec.collections:
        counts[f"sampled_{collection.name}"] = sum(c.collection == collection.name for c in sample)
    files = (write_captions(work.folder, sample), write_malformed(work.folder, malformed))
    if counts["malformed"]:
        first = malformed[0]
        work.log.warning(
            "sample_captions: found %d malformed rows, first %s row %s (%s); all are counted, the first %d are listed.",
            counts["malformed"], first["file"], first["row"], first["reason"], MALFORMED_KEPT,
        )  # fmt: skip
    return Made(
        files=files,
        counts={"captions": len(sample), "duplicates_met": race.duplicates, **counts},
        stats={"collection_sha256": digests},
        page="\n".join([f"- `{c.caption}` ({c.collection})" for c in sample[:10]]),
    )


def read_collection(
    work: Work, collection: Collection, race: BottomN, malformed: list[dict[str, object]]
) -> tuple[int, int, str]:
    """Streams one collection into the race. Returns its rows, its malformed rows and the digest of its file.

    Raises InputError when the file is missing, empty, of another format, or not the one that the spec declares.
    """
    from thinkdiff.storage.caption_shards import Malformed, open_collection

    reader = open_collection(work.run.data_root, collection)
    rows = bad = 0
    for item in reader:
        rows += 1
        if isinstance(item, Malformed):
            bad += 1
            if len(malformed) < MALFORMED_KEPT:
                malformed.append(
                    {"collection": collection.name, "file": collection.url, "row": item.row,
                     "reason": item.reason, "excerpt": item.excerpt}
                )  # fmt: skip
            continue
        key = sample_key(collection.name, item.url, item.caption)
        race.offer(Candidate(key, collection.name, item.url, item.caption, collection.url, item.row))
    if collection.sha256 is not None and reader.sha256 != collection.sha256:
        raise InputError(
            f"{collection.url}: found sha256 {reader.sha256}, expected {collection.sha256}. It is not the file that the "
            "recipe was written for; take the right file or change the recipe."
        )
    return rows, bad, reader.sha256
