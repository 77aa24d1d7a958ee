"""Which judge answers, by the spec's choice: a classifier, a VLM that is asked the benchmark's questions, or a CLIP.

In: the spec of a judge and the words to choose from. Out: the judge, used as a context manager.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.cobsat import Family
from thinkdiff.schemas.scores import ClassifierJudge, ClipJudge, VlmJudge
from thinkdiff.tasks.models import compute_device, model_path

if TYPE_CHECKING:
    import logging

    from thinkdiff.tasks.judge import Judge


@contextmanager
def open_judge(
    spec: ClassifierJudge | VlmJudge | ClipJudge, families: Sequence[Family], run: Execution, log: logging.Logger
) -> Iterator[Judge]:
    """The judge of a spec. Raises ModelError when its model is not whole, EngineError when its engine fails."""
    by_name = {family.name: family for family in families}
    if isinstance(spec, VlmJudge):
        from thinkdiff.tasks.judge_vlm import AskingJudge

        with AskingJudge(spec, by_name, run, log) as judge:
            yield judge
    elif isinstance(spec, ClipJudge):
        from thinkdiff.tasks.judge_clip import NearestJudge

        yield NearestJudge(model_path(spec.model, run), by_name, compute_device(run))
    else:
        from thinkdiff.tasks.judge_classifier import ClassifyingJudge

        yield ClassifyingJudge(model_path(spec.model, run), compute_device(run))
