"""Stage 7, render report: everything above -> one self-contained HTML file."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from thinkdiff.schemas.artifact import Artifact, Spec, Stage


class ReportSpec(Spec):
    """What the report is called and how much of it is shown."""

    stage: ClassVar[Stage] = "render_report"
    version: ClassVar[int] = 6
    title: str = "ThinkDiff"
    examples: int = Field(default=20, ge=0, description="prompts shown with their pictures")
    failures: int = Field(default=12, ge=0, description="more of them, whose aligned picture is wrong")
    answers: int = Field(default=12, ge=0, description="training pictures shown with the VLM's words")


class Report(Artifact):
    """`report.html`, self-contained; `tables.md`, its tables for notes, and `tables.tex`, rows for papers.

    stats["scores"]: as in the Scorecard; stats["failures"]: shots -> cause -> wrong pictures of the aligned route.
    """
