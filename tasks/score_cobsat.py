"""Stage 6. Pictures -> verdicts and accuracies: a picture is right when both its object and its attribute are.

The headline of a method and number of shots is the plain mean of the tasks, as in the benchmark; its interval is
Wilson's over all pictures, and so are those of tasks and of held-out pairs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.scores import Scorecard, ScoreSpec
from thinkdiff.tasks.ahead import batched
from thinkdiff.tasks.cobsat import same_word
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    from thinkdiff.storage.score_tables import AskedPrompt, Verdict
    from thinkdiff.tasks.judge import Seen, Subject

WORDS = "answer"  # the method that answers in words are counted as


def wilson(right: int, total: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share; (0, 1) when nothing was counted."""
    if not total:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, weight = right / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * (share * (1 - share) / total + weight / (4 * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


@step(Scorecard, gpu=True)
def score_cobsat(work: Work, spec: ScoreSpec, media: MediaSet) -> Made:
    """Judges every picture, or in text mode every answer, and counts; a picture that is missing is wrong."""
    import torch

    from thinkdiff.storage.score_tables import SECOND, VERDICTS, Verdict, write_rows

    if work.run.threads:
        torch.set_num_threads(work.run.threads)
    judges = [spec.judge] if spec.second is None else [spec.judge, spec.second]
    subjects, methods = subjects_of(media, spec, work.run.batch)
    files, counted, found, judged = [], list[dict[str, Any]](), list[list[Verdict]](), list[list[Verdict]]()
    with work.progress(media.counts["prompts"] * len(methods) * len(judges), "verdicts") as progress:
        for judge, name in zip(judges, (VERDICTS, SECOND), strict=False):
            every, there = verdicts_of(work, spec, judge, methods, subjects, progress.advance)
            found.append(every)
            judged.append(there)
            files.append(write_rows(work.folder, name, Verdict, found[-1]))
            counted.append({m: count([v for v in found[-1] if v.method == m], spec.confidence) for m in methods})
    scores: dict[str, Any] = {"confidence": spec.confidence, "methods": counted[0]}
    first = found[0]
    unnamed = sum(not (v.thing and v.value) for v in judged[0])
    stats: dict[str, Any] = {"scores": headline(counted[0]), "no_answer": unnamed}
    if len(judges) > 1:
        stats["agreement"] = scores["agreement"] = agreement(*judged)
        scores["second"] = counted[1]
        stats["second_scores"] = headline(counted[1])
    return Made(
        files=(*files, work.folder.write("scores.json", json.dumps(scores, indent=1).encode())),
        counts={"pictures": len(first), "right": sum(v.right for v in first)},
        stats=stats,
        page=score_table(stats["scores"]),
    )


Subjects = Callable[[str], "Iterator[tuple[list[AskedPrompt], list[Subject | None]]]"]


def subjects_of(media: MediaSet, spec: ScoreSpec, size: int) -> tuple[Subjects, tuple[str, ...]]:
    """What is judged, a few at a time, method by method, and the methods; None for a picture that is not there."""
    from thinkdiff.storage.media_files import iterate
    from thinkdiff.storage.score_tables import read_prompts

    asked = {prompt.name: prompt for prompt in read_prompts(media)}

    def pictures(method: str) -> Iterator[tuple[list[AskedPrompt], list[Subject | None]]]:
        left = dict(asked)
        shown = ((left.pop(name), data) for name, data in iterate(media, method))
        for batch in batched(shown, size):
            yield [prompt for prompt, _ in batch], [data for _, data in batch]
        for batch in batched(left.values(), size):
            yield batch, [None] * len(batch)

    def texts(_: str) -> Iterator[tuple[list[AskedPrompt], list[Subject | None]]]:
        for batch in batched(asked.values(), size):
            yield batch, [prompt.answer or None for prompt in batch]

    return (texts, (WORDS,)) if spec.mode == "text" else (pictures, tuple(media.stats["methods"]))


def verdicts_of(
    work: Work, spec: ScoreSpec, judge: Any, methods: Sequence[str], subjects: Subjects, advance: Callable[[int], None]
) -> tuple[list[Verdict], list[Verdict]]:
    """Verdicts on all that was asked for, and those of them that one judge gave: what is not there is wrong unseen."""
    from thinkdiff.tasks.judge import Seen, Wanted
    from thinkdiff.tasks.judges import open_judge

    found: list[Verdict] = []
    judged: list[Verdict] = []
    with open_judge(judge, spec.families, work.run, work.log) as opened:
        for method in methods:
            for prompts, shown in subjects(method):
                work.lease.check()
                there = [
                    (subject, prompt) for subject, prompt in zip(shown, prompts, strict=True) if subject is not None
                ]
                wanted = [Wanted(prompt.family, prompt.target_value, prompt.target_thing) for _, prompt in there]
                seen = opened.see([subject for subject, _ in there], wanted) if there else []
                new = [verdict(method, prompt, one) for (_, prompt), one in zip(there, seen, strict=True)]
                judged += new
                missing = [prompt for subject, prompt in zip(shown, prompts, strict=True) if subject is None]
                found += [*new, *(verdict(method, prompt, Seen("", "")) for prompt in missing)]
                advance(len(prompts))
    return found, judged


def verdict(method: str, prompt: AskedPrompt, seen: Seen) -> Verdict:
    """What was seen beside what was wanted."""
    from thinkdiff.storage.score_tables import Verdict

    right_value, right_thing = same_word(seen.value, prompt.target_value), same_word(seen.thing, prompt.target_thing)
    return Verdict(
        method, prompt.name, prompt.task, prompt.family, prompt.shots, prompt.held_out, prompt.target_value,
        prompt.target_thing, seen.value, seen.thing, right_value, right_thing, right_value and right_thing,
        seen.similarity,
    )  # fmt: skip


def headline(methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Method -> shots -> accuracy."""
    return {m: {shots: cells["mean"]["accuracy"] for shots, cells in by.items()} for m, by in methods.items()}


def agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> dict[str, Any]:
    """How two judges agree on which pictures are right: share, Cohen's kappa, and shares of equal words."""
    other = {(v.method, v.name): v for v in second}
    pairs = [(v, other[v.method, v.name]) for v in first]
    total = len(pairs)
    if not total:
        return {"pictures": 0}

    def share(same: Callable[[Verdict, Verdict], bool]) -> float:
        return sum(same(a, b) for a, b in pairs) / total

    same, one, two = share(lambda a, b: a.right == b.right), share(lambda a, b: a.right), share(lambda a, b: b.right)
    chance = one * two + (1 - one) * (1 - two)
    return {
        "pictures": total, "right": round(same, 6),
        "kappa": round((same - chance) / (1 - chance), 6) if chance < 1 else None,
        "thing": round(share(lambda a, b: same_word(a.thing, b.thing)), 6),
        "value": round(share(lambda a, b: same_word(a.value, b.value)), 6),
    }  # fmt: skip


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
