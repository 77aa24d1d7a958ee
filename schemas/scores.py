"""Stage 6, score CoBSAT: pictures -> verdicts, accuracies, intervals."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from thinkdiff.schemas.artifact import Artifact, Frozen, Model, Spec, Stage
from thinkdiff.schemas.cobsat import Family

Conversation = Literal["template", "llava-1.5"]


class ClassifierJudge(Frozen):
    """An image classifier with labels `<group>/<word>`, such as the miniature's."""

    kind: Literal["classifier"] = "classifier"
    model: Model


class VlmJudge(Frozen):
    """A VLM that is asked the benchmark's two questions of each picture: which object, and which attribute."""

    kind: Literal["vlm"] = "vlm"
    model: Model = Field(description="any VLM that vLLM knows; the benchmark's is llava-hf/llava-1.5-13b-hf")
    conversation: Conversation = Field(
        default="llava-1.5", description="how a turn is written: as LLaVA v1 was trained, or by the model's template"
    )
    pad: bool = Field(default=True, description="pictures are padded to squares with LLaVA's mean colour")
    max_tokens: int = Field(default=512, ge=1, description="of a reply; greedy")
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"


class ClipJudge(Frozen):
    """A CLIP: the nearest of the object words and of the attribute words, and the likeness to the right ones."""

    kind: Literal["clip"] = "clip"
    model: Model = Field(description="the benchmark's is openai/clip-vit-base-patch32")


Judge = Annotated[ClassifierJudge | VlmJudge | ClipJudge, Field(discriminator="kind")]


class ScoreSpec(Spec):
    """Who judges. A picture is right when both its object and its attribute are."""

    stage: ClassVar[Stage] = "score_cobsat"
    version: ClassVar[int] = 2
    judge: Judge = Field(description="whose verdicts count")
    second: Judge | None = Field(default=None, description="another judge; told is how often both agree")
    mode: Literal["image", "text"] = Field(
        default="image", description="text: not pictures but the VLM's answers are judged, by a VLM"
    )
    families: tuple[Family, ...] = Field(
        default=(), description="the words to choose from, in benchmark order; VLMs and CLIPs must be given them"
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="of the Wilson intervals")

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        judges = [judge for judge in (self.judge, self.second) if judge is not None]
        if not self.families and any(judge.kind != "classifier" for judge in judges):
            raise ValueError("a VLM or CLIP judges by words to choose from; give the benchmark's families")
        if self.mode == "text" and any(judge.kind != "vlm" for judge in judges):
            raise ValueError("answers in words are judged by a VLM; set judge.kind to vlm, or mode to image")
        return self


class Scorecard(Artifact):
    """`verdicts.parquet` (one row per picture), `second_verdicts.parquet` if another judge was asked, `scores.json`.

    stats["scores"]: method -> shots -> accuracy, the plain mean of the tasks as in the benchmark's headline.
    """
