"""Stage 5, generate media: benchmark answers as features or as text -> pictures or videos.

What a decoder's own pipeline takes when it is not told (the defaults here are FLUX's):

    family               steps  guidance_scale  height, width          rows of a prompt
    FLUX                 28     3.5             multiples of 16        any number
    Stable Diffusion 3   28     7               multiples of 16        256 at most
    PixArt-alpha, Sigma  20     4.5             multiples of 16        120, 300 at most
    DeepFloyd IF, I      100    7               64, 64                 77, padded
    CogVideoX            50     6               480, 720; 49 frames    226, padded
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from thinkdiff.schemas.artifact import Artifact, Model, Spec, Stage
from thinkdiff.schemas.cobsat import CobsatPrompts

Method = Literal["aligned", "text_bridge", "text_prompt", "true_caption"]


class MediaSpec(Spec):
    """How pictures are made from prompt embeddings.

    aligned: the VLM's features through the aligner. text_bridge: the VLM's *text* through the T5 encoder, in all else
    like aligned: no rows of padding, and CLIPs are told the empty text. text_prompt: the same text as a user would hand
    it to the decoder's own pipeline: padded as there, CLIPs are told it. true_caption: the benchmark's own answer as in
    text_bridge. A text is cut where the decoder's own pipeline cuts it; aligned rows are never cut. Where a decoder
    always pads and has no CLIP both forms of the text are one. The pipelines of PixArt and DeepFloyd IF lower-case a
    prompt; here the text is given to them as it is.
    """

    stage: ClassVar[Stage] = "generate_media"
    later: ClassVar[Mapping[str, Any]] = {
        "padding": "empty",
        "words": "own",
        "frames": 49,
        "fps": 8,
        "prompt_rows": 512,
        "read_back": False,
    }
    decoder: Model = Field(
        description="a diffusers FluxPipeline, StableDiffusion3Pipeline, PixArtAlphaPipeline, PixArtSigmaPipeline, "
        "IFPipeline (stage I) or CogVideoXPipeline"
    )
    transformer: Model | None = Field(default=None, description="another denoiser in the same pipeline")
    t5: Model = Field(description="the T5 encoder of the text methods")
    methods: tuple[Method, ...] = Field(default=("aligned", "text_bridge", "text_prompt", "true_caption"), min_length=1)
    keep_eos: bool = Field(
        default=False,
        description="let the end token's row, and rows behind it where the VLM ran on, be part of the prompt "
        "embeddings; of texts that are padded the end token always is",
    )
    prompt_rows: int = Field(
        default=512,
        ge=1,
        le=512,
        description="of text_prompt, padding included: max_sequence_length of the decoder's pipeline; where that "
        "takes fewer, as many, and where it always reads the same number, those",
    )
    padding: Literal["empty", "zeros"] = Field(
        default="empty",
        description="behind aligned rows, where a decoder reads a fixed number: the empty text's rows of the same "
        "places, or zeros",
    )
    words: Literal["own", "padded"] = Field(
        default="own",
        description="of ThinkDiff-CLIP, behind a picture's rows: the words' own, none without words; or padded to 128 "
        "rows, of a decoder that reads a fixed number to what is left, also without words, as in the authors' scripts; "
        "CLIPs are told padded words, else the empty text",
    )
    height: int = Field(default=512, ge=8)
    width: int = Field(default=512, ge=8)
    steps: int = Field(default=28, ge=1, description="denoising steps")
    guidance_scale: float = Field(
        default=3.5,
        ge=0,
        description="FLUX's distilled guidance, ignored by FLUX models without it; of all others classifier-free "
        "guidance, which 1 switches off",
    )
    true_cfg_scale: float = Field(
        default=1.0, ge=1, description="classifier-free guidance of FLUX alone; 1 switches it off"
    )
    frames: int = Field(default=49, ge=1, description="of a video; no picture depends on it")
    fps: int = Field(default=8, ge=1, description="frames a second at which a video is shown")
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    read_back: bool = Field(
        default=False,
        description="let the T5 that taught the aligner tell which caption it finds likeliest to the aligned rows",
    )
    seed: int = Field(default=42, ge=0, description="hashed with a prompt's name into the seed of its picture")


class MediaSet(Artifact):
    """`<method>/*.tar` of PNG pictures named by prompt and `prompts.parquet` (what was asked and answered).

    `readings.parquet` where aligned rows were read back: by prompt what the aligner's T5 found in them. Pictures of a
    video decoder are the frames in the middle, and `videos/<method>/*.tar` has the videos, MP4 files.
    """


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
