"""Stage 6, score CoBSAT: pictures -> verdicts, accuracies, intervals."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from thinkdiff.schemas.artifact import Artifact, Model, Spec, Stage


class ScoreSpec(Spec):
    """Who judges. A picture is right when both its object and its attribute are."""

    stage: ClassVar[Stage] = "score_cobsat"
    judge: Model = Field(description="an image classifier with labels <group>/<word>")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="of the Wilson intervals")


class Scorecard(Artifact):
    """`verdicts.parquet` (one row per picture) and `scores.json`.

    stats["scores"]: method -> shots -> accuracy, the plain mean of the tasks as in the benchmark's headline.
    """
