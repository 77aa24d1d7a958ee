"""An ImageSet of many rows, through the real writer. A picture is its key, as nobody decodes it."""

from __future__ import annotations

from store_artifacts import artifact_of

from thinkdiff.schemas.images import ImageSet
from thinkdiff.storage.caption_sample import SampledCaption
from thinkdiff.storage.image_parts import ImageParts, Spool
from thinkdiff.storage.root import Folder

FAILING = 11  # every eleventh caption has no picture


def key_of(number: int) -> str:
    """The key of a caption: 32 digits, as real ones have."""
    return f"{number:032x}"


def write_images(folder: Folder, captions: int, shard_size: int = 1000) -> ImageSet:
    """A set of so many captions."""
    parts = ImageParts(folder, captions, shard_size)
    parts.prepare()
    for shard in range(parts.shards):
        spool, span = Spool(), parts.span(shard)
        rows = [SampledCaption(key_of(number), "cc3m", "", f"a caption of number {number}") for number in span]
        missing = [place for place, number in enumerate(span) if number % FAILING == FAILING - 1]
        for place in sorted(set(range(len(rows))) - set(missing)):
            spool.hold(place, rows[place].key.encode(), 1, 1, "png")
        parts.commit(shard, rows, spool, dict.fromkeys(missing, "HTTP 404"))
        spool.close()
    files, reasons = parts.files()
    counts = {"captions": captions, "images": captions - reasons.total(), "failed": reasons.total()}
    return artifact_of(ImageSet, folder, files, "fetch_images").model_copy(update={"counts": counts})
