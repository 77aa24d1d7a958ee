"""How long a run would take, and what that costs: from figures that were measured, and of nothing else.

In: the stages that are to be made. Out: findings. The figures stand in tests/bench/RESULTS.md; what is not there is
"not measured", and so is a stage whose spec differs from the measured one in what its time hangs on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.captions import CaptionSpec
from thinkdiff.schemas.features import FeatureSpec
from thinkdiff.schemas.plan import Finding, Job

STEP = {False: 0.1864, True: 0.1751}  # seconds of a step of the paper's size on one H200, by run.compile
SAMPLED = 1_700_000  # captions, of 16.7 million rows
SAMPLING = 12.3  # seconds, the slowest of five
LONG = ("extract_features", "fetch_images", "generate_media", "score_cobsat", "train_aligner")


def seconds_of(job: Job, run: Execution) -> tuple[float, str] | None:
    """Seconds of a stage, and on what that was measured; None where it was not."""
    spec = job.spec
    if isinstance(spec, CaptionSpec) and spec.n == SAMPLED:
        return SAMPLING, "two processor cores, of 16.7 million rows"
    if isinstance(spec, AlignerSpec) and is_the_papers(spec, job):
        return STEP[run.compile] * spec.steps, f"one H200, {spec.steps} steps"
    return None


def is_the_papers(spec: AlignerSpec, job: Job) -> bool:
    """Whether a step is as large as the measured one: FLAN-T5-XXL, 64 tokens of 3584 always, batches of 96."""
    seen = FeatureSpec.model_validate(job.parents["features"].spec)
    asked = (seen.vlm.name, seen.max_tokens, seen.end_policy, seen.prompts.kind)
    trained = (spec.t5.name, spec.features, spec.masking, spec.tokens or seen.max_tokens, spec.batch, spec.precision)
    return asked == ("Qwen/Qwen2-VL-7B-Instruct", 64, "forced", "captions") and trained == (
        "google/flan-t5-xxl", "generated", "split", 64, 96, "bfloat16"
    )  # fmt: skip


def time_findings(jobs: Sequence[Job], run: Execution, price: float | None) -> Iterator[Finding]:
    """One finding for each measured stage, one that lists the others, and their cost at a price per GPU hour."""
    total, open_ones = 0.0, list[str]()
    for job in (job for job in jobs if not job.done):
        found = seconds_of(job, run)
        if found is None:
            open_ones += [job.spec.stage] if job.spec.stage in LONG else []
            continue
        seconds, where = found
        on_gpu = isinstance(job.spec, AlignerSpec)
        total += seconds if on_gpu else 0.0
        text = f"{seconds / 3600:.2f} hours" if seconds >= 360 else f"{seconds:.0f} s"
        yield Finding(stage=job.spec.stage, what="time", level="tells", found=f"{text} (measured on {where})")
    missing = ", ".join(dict.fromkeys(open_ones))
    if missing:
        yield Finding(stage="run", what="time", level="tells", found=f"not measured: {missing}")
    if price is not None:
        found = f"{total / 3600 * price:.2f} for {total / 3600:.2f} measured GPU hours at {price:g} an hour"
        yield Finding(
            stage="run", what="cost", level="tells", found=found + (f"; not measured: {missing}" if missing else "")
        )
