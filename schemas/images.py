"""Stage 2, fetch images: the sampled captions' pictures out of img2dataset's tars -> shards with an index."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from thinkdiff.schemas.artifact import Artifact, Frozen, Spec, Stage


class TarSource(Frozen):
    """The tars of one collection, as img2dataset leaves them (`.jpg .txt .json` members)."""

    collection: str = Field(description="name of the collection in the caption spec")
    glob: str = Field(min_length=1, description="tar files; a relative pattern starts at the data root")


class ImageSpec(Spec):
    """Which tars to read. Pictures are kept byte for byte."""

    stage: ClassVar[Stage] = "fetch_images"
    tars: tuple[TarSource, ...] = Field(min_length=1)
    shard_size: int = Field(default=1000, ge=1, description="pictures per output tar")
    max_bytes: int = Field(default=20_000_000, ge=1, description="a larger member is a failed row")
    max_pixels: int = Field(default=50_000_000, ge=1, description="a picture of more pixels is a failed row")


class ImageSet(Artifact):
    """`shards/*.tar` of pictures in key order and `index.parquet`, one row per *sampled caption*.

    Index columns: key, collection, caption, shard, offset, size, width, height, sha256, status ("ok" or "failed"),
    reason. A failure is a row, never a gap.
    """
