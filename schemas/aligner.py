"""Stage 4, train aligner: features -> the aligner that maps them to what a frozen T5 decoder can read."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from thinkdiff.schemas.artifact import Artifact, Model, Spec, Stage
from thinkdiff.schemas.features import TokenKind


class AlignerSpec(Spec):
    """The paper's recipe with its ablations as fields (paper, section 3.3, 4.4; authors' code)."""

    stage: ClassVar[Stage] = "train_aligner"
    version: ClassVar[int] = 3
    t5: Model = Field(description="T5 whose decoder is the frozen reader and whose encoder norm starts the aligner's")
    hidden: int | None = Field(default=None, ge=1, description="width of the aligner's middle; default the T5 width")
    features: TokenKind = "generated"
    masking: Literal["split", "element", "words", "none"] = Field(
        default="split",
        description="split: a prefix in, what follows as target; element: some tokens in, the others as target; "
        "words: the picture and a prefix of its caption in, the rest as target; none: all in, all as target",
    )
    norm: Literal["t5", "default", "none"] = Field(default="t5", description="start of the output RMSNorm's weight")
    norm_from: Model | None = Field(default=None, description="T5 whose encoder norm is taken; default `t5` itself")
    tokens: int | None = Field(
        default=None, ge=2, description="only so many tokens of an answer, the first; default all"
    )
    max_split: int = Field(default=128, ge=1, description="most tokens shown")
    max_target_tokens: int = Field(default=128, ge=1)
    max_prompt_tokens: int = Field(default=32, ge=1, description="T5 tokens of the caption's words that are shown")
    steps: int = Field(default=25_000, ge=0, description="0 leaves the aligner as initialised")
    batch: int = Field(default=96, ge=1, description="samples per step, over all processes")
    loss_mean: Literal["batch", "groups"] = Field(
        default="batch", description="batch: over the target tokens of a step; groups: mean of the groups' means"
    )
    loss_groups: int = Field(default=4, ge=1, description="groups of a batch, as the authors' code has one per GPU")
    lr: float = Field(default=1e-4, gt=0, description="peak learning rate of AdamW")
    warmup_lr: float = Field(default=1e-6, ge=0)
    warmup_steps: int = Field(default=2000, ge=0)
    min_lr: float = Field(default=8e-5, ge=0)
    schedule: Literal["cosine", "linear"] = "cosine"
    schedule_steps: int = Field(default=200_000, ge=1, description="steps over which the schedule falls to min_lr")
    weight_decay: float = Field(default=0.05, ge=0, description="on matrices only")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    clip_grad_norm: float | None = Field(default=None, gt=0)
    precision: Literal["bfloat16", "float32", "float64"] = Field(
        default="bfloat16", description="autocast type over float32 masters, or the type of everything"
    )
    validation_rows: int = Field(default=512, ge=0, description="held-out samples, never trained on")
    validation_every: int = Field(default=1000, ge=1, description="steps between validation losses")
    readings: int = Field(default=4, ge=0, description="held-out samples that the T5 reads back as text")
    weights: Literal["last", "best"] = Field(default="last", description="best: by validation loss")
    seed: int = Field(default=42, ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.masking in ("split", "element") and self.features == "input":
            raise ValueError("input tokens cannot be split: their text is the whole answer; set masking to none")
        if self.masking == "words" and self.features != "input":
            raise ValueError("captions are split by words beside a picture's own tokens; set features to input")
        if self.loss_mean == "groups" and self.batch % self.loss_groups:
            raise ValueError("the groups of a batch must be of one size; let loss_groups divide batch")
        if self.weights == "best" and not self.validation_rows:
            raise ValueError("the best weights are told by held-out rows; set validation_rows")
        return self


class AlignerCheckpoint(Artifact):
    """`aligner.safetensors`, `config.json` and `losses.json` (training curve, validation curve)."""
