"""The report's section on the data: what became of the collections' rows and of the sample's pictures.

In: the records of sample_captions and fetch_images. Out: HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinkdiff.schemas.artifact import Artifact
from thinkdiff.tasks.report_markup import Child, Html, join, plural, table, tag
from thinkdiff.tasks.report_plots import histogram


def data(captions: Artifact, images: Artifact) -> Html:
    """Rows by collection, why some were left out, how long captions are, and why pictures are missing."""
    counts = captions.counts
    names = [name.removeprefix("rows_") for name in counts if name.startswith("rows_")]
    failed = images.counts.get("failed", 0)
    weighted = len({one.get("weight", 1) for one in captions.spec.get("collections", ())}) > 1
    said = (
        f"{plural(counts.get('captions', 0), 'caption')} drawn {'by weight' if weighted else 'uniformly'} from "
        f"{plural(counts.get('rows', 0), 'row')}, "
        f"each URL once: {plural(counts.get('malformed', 0), 'row')} malformed, {counts.get('filtered', 0):,} filtered "
        f"out, {counts.get('duplicates_of_sampled', 0):,} more with the URL of a drawn one. "
        f"{plural(images.counts.get('images', 0), 'picture')} fetched, {failed:,} not to be had."
    )
    parts: list[Child] = [tag("p", said)]
    if names:
        rows: list[list[Child]] = [
            [name, f"{counts[f'rows_{name}']:,}", f"{counts.get(f'sampled_{name}', 0):,}"] for name in names
        ]
        parts.append(table(["Collection", "Rows", "Drawn"], rows))
    if words := captions.stats.get("caption_words"):
        parts.append(histogram("Words in a caption", words))
    left = {**named(captions.stats, "malformed"), **named(captions.stats, "filtered"), **named(images.stats, "reasons")}
    if left:
        parts.append(table(["Left out because", "Rows"], [[reason, f"{count:,}"] for reason, count in left.items()]))
    return join(parts)


def named(stats: Mapping[str, Any], kind: str) -> dict[str, int]:
    """Counts by reason, {} where there are none."""
    found = stats.get(kind)
    return dict(found) if isinstance(found, dict) else {}
