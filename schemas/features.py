"""Stage 3, extract features: pictures and prompts -> the VLM's tokens and their final-norm hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from thinkdiff.schemas.artifact import Artifact, Frozen, Model, Spec, Stage
from thinkdiff.schemas.cobsat import CobsatPrompts

# ThinkDiff, Appendix B: one is drawn per picture.
PAPER_PROMPTS = (
    "Describe the image concisely.",
    "Provide a brief description of the given image.",
    "Offer a succinct explanation of the picture presented.",
    "Summarize the visual content of the image.",
    "Give a short and clear explanation of the subsequent image.",
    "Share a concise interpretation of the image provided.",
    "Present a compact description of the photo's key features.",
    "Relay a brief, clear account of the picture shown.",
    "Render a clear and concise summary of the photo.",
    "Write a terse but informative summary of the picture.",
    "Create a compact narrative representing the image presented.",
    "Generate a prompt that can recreate the image in a 2D diffusion model.",
    "Provide a descriptive prompt to reproduce the given image using a diffusion model.",
    "Create a prompt suitable for a 2D diffusion model to generate the same image.",
    "Summarize the visual details as a prompt for a 2D diffusion model.",
    "Write a clear prompt to guide a 2D diffusion model in recreating the image.",
)
EndPolicy = Literal["stop", "run_on", "forced"]
TokenKind = Literal["generated", "input"]
Codec = Literal["none", "zstd", "int8", "fp8"]
STATISTICS = "statistics.json"
OUTLIER = 6.0  # times the median channel's root mean square, above which a channel is an outlier


class CaptionPrompts(Frozen):
    """One picture and one of these texts per request; which text is chosen by a hash of the sample's key."""

    kind: Literal["captions"] = "captions"
    texts: tuple[str, ...] = Field(default=PAPER_PROMPTS, min_length=1)


class PictureTokens(Frozen):
    """No question: the picture's own tokens, as a vision tower makes them, with its caption as the text."""

    kind: Literal["pictures"] = "pictures"


class FeatureSpec(Spec):
    """What the VLM is asked, how it samples, and which hidden states are kept."""

    stage: ClassVar[Stage] = "extract_features"
    version: ClassVar[int] = 4
    later: ClassVar[Mapping[str, Any]] = {"codec": "none"}
    vlm: Model = Field(
        description="a Qwen-VL; for picture tokens BLIP-2 or an open_clip EVA, of which the tower is used"
    )
    prompts: Annotated[CaptionPrompts | CobsatPrompts | PictureTokens, Field(discriminator="kind")] = CaptionPrompts()
    max_tokens: int = Field(default=64, ge=1, description="T, generated tokens per request at most")
    temperature: float = Field(default=0.6, ge=0, description="0 is greedy")
    top_p: float = Field(default=0.9, gt=0, le=1)
    end_policy: EndPolicy = Field(
        default="forced",
        description="stop: EOS ends; run_on: EOS is sampled and ignored; forced: EOS is suppressed, always T tokens",
    )
    seed: int = Field(default=0, ge=0, description="hashed with a sample's key into its own seed and choice of prompt")
    tokens: tuple[TokenKind, ...] = Field(
        default=("generated",), min_length=1, description="whose hidden states are kept"
    )
    max_input_tokens: int = Field(
        default=0, ge=0, description="rows kept of the prompt; 0 unless input tokens are kept"
    )
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    dtype: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="type of the features")
    codec: Codec = Field(
        default="none",
        description="how they are stored; zstd loses nothing, int8 and fp8 take a byte each and a scale per token",
    )
    shard_size: int = Field(default=256, ge=1, description="requests per shard: the unit of commit and of resume")

    @model_validator(mode="after")
    def _tower_generates_nothing(self) -> Self:
        if isinstance(self.prompts, PictureTokens) and (self.tokens != ("input",) or not self.max_input_tokens):
            raise ValueError("a picture's own tokens are input tokens; set tokens to input and max_input_tokens")
        return self


class FeatureSet(Artifact):
    """A Zarr v3 store of (N, T, D) features with one Parquet of ids, texts and keys per shard, and `statistics.json`.

    counts: rows, shards, tokens; stats: hidden_size, shape, shard_size and the like.
    """


class Spread(Frozen):
    """How a number is distributed: mean, extremes, 5 %, 50 % and 95 % quantiles."""

    mean: float
    least: float
    p5: float
    median: float
    p95: float
    most: float


class FeatureStatistics(Frozen):
    """`statistics.json` of a FeatureSet; provenance, not content. D is the width of a feature.

    ended and tokens_per_row are of all rows, the rest is of `sampled_rows` of them, of which features of generated
    tokens alone. An outlier is a channel whose root mean square exceeds OUTLIER times that of the median channel.
    """

    rows: int
    ended: float = Field(description="share of the rows with an end token")
    tokens_per_row: float
    sampled_rows: int
    sampled_tokens: int
    row_tokens: Spread
    text_words: Spread
    text_characters: Spread
    words: dict[str, int] = Field(description="rows by words in their text")
    token_norm: Spread = Field(description="Euclidean norm of a token's feature")
    channel_mean: tuple[float, ...] = Field(description="D numbers")
    channel_rms: tuple[float, ...] = Field(description="D numbers: root of the mean square over tokens")
    outliers: tuple[int, ...] = Field(description="numbers of channels, the largest first")
