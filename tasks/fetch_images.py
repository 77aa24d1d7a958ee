"""Stage 2. The sampled captions' pictures out of img2dataset's tars -> our shards and an index with a row per caption.

A tar's sample is matched by its key, the hash of (collection, URL, caption) in its `.json`. Pictures are kept byte for
byte after a check that they decode. What is missing, too large or does not decode is a row with a reason, never a gap.
"""

from __future__ import annotations

import hashlib

from thinkdiff.schemas.captions import CaptionSet, sample_key
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.images import ImageSet, ImageSpec
from thinkdiff.tasks.pictures import inspect_image
from thinkdiff.tasks.step import Made, Work, step


@step(ImageSet)
def fetch_images(work: Work, spec: ImageSpec, captions: CaptionSet) -> Made:
    """Reads the tars once, keeps the sampled pictures, writes them in the order of their keys."""
    from thinkdiff.storage.caption_sample import read_captions
    from thinkdiff.storage.image_shards import ImageWriter, read_tars

    wanted = {row.key: row for row in read_captions(captions)}
    writer = ImageWriter(work.folder, spec.shard_size)
    reasons: dict[str, str] = {}
    with work.progress(len(wanted), "pictures") as progress:
        for source in spec.tars:
            for sample in read_tars(work.run.data_root, source, spec.max_bytes):
                key = sample_key(source.collection, sample.url, sample.caption)
                if key not in wanted or writer.holds(key):
                    continue
                if sample.image is None:
                    reasons[key] = sample.reason or "no picture in the tar"
                    continue
                try:
                    width, height, kind = inspect_image(sample.image, spec.max_pixels)
                except ValueError as error:
                    reasons[key] = str(error)
                    continue
                digest = hashlib.sha256(sample.image).hexdigest()
                writer.hold(key, sample.image, width, height, kind, digest)
                reasons.pop(key, None)
                progress.advance()
    files, fetched = writer.finish(list(wanted.values()), reasons)
    if not fetched:
        raise InputError(
            f"fetch_images: found none of the {len(wanted)} sampled pictures in the tars, expected some. "
            "The tars are of other captions, or their .json members lack url and caption."
        )
    failed = len(wanted) - fetched
    if failed:
        work.log.warning("fetch_images: %d of %d pictures failed; each is a row with its reason.", failed, len(wanted))
    return Made(files=files, counts={"captions": len(wanted), "images": fetched, "failed": failed})
