"""Stage 1. Collections as people have them -> a uniform sample of captions, each URL once.

The collections' files are cut into splits, each of which gives the rows that may be in the sample (`caption_draw`);
one reduction takes the n of the lowest keyed hashes. Nothing depends on how the files are cut or in what order they are
read. Every row is accounted for: sampled, not drawn, a duplicate, filtered out with a reason, or malformed with its
number and beginning.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thinkdiff.schemas.captions import CaptionSet, CaptionSpec
from thinkdiff.schemas.errors import InputError
from thinkdiff.tasks.report_markup import code
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    from thinkdiff.storage.caption_formats import Split
    from thinkdiff.tasks.caption_draw import Columns, Drawn, Tally

SMALL = 64 << 20  # bytes of collections that are read at once, every row a candidate
WORDS = (0, 3, 5, 8, 12, 16, 24, 32, 64)


@step(CaptionSet)
def sample_captions(work: Work, spec: CaptionSpec) -> Made:
    """Draws the sample and writes it as one Parquet file, beside its origins and the malformed rows."""
    from thinkdiff.storage.caption_sample import write_captions, write_origins
    from thinkdiff.storage.caption_shards import collection_splits
    from thinkdiff.tasks.caption_draw import first_limit, lowest
    from thinkdiff.tasks.caption_filters import cleaned

    splits = [
        split for c in spec.collections for split in collection_splits(c, work.run.data_root, work.run.split_bytes)
    ]
    limit = 1.0 if sum(split.bytes for split in splits) < SMALL else first_limit(splits, spec)
    while True:
        tallies, found = read(work, spec, splits, limit)
        drawn = lowest(splits, tallies, found, spec)
        if not isinstance(drawn, int):
            break
        if limit >= 1:
            raise too_few(tallies, drawn, spec)
        limit = min(1.0, 1.2 * limit * spec.n / drawn) if drawn else 1.0
        work.log.warning(
            "sample_captions: found %d candidates for %d captions, fewer rows than the files' beginnings promised. "
            "They are read again.", drawn, spec.n,
        )  # fmt: skip
    malformed, first = malformed_rows(splits, tallies)
    if first:
        work.log.warning(
            "sample_captions: found %d malformed rows, first %s; malformed.parquet lists all.",
            malformed.counts.total(), first,
        )  # fmt: skip
    caption = cleaned(drawn.caption) if spec.cleaning == "blip" else drawn.caption
    columns = {"key": drawn.key, "collection": drawn.collection, "url": drawn.url, "caption": caption}
    return Made(
        files=(
            write_captions(work.folder, columns),
            write_origins(work.folder, drawn.key, drawn.file, drawn.row),
            malformed.write(work.folder),
        ),
        counts=counts(splits, tallies, drawn, malformed.counts.total()),
        stats=statistics(tallies, drawn, caption, malformed.counts),
        page="\n".join(f"- {code(text)} ({name})" for text, name in zip(*examples(caption, drawn), strict=True)),
    )


def read(work: Work, spec: CaptionSpec, splits: Sequence[Split], limit: float) -> tuple[list[Tally], list[Columns]]:
    """What each split gives, read side by side, in the order of the splits."""
    from thinkdiff.tasks.caption_draw import candidates

    longest_first = sorted(range(len(splits)), key=lambda place: -splits[place].bytes)
    parts: dict[int, tuple[Tally, Columns]] = {}
    with work.progress(sum(split.bytes for split in splits) >> 10, "KiB") as progress:
        calls = [(splits[place], spec, limit) for place in longest_first]
        alone = not work.run.workers and sum(split.bytes for split in splits) < SMALL
        results = itertools.starmap(candidates, calls) if alone else work.map(candidates, calls)
        for place, part in zip(longest_first, results, strict=True):
            parts[place] = part
            progress.advance(splits[place].bytes >> 10)
    return [parts[place][0] for place in range(len(splits))], [parts[place][1] for place in range(len(splits))]


def too_few(tallies: Sequence[Tally], drawn: int, spec: CaptionSpec) -> InputError:
    """The sentence for collections that have not n captions."""
    rows, bad = sum(part.rows for part in tallies), sum(len(part.malformed) for part in tallies)
    filtered = sum(part.filtered.total() for part in tallies)
    return InputError(
        f"sample_captions: found {drawn} distinct captions in {rows} rows ({bad} malformed, {filtered} filtered out), "
        f"expected at least n = {spec.n}. Lower n, add a collection, or filter less."
    )


def malformed_rows(splits: Sequence[Split], tallies: Sequence[Tally]) -> tuple[Any, str]:
    """All malformed rows under their numbers in their files, and the first of them as a phrase."""
    from thinkdiff.storage.caption_sample import MalformedLog
    from thinkdiff.tasks.caption_draw import first_rows

    log, first = MalformedLog(), ""
    for split, part, begin in zip(splits, tallies, first_rows(splits, tallies).tolist(), strict=True):
        for row in part.malformed:
            log.add(split.collection, split.where, row, begin)
            first = first or f"{split.where} row {begin + row.row + 1}: {row.reason}"
    return log, first


def counts(splits: Sequence[Split], tallies: Sequence[Tally], drawn: Drawn, malformed: int) -> dict[str, int]:
    """Rows by what became of them, and by collection."""
    rows: Counter[str] = Counter()
    for split, part in zip(splits, tallies, strict=True):
        rows[split.collection] += part.rows
    taken: Counter[str] = Counter(drawn.collection.to_pylist())
    return {
        "captions": len(drawn.key),
        "rows": rows.total(),
        "malformed": malformed,
        "filtered": sum(part.filtered.total() for part in tallies),
        "duplicates_of_sampled": drawn.duplicates,
        "same_captions": drawn.same_captions,
        **{f"rows_{name}": count for name, count in rows.items()},
        **{f"sampled_{name}": taken[name] for name in rows},
    }


def statistics(
    tallies: Sequence[Tally], drawn: Drawn, caption: Any, malformed: Counter[tuple[str, str]]
) -> dict[str, Any]:
    """Reasons with their counts, the number of distinct URLs as estimated, and a histogram of words a caption."""
    import numpy as np
    import pyarrow as pa

    from thinkdiff.storage.caption_blocks import Text
    from thinkdiff.tasks.caption_filters import looked_at

    words = looked_at(Text.of(caption.cast(pa.large_binary())))[0]
    histogram, _ = np.histogram(words, [*WORDS, np.inf])
    names = [f"{low}-{high - 1}" for low, high in itertools.pairwise(WORDS)] + [f"{WORDS[-1]} and more"]
    return {
        "malformed": {f"{name}: {reason}": count for (name, reason), count in sorted(malformed.items())},
        "filtered": dict(sorted(sum((part.filtered for part in tallies), Counter[str]()).items())),
        "distinct_urls_estimated": round(drawn.distinct) if drawn.distinct == drawn.distinct else None,
        "caption_words": dict(zip(names, histogram.tolist(), strict=True)),
    }


def examples(caption: Any, drawn: Drawn) -> tuple[list[str], list[str]]:
    """A few captions and their collections."""
    return caption[:10].to_pylist(), drawn.collection[:10].to_pylist()
