"""The stage fetch_images on a handful of captions: the stage's own body, without Prefect around it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caption_rows import columns_of
from store_artifacts import artifact_of

from thinkdiff.schemas.artifact import Execution, Fetching
from thinkdiff.schemas.captions import CaptionSet, sample_key
from thinkdiff.schemas.images import ImageSet, ImageSpec
from thinkdiff.storage.caption_sample import SampledCaption, write_captions
from thinkdiff.storage.image_shards import ImageReader, IndexRow
from thinkdiff.storage.lease import Lease
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.fetch_images import fetch_images
from thinkdiff.tasks.step import Work

LOOPBACK = ("127.0.0.1/32",)
HASTY = Fetching(
    concurrency=16, per_host=16, connect_seconds=5, read_seconds=3, total_seconds=5, retries=2, backoff_seconds=0.01,
    longest_pause=2, host_patience=1000, decoders=1, decode_seconds=30,
)  # fmt: skip


def captions_of(folder: Folder, urls: Sequence[str]) -> CaptionSet:
    """A sample with a caption for each URL."""
    rows = [
        SampledCaption(sample_key("cc3m", url, f"caption {i}"), "cc3m", url, f"caption {i}")
        for i, url in enumerate(urls)
    ]
    rows.sort(key=lambda row: row.key)
    made = artifact_of(CaptionSet, folder, [write_captions(folder, columns_of(rows))], "sample_captions")
    return made.model_copy(update={"counts": {"captions": len(rows)}})


def execution(tmp_path: Path, fetching: Fetching = HASTY, **changes: Any) -> Execution:
    """Pictures may come from this server, and from no other that is not public."""
    return Execution(root=str(tmp_path), allow_networks=LOOPBACK, fetching=fetching, **changes)


def fetch(folder: Folder, captions: CaptionSet, spec: ImageSpec, run: Execution) -> ImageSet:
    """Runs the stage's body under a lease and returns what it made."""
    with Lease(folder, 30.0) as lease:
        made = fetch_images.body(Work(folder, run, lease, logging.getLogger("test")), spec, captions)
    found = artifact_of(ImageSet, folder, made.files, "fetch_images")
    return found.model_copy(update={"counts": made.counts, "stats": made.stats})


def rows_by_caption(images: ImageSet) -> dict[int, IndexRow]:
    """The rows of the index by the number in their caption; all pictures are read and checked on the way."""
    reader = ImageReader(images)
    reader.read(reader.ok)
    return {int(row.caption.split()[1]): row for row in reader.rows}
