"""Stage 2, fetch images: the sampled captions' pictures out of tars or from their URLs -> shards with an index."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from thinkdiff.schemas.artifact import Artifact, Frozen, Spec, Stage


class TarSource(Frozen):
    """The tars of one collection, as img2dataset leaves them (`.jpg .txt .json` members)."""

    collection: str = Field(description="name of the collection in the caption spec")
    glob: str = Field(min_length=1, description="tar files; a relative pattern starts at the data root")


class Resize(Frozen):
    """Every picture upright, RGB on white, not larger than a square (Lanczos), as JPEG."""

    longest_side: int = Field(ge=1, description="pixels; a smaller picture is not enlarged")
    quality: int = Field(default=95, ge=1, le=100, description="of the JPEG")


class ImageSpec(Spec):
    """Where the pictures come from, which are taken, and whether they are kept byte for byte or made smaller.

    The tars come first, and need no network; with `by_url` what no tar has is fetched from its URL.
    """

    stage: ClassVar[Stage] = "fetch_images"
    version: ClassVar[int] = 2
    tars: tuple[TarSource, ...] = ()
    by_url: bool = Field(default=False, description="fetch from the caption's URL what no tar has")
    honour_opt_out: bool = Field(default=True, description="a picture sent with X-Robots-Tag noai is a failed row")
    resize: Resize | None = Field(default=None, description="none: pictures are kept byte for byte")
    shard_size: int = Field(default=1000, ge=1, description="captions per shard")
    max_bytes: int = Field(default=20_000_000, ge=1, description="a larger file is a failed row")
    max_pixels: int = Field(default=50_000_000, ge=1, description="a picture of more pixels is a failed row")
    min_side: int = Field(default=16, ge=1, description="a narrower picture is a failed row: a spacer, a counter")
    max_aspect: float = Field(default=200.0, ge=1, description="longest by shortest side; Qwen2-VL takes no more")

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if not self.tars and not self.by_url:
            raise ValueError("tars, or by_url to fetch the pictures from their URLs")
        return self


class ImageSet(Artifact):
    """`shards/<i>.tar` with the pictures of captions [i * shard_size, (i + 1) * shard_size), and `index.parquet`.

    The index has one row per *sampled caption*: key, collection, caption, shard, offset, size, width, height, sha256,
    status ("ok" or "failed"), reason. A failure is a row, never a gap. `rows/` and `commits/` hold it shard by shard.
    """
