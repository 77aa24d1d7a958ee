"""What a run would need, looked at before any work: the stages it would call, and what was found of what they need.

A Plan is no artifact: it says how one machine looks at one moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from thinkdiff.schemas.artifact import Artifact, Frozen, Spec
from thinkdiff.schemas.errors import PlanError

Level = Literal["blocks", "warns", "tells"]


@dataclass(frozen=True)
class Job:
    """A stage as a run would call it.

    artifact: what is in the store, or one that stands in for it, with a spec and no digest; uri: where it will lie,
    None while the parents are not there; done: whether the stage would be found `Cached`.
    """

    spec: Spec
    parents: Mapping[str, Artifact]
    artifact: Artifact
    uri: str | None
    done: bool


class Finding(Frozen):
    """One thing that a stage needs, and what was found of it."""

    stage: str = Field(description="the stage that needs it; run: all of them")
    what: str
    level: Level = Field(description="blocks: the run would fail; warns: it may; tells: good to know")
    found: str
    expected: str = ""
    todo: str = Field(default="", description="what to do about it, as a sentence")

    @property
    def sentence(self) -> str:
        """In the form of an error."""
        expected = f", expected {self.expected}" if self.expected else ""
        return f"{self.what}: found {self.found}{expected}.{f' {self.todo}' if self.todo else ''}"


class Plan(Frozen):
    """What a run would do and what it lacks, all at once."""

    name: str = Field(description="the recipe, or what the spec is called")
    cached: tuple[str, ...] = Field(description="calls of stages whose artifacts are in the store")
    ahead: tuple[str, ...] = Field(description="those that are to be made")
    findings: tuple[Finding, ...] = ()

    def of(self, level: Level) -> list[Finding]:
        """The findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    def must_not_block(self) -> None:
        """Raises PlanError, in one sentence that counts and lists what blocks."""
        if missing := self.of("blocks"):
            listed = "; ".join(f"{finding.what}: found {finding.found}" for finding in missing)
            raise PlanError(
                f"{self.name}: found {len(missing)} of the things that it needs missing or not fit ({listed}), "
                "expected none. Nothing was begun; `thinkdiff plan` tells what to do about each."
            )
