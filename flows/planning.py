"""The plan of a run: its stages rehearsed, and all that they lack told at once. The first task of every run.

In: how a run calls its stages, as a function. Out: a Plan. What is in the store is only looked for, so that the plan of
a run that is cached throughout costs a moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed
from prefect.utilities.annotations import quote

from thinkdiff.flows import recipes
from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.pipeline import PipelineSpec
from thinkdiff.schemas.plan import Plan
from thinkdiff.tasks.plan import made_plan, markdown
from thinkdiff.tasks.step import rehearsal


def rehearsed(walk: Callable[[], object], spec: PipelineSpec, run: Execution, price: float | None = None) -> Plan:
    """What the calls of stages in `walk` would need. price: of a GPU hour.

    Raises RootError for a root that cannot be read.
    """
    with rehearsal() as jobs:
        walk()
    return made_plan(spec.name, jobs, run, price, recipes.unwritten(spec, run))


@task(name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan(call: tuple[Callable[[], object], PipelineSpec, Execution]) -> Any:
    """Ends the run in one sentence when something is missing; what else there is to say is a page in the UI."""
    walk, spec, run = call
    found = rehearsed(walk, spec, run)
    if found.ahead:
        create_markdown_artifact(
            markdown(found), key="plan", description=f"{spec.name}: {len(found.ahead)} stages to make"
        )
    found.must_not_block()
    return Completed(message=f"{len(found.ahead)} stages to make, {len(found.cached)} in the store")


def must_be_possible(walk: Callable[[], object], spec: PipelineSpec, run: Execution) -> None:
    """The task `plan`, unless the run does without. Raises PlanError when something is missing."""
    if run.plan:
        state = plan(quote((walk, spec, run)), return_state=True)
        state.result(raise_on_failure=True)
