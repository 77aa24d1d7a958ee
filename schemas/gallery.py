"""The gallery: ThinkDiff-CLIP on pictures and prompts of one's own. What is asked, drawn, measured and shown.

A gallery is a folder with `prompts.jsonl`, a line for each prompt, and the pictures that the lines name:

    {"name": "star-at-night", "images": ["star.jpg"], "text": "at night"}
    {"name": "two", "images": ["star.jpg", "sub/ring.png"]}
    {"name": "moving", "images": ["star.jpg"], "text": "it spins", "video": true}

gather_gallery takes it into the root; generate_media draws it, or takes another system's pictures of it; score_gallery
measures likeness, render_gallery makes the page.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from thinkdiff.schemas.artifact import Artifact, Frozen, Model, Spec, Stage
from thinkdiff.schemas.media import MODEL_NAME, MediaSet, MediaSpec

Kind = Literal["image", "image + text", "several images", "several images + text", "text", "video"]
KINDS: tuple[Kind, ...] = ("image", "image + text", "several images", "several images + text", "text", "video")
MOST_IMAGES = 8
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
PLACES = r"^[^/\\\x00-\x1f:]+(/[^/\\\x00-\x1f:]+)*$"


def plain_text(value: str) -> str:
    """One line of text. Raises ValueError for control characters."""
    if CONTROL.search(value):
        raise ValueError("the text must be one line without control characters")
    return value.strip()


def inside(value: str) -> str:
    """A path below the gallery's folder. Raises ValueError for one that would leave it."""
    if any(part in (".", "..") for part in value.split("/")):
        raise ValueError("the path must stay inside the gallery's folder")
    return value


class GalleryPrompt(Frozen):
    """One prompt: pictures, words, or both. A video begins from the same."""

    name: str = Field(pattern=MODEL_NAME, description="becomes a file's name")
    images: tuple[Annotated[str, Field(pattern=PLACES, max_length=500), AfterValidator(inside)], ...] = Field(
        default=(), max_length=MOST_IMAGES, description="pictures below the folder, in order"
    )
    text: Annotated[str, Field(max_length=2000), AfterValidator(plain_text)] = ""
    video: bool = False

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not self.images and not self.text:
            raise ValueError("a prompt needs a picture or a text")
        return self

    @property
    def kind(self) -> Kind:
        """Which of the kinds it is told among."""
        if self.video:
            return "video"
        if not self.images:
            return "text"
        if len(self.images) == 1:
            return "image + text" if self.text else "image"
        return "several images + text" if self.text else "several images"


class GallerySource(Spec):
    """The prompts and pictures of a folder: what they are, not where."""

    stage: ClassVar[Stage] = "gather_gallery"
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="over names, sizes and sha256 of its files")
    longest_side: int = Field(default=1024, ge=16, description="pixels; larger pictures are made smaller")


class GalleryInputs(MediaSet):
    """`prompts.jsonl`, and `pictures/*.tar` of PNG pictures, upright and RGB, under the names that prompts use."""


class GallerySpec(Spec):
    """How a gallery is drawn. The MediaSet has the methods `drawn` and, of video prompts, `filmed`."""

    stage: ClassVar[Stage] = "generate_media"
    tower: Model = Field(description="the vision tower that the aligner was trained on")
    tower_precision: Literal["bfloat16", "float32"] = "bfloat16"
    media: MediaSpec = Field(description="decoder, T5 and settings; `methods` must be aligned")
    video: MediaSpec | None = Field(default=None, description="the same of video prompts; none: they are refused")
    reads: Literal["prompt", "text"] = Field(
        default="prompt",
        description="text: of every prompt the words alone, without an aligner: what the T5 says to it",
    )

    @model_validator(mode="after")
    def _draws_one_way(self) -> Self:
        if any(media is not None and media.methods != ("aligned",) for media in (self.media, self.video)):
            raise ValueError("a gallery has no other methods; set methods to aligned alone")
        return self


class GivenGallery(Spec):
    """Pictures that another system made of a gallery's prompts: what they are, not where.

    The MediaSet has the method `drawn` and may lack pictures; counts["missing"] says how many.
    """

    stage: ClassVar[Stage] = "generate_media"
    name: str = Field(pattern=MODEL_NAME, description="the system, as its folder is called")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="over names, sizes and sha256 of its files")


class SimilaritySpec(Spec):
    """Which models measure likeness."""

    stage: ClassVar[Stage] = "score_gallery"
    clip: Model = Field(description="a CLIPModel, for CLIP-I and CLIP-T")
    dino: Model | None = Field(
        default=None, description="a ViT of DINO or DINOv2, whose class token is compared; none: it is left out"
    )


class GalleryScores(Artifact):
    """`similarities.parquet` (a row per system, prompt, measure and input) and `scores.json` (means with intervals)."""


class GalleryPageSpec(Spec):
    """What the page is called."""

    stage: ClassVar[Stage] = "render_gallery"
    title: str = "ThinkDiff-CLIP"


class GalleryPage(Artifact):
    """`gallery.html`, self-contained, and `gallery.md`, its tables."""


class GalleryPlan(Frozen):
    """A recipe's gallery: how it is drawn, measured and shown, and what it is compared with."""

    draw: GallerySpec
    scores: SimilaritySpec
    page: GalleryPageSpec = GalleryPageSpec()
    longest_side: int = Field(default=1024, ge=16, description="of the pictures that are shown, in pixels")
    untrained: bool = Field(default=True, description="the same with an aligner that was never trained, as a control")
    text_alone: bool = Field(default=True, description="the words alone, without the pictures, as a control")
