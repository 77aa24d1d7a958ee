"""What a run would need, looked at all at once, before any work.

In: the stages as a run would call them (`step.rehearsal`), and where it would run. Out: a Plan. What is in the store
already is not looked at. Nothing is written, fetched or loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from thinkdiff.schemas.artifact import EVERY_STAGE, Execution
from thinkdiff.schemas.plan import Finding, Job, Plan

ORDER = ("run", *EVERY_STAGE)
LEVELS = ("blocks", "warns", "tells")


def made_plan(
    name: str, jobs: Sequence[Job], run: Execution, price: float | None = None, written: str | None = None
) -> Plan:
    """The plan of these calls.

    price: of a GPU hour, in any currency; written: a folder below the data root that the run fills itself.
    Raises RootError when the root cannot be read.
    """
    ahead = [job for job in jobs if not job.done]
    findings = look(jobs, ahead, run, price, written) if ahead else []
    return Plan(
        name=name,
        cached=tuple(job.spec.stage for job in jobs if job.done),
        ahead=tuple(job.spec.stage for job in ahead),
        findings=tuple(sorted(findings, key=lambda f: (LEVELS.index(f.level), ORDER.index(f.stage)))),
    )


def look(
    jobs: Sequence[Job], ahead: Sequence[Job], run: Execution, price: float | None, written: str | None
) -> list[Finding]:
    """All findings, in no order."""
    from thinkdiff.tasks.plan_data import data_findings
    from thinkdiff.tasks.plan_models import Models, model_findings
    from thinkdiff.tasks.plan_room import gpu_findings, room_findings
    from thinkdiff.tasks.plan_time import time_findings
    from thinkdiff.tasks.plan_widths import Widths, width_findings

    models = Models(run)
    widths = Widths(models)
    return [
        *model_findings(ahead, models),
        *width_findings(jobs, widths),
        *data_findings(ahead, run, written),
        *room_findings(jobs, run, models, widths),
        *gpu_findings(jobs, run, models),
        *time_findings(jobs, run, price),
    ]


def lines(plan: Plan) -> list[str]:
    """The plan as lines of text: what blocks with what to do about it, then what may, then what is good to know."""
    found = [f"{plan.name}: {len(plan.ahead)} stages to make, {len(plan.cached)} in the store"]
    heads = {"blocks": "missing or not fit", "warns": "to be looked at", "tells": "good to know"}
    for level in ("blocks", "warns", "tells"):
        if some := plan.of(level):
            found.append(f"\n{heads[level]} ({len(some)})")
            found += [f"  {finding.stage:<17} {finding.sentence}" for finding in some]
    return found


def markdown(plan: Plan) -> str:
    """The plan as a table."""
    rows = [
        " | ".join(cell.replace("|", "/") for cell in (f.level, f.stage, f.what, f.found, f.expected, f.todo))
        for f in plan.findings
    ]
    head = "| | stage | what | found | expected | what to do |\n|---|---|---|---|---|---|\n"
    made = f"{len(plan.ahead)} stages to make, {len(plan.cached)} in the store."
    return f"# plan: {plan.name}\n\n{made}\n\n{head}" + "\n".join(f"| {row} |" for row in rows)
