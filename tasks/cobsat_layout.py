"""Where the benchmark's own code keeps results: names of pictures, of their descriptions and of evaluations.

    results/exps/{model}_image/shot_{shots}/{prompt_type}/task_{id}/{sample}.jpg and .json
    results/evals/{model}_image/{judge}_eval/shot_{shots}/{prompt_type}/task_{id}_summary.csv

In: a model's name, a spec, prompts. Out: paths with `/`, relative to the folder that holds `results`. Task ids count
from 1 in the order of `cobsat.tasks`. Opens no file.
"""

from __future__ import annotations

import re

from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import SpecError
from thinkdiff.schemas.media import MODEL_NAME
from thinkdiff.tasks.cobsat import Prompt, tasks


def exps_folder(model: str) -> str:
    """The folder of a model's pictures."""
    return f"results/exps/{model}_image"


def sample_paths(model: str, spec: CobsatPrompts, asked: list[Prompt]) -> list[str]:
    """Where each prompt's picture and description are, without `.jpg` and `.json`."""
    ids = task_ids(spec)
    return [
        f"{exps_folder(model)}/shot_{prompt.shots}/{spec.prompt_type}/task_{ids[prompt.task]}/{prompt.sample}"
        for prompt in asked
    ]


def summary_path(model: str, judge: str, spec: CobsatPrompts, shots: int, task: int) -> str:
    """Where the evaluation of a task is."""
    return f"results/evals/{model}_image/{judge}_eval/shot_{shots}/{spec.prompt_type}/task_{task}_summary.csv"


def task_ids(spec: CobsatPrompts) -> dict[str, int]:
    """The benchmark's number of each task, by its name."""
    return {task.name: number for number, task in enumerate(tasks(spec), start=1)}


def check_model_name(name: str) -> str:
    """The name, when it can be part of a path. Raises SpecError otherwise."""
    if not re.fullmatch(MODEL_NAME, name):
        raise SpecError(f"name: found {name!r:.80}, expected letters, digits, `.`, `_` and `-`. It names a folder.")
    return name


def check_layout(spec: CobsatPrompts) -> None:
    """Raises SpecError for a split that the layout has no place for."""
    if spec.split != "default":
        raise SpecError(
            f"split: found {spec.split}, expected default. The benchmark keeps results of tuned models by how they "
            "were tuned, which is not known here; take the split default."
        )
