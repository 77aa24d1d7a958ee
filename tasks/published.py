"""CoBSAT accuracies that have been published, as data, and when a run may be set beside them.

In: what a run asked and who judged. Out: the published rows, or none: they are of the benchmark's own pictures, its
1,000 prompts a task and its judge, and say nothing of other ones. Source: Mi et al., arXiv 2502.10458v1, Tables 1 and
2, which also has the rows of SEED-LLaMA, Emu and GILL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.scores import ScoreSpec, VlmJudge
from thinkdiff.tasks.cobsat import COBSAT_FAMILIES

SOURCE = "arXiv 2502.10458v1, Tables 1 and 2"
TASKS = tuple(
    f"{kind}-{version}" for version in ("I", "II") for kind in ("Color", "Background", "Style", "Action", "Texture")
)
JUDGES = ("llava-1.5-13b-hf", "llava-v1.5-13b")
PROMPTS, SEED = 1000, 123

# system -> shots -> accuracies in the order of TASKS
PUBLISHED: Mapping[str, Mapping[int, Sequence[float]]] = {
    "SEED-LLaMA": {
        2: (0.680, 0.348, 0.203, 0.182, 0.196, 0.287, 0.467, 0.297, 0.261, 0.163),
        4: (0.482, 0.211, 0.141, 0.053, 0.122, 0.252, 0.076, 0.268, 0.207, 0.105),
    },
    "Emu": {
        2: (0.065, 0.051, 0.057, 0.052, 0.078, 0.062, 0.109, 0.081, 0.092, 0.074),
        4: (0.063, 0.018, 0.045, 0.048, 0.097, 0.037, 0.122, 0.109, 0.077, 0.088),
    },
    "GILL": {
        2: (0.171, 0.054, 0.069, 0.063, 0.074, 0.010, 0.043, 0.024, 0.022, 0.040),
        4: (0.106, 0.044, 0.041, 0.073, 0.087, 0.022, 0.059, 0.044, 0.032, 0.067),
    },
    "ThinkDiff-LVLM": {
        2: (0.622, 0.349, 0.237, 0.459, 0.290, 0.511, 0.534, 0.340, 0.534, 0.292),
        4: (0.638, 0.362, 0.254, 0.434, 0.317, 0.610, 0.590, 0.432, 0.664, 0.332),
    },
}


def comparable(asked: CobsatPrompts, judged: ScoreSpec) -> bool:
    """Whether a run asked what the published ones were asked, and had their judge.

    That its pictures are the data set's is not told by this: their number and names are verified, their digest is in
    the features' record.
    """
    same_questions = (
        asked.families == COBSAT_FAMILIES
        and (asked.prompt_type, asked.split, asked.seed) == ("default", "default", SEED)
        and asked.per_task == PROMPTS
    )
    judge = judged.judge
    return (
        same_questions
        and (judged.mode, judged.families) == ("image", COBSAT_FAMILIES)
        and judge == VlmJudge(model=judge.model)
        and judge.model.name.rpartition("/")[2] in JUDGES
    )


def accuracy(system: str, shots: int, task: str) -> float | None:
    """A published accuracy in a task, or in `mean`, the plain mean of the tasks; None where there is none."""
    found = PUBLISHED[system].get(shots)
    if found is None or task not in (*TASKS, "mean"):
        return None
    return fmean(found) if task == "mean" else found[TASKS.index(task)]
