"""Stage 5, generate media: benchmark answers as features or as text -> pictures."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from thinkdiff.schemas.artifact import Artifact, Model, Spec, Stage
from thinkdiff.schemas.cobsat import CobsatPrompts

Method = Literal["aligned", "text_bridge", "true_caption"]


class MediaSpec(Spec):
    """How pictures are made from prompt embeddings.

    aligned: the VLM's features through the aligner; text_bridge: the VLM's *text* through the T5 encoder;
    true_caption: the benchmark's own answer through the T5 encoder.
    """

    stage: ClassVar[Stage] = "generate_media"
    decoder: Model = Field(description="a diffusers FluxPipeline")
    transformer: Model | None = Field(default=None, description="another denoiser in the same pipeline")
    t5: Model = Field(description="the T5 encoder of the text methods")
    methods: tuple[Method, ...] = Field(default=("aligned", "text_bridge", "true_caption"), min_length=1)
    keep_eos: bool = Field(default=False, description="let the end token's row be part of the prompt embeddings")
    height: int = Field(default=512, ge=8)
    width: int = Field(default=512, ge=8)
    steps: int = Field(default=28, ge=1, description="denoising steps")
    guidance_scale: float = Field(default=3.5, ge=0, description="distilled guidance; ignored by models without it")
    true_cfg_scale: float = Field(default=1.0, ge=1, description="classifier-free guidance; 1 switches it off")
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = Field(default=42, ge=0, description="hashed with a prompt's name into the seed of its picture")


class MediaSet(Artifact):
    """`<method>/*.tar` of PNG pictures named by prompt and `prompts.parquet` (what was asked and answered)."""


MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class GivenMedia(Spec):
    """Pictures that another system made of the benchmark's prompts, beside MediaSpec: what they are, not where.

    The MediaSet has one method, `name`, and may lack pictures: `prompts.parquet` holds every prompt, and
    counts["missing"] says how many have no picture. The benchmark counts these as wrong.
    """

    stage: ClassVar[Stage] = "generate_media"
    name: str = Field(pattern=MODEL_NAME, description="the model, as in the benchmark's folders of results")
    prompts: CobsatPrompts = Field(description="what it was asked; `images` and `instruction` say nothing here")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="over names, sizes and sha256 of its files")
