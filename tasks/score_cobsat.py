"""Stage 6. Pictures -> verdicts and accuracies: a picture is right when both its object and its attribute are.

The headline of a method and number of shots is the plain mean of the tasks, as in the benchmark; its interval is
Wilson's over all pictures, and so are those of tasks and of held-out pairs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.scores import Scorecard, ScoreSpec
from thinkdiff.tasks.cobsat import same_word
from thinkdiff.tasks.models import compute_device, model_path
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    from thinkdiff.storage.score_tables import Verdict


def wilson(right: int, total: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share; (0, 1) when nothing was counted."""
    if not total:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, weight = right / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * (share * (1 - share) / total + weight / (4 * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


@step(Scorecard)
def score_cobsat(work: Work, spec: ScoreSpec, media: MediaSet) -> Made:
    """Judges every picture and counts."""
    import torch

    from thinkdiff.storage.score_tables import VERDICTS, Verdict, read_prompts, write_rows
    from thinkdiff.tasks.judge import Judge

    if work.run.threads:
        torch.set_num_threads(work.run.threads)
    prompts = {prompt.name: prompt for prompt in read_prompts(media)}
    judge = Judge(model_path(spec.judge, work.run), compute_device(work.run))
    verdicts: list[Verdict] = []
    with work.progress(media.counts["pictures"], "pictures") as progress:
        for method in media.stats["methods"]:
            for names, pictures_NHW3 in picture_batches(media, method, work.run.batch):
                asked = [prompts[name] for name in names]
                seen = judge.verdicts(pictures_NHW3, [prompt.family for prompt in asked])
                for prompt, (thing, value) in zip(asked, seen, strict=True):
                    right_value = same_word(value, prompt.target_value)
                    right_thing = same_word(thing, prompt.target_thing)
                    verdicts.append(
                        Verdict(
                            method, prompt.name, prompt.task, prompt.family, prompt.shots, prompt.held_out,
                            prompt.target_value, prompt.target_thing, value, thing,
                            right_value, right_thing, right_value and right_thing,
                        )
                    )  # fmt: skip
                progress.advance(len(names))
    methods = {
        method: count([v for v in verdicts if v.method == method], spec.confidence) for method in media.stats["methods"]
    }
    scores = {"confidence": spec.confidence, "methods": methods}
    files = (
        write_rows(work.folder, VERDICTS, Verdict, verdicts),
        work.folder.write("scores.json", json.dumps(scores, indent=1).encode()),
    )
    headline = {m: {shots: cells["mean"]["accuracy"] for shots, cells in by.items()} for m, by in methods.items()}
    return Made(
        files=files,
        counts={"pictures": len(verdicts), "right": sum(v.right for v in verdicts)},
        stats={"scores": headline},
        page=score_table(headline),
    )


def picture_batches(media: MediaSet, method: str, size: int) -> Any:
    """(names, uint8 (N, H, W, 3)) of a method's pictures, a few at a time."""
    from PIL import Image

    from thinkdiff.storage.media_files import iterate

    names: list[str] = []
    pictures: list[Any] = []
    for name, data in iterate(media, method):
        names.append(name)
        pictures.append(np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB")))
        if len(names) == size:
            yield names, np.stack(pictures)
            names, pictures = [], []
    if names:
        yield names, np.stack(pictures)


def count(verdicts: Sequence[Verdict], confidence: float) -> dict[str, Any]:
    """Shots -> the mean of the tasks, every task, seen and held-out pairs; each a cell of `cell`."""
    found: dict[str, Any] = {}
    for shots in sorted({v.shots for v in verdicts}):
        these = [v for v in verdicts if v.shots == shots]
        by_task = {task: [v for v in these if v.task == task] for task in dict.fromkeys(v.task for v in these)}
        tasks = {task: cell(rows, confidence) for task, rows in by_task.items()}
        mean = cell(these, confidence)
        mean["accuracy"] = round(sum(t["accuracy"] for t in tasks.values()) / len(tasks), 6)
        found[str(shots)] = {
            "mean": mean,
            "tasks": tasks,
            "seen": cell([v for v in these if not v.held_out], confidence),
            "held_out": cell([v for v in these if v.held_out], confidence),
        }
    return found


def cell(verdicts: Sequence[Verdict], confidence: float) -> dict[str, Any]:
    """One accuracy with its interval, and the shares of right objects and of right attributes."""
    total = len(verdicts)

    def share(right: Callable[[Verdict], bool]) -> float:
        return round(sum(right(v) for v in verdicts) / total, 6) if total else 0.0

    right = sum(v.right for v in verdicts)
    low, high = wilson(right, total, confidence)
    return {
        "accuracy": share(lambda v: v.right), "low": round(low, 6), "high": round(high, 6), "right": right,
        "pictures": total, "thing": share(lambda v: v.right_thing), "value": share(lambda v: v.right_value),
    }  # fmt: skip


def score_table(headline: dict[str, dict[str, float]]) -> str:
    """The headline as a markdown table."""
    shots = sorted({s for by in headline.values() for s in by}, key=int)
    rows = ["| method | " + " | ".join(f"{s} shots" for s in shots) + " |", "|---" * (len(shots) + 1) + "|"]
    rows += [f"| {m} | " + " | ".join(f"{by[s]:.3f}" for s in shots) + " |" for m, by in headline.items()]
    return "\n".join(rows)
