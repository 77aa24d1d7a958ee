"""Stage 2. The sampled captions' pictures, out of img2dataset's tars or from their URLs -> shards and an index.

A tar's sample is matched by its key, the hash of (collection, URL, caption) in its `.json`; the tars are gone through
once for their places, then read by range. What is missing, too large, opted out or does not decode is a row with a
reason, never a gap. Tars and shards are split into parts that the flow's task runner works on; a killed run goes on
after the last committed shard. With `refetch_failed` only the failed rows of a finished set are tried again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.captions import CaptionSet
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.images import ImageSet, ImageSpec
from thinkdiff.tasks.page_pictures import PAGE_ROWS, pictured
from thinkdiff.tasks.report_markup import code
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    from thinkdiff.storage.image_parts import ImageParts

SHOWN = 20


def is_to_be_refetched(run: Execution, images: ImageSet) -> bool:
    """Whether a finished set is worked on again."""
    return run.refetch_failed and images.counts["failed"] > 0


@step(ImageSet, reopen=is_to_be_refetched)
def fetch_images(work: Work, spec: ImageSpec, captions: CaptionSet) -> Made:
    """Finds the places in the tars, makes the missing shards, writes the index."""
    from thinkdiff.storage.image_parts import ImageParts
    from thinkdiff.storage.image_places import PlaceLog, tars_of
    from thinkdiff.tasks.image_work import fetch_shards, index_tars

    total = captions.counts["captions"]
    parts = ImageParts(work.folder, total, spec.shard_size)
    parts.prepare()
    kept = parts.committed()
    wanted = [n for n in range(parts.shards) if n not in kept or (work.run.refetch_failed and kept[n].info["failed"])]
    tars = PlaceLog(work.folder, tars_of(work.run.data_root, spec.tars))
    common = (work.folder, spec, captions, work.run)
    ranges = max(work.run.workers, 1)
    if wanted:
        lacking = sorted(set(range(len(tars.tars))) - set(tars.committed()))
        list(work.map(index_tars, [(*common, some) for some in split(lacking, ranges)]))
        with work.progress(total, "pictures") as progress:
            progress.resume(parts.done())
            jobs = [(*common, some) for some in split(wanted, ranges)]
            list(work.map(fetch_shards, jobs, lambda: progress.advance(parts.done() - progress.done)))
    damaged = [part.info["tar"] for part in tars.committed().values() if part.info["damage"]]
    files, reasons = parts.files()
    tars.remove()
    failed = reasons.total()
    if failed == total:
        raise InputError(
            f"fetch_images: found none of the {total} sampled pictures, expected some; the most frequent reason is "
            f"'{reasons.most_common(1)[0][0]}'. The tars may be of other captions, or the network out of reach; "
            "set it right and run the stage again with --refetch-failed."
        )
    if failed:
        work.log.warning("fetch_images: %d of %d pictures failed; each is a row with its reason.", failed, total)
    return Made(
        files=files,
        counts={"captions": total, "images": total - failed, "failed": failed, "shards": parts.shards},
        stats={"reasons": dict(reasons.most_common(SHOWN)), "damaged_tars": damaged},
        note=f"kept {len(kept)} shards of an earlier run" if kept else "",
        page="\n\n".join(part for part in (reasons_table(reasons), fetched(parts)) if part),
    )


def split(numbers: Sequence[int], parts: int) -> list[Sequence[int]]:
    """At most so many runs of about the same length."""
    cuts = [len(numbers) * i // parts for i in range(parts + 1)]
    return [numbers[first:end] for first, end in pairwise(cuts) if first < end]


def reasons_table(reasons: Counter[str]) -> str:
    """The most frequent reasons as a table in markdown."""
    rows = [f"| {code(reason, 200)} | {count} |" for reason, count in reasons.most_common(SHOWN)]
    return "\n".join(["| why there is no picture | rows |", "|---|---|", *rows]) if rows else ""


def fetched(parts: ImageParts) -> str:
    """The first pictures of a finished set beside their captions, as a table in markdown."""
    from thinkdiff.storage.image_shards import OK, read_pictures

    kept = (part for part in map(parts.find, range(parts.shards)) if part is not None and part.info["images"])
    there = (row for part in kept for row in parts.rows(part) if row.status == OK)
    rows = list(islice(there, PAGE_ROWS))
    pictures = read_pictures(parts.folder, rows)
    return pictured(
        ("picture", "caption"), [(data, code(row.caption)) for data, row in zip(pictures, rows, strict=True)]
    )
