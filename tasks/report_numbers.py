"""The report's arithmetic: intervals over seeds, differences between conditions, chance, the paper's figures.

In: accuracies. Out: means with intervals and the sentences that they allow. Reads no file and writes no HTML.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.tasks.cobsat import tasks

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom; beyond, 1.96 + 2.46 / df is right to 0.001.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
ENOUGH_SEEDS = 5
NORMAL_975 = statistics.NormalDist().inv_cdf(0.975)

# arXiv 2502.10458v1, Table 3, means at 2 shots, by the names that the recipe `ablations` gives its conditions.
PAPER_ABLATIONS: Mapping[str, float] = {"aligned": 0.417, "no masking": 0.287, "input tokens": 0.016}
BASE = "aligned"


@dataclass(frozen=True)
class Cell:
    """An accuracy with its interval, what it was counted from, and the shares of right things and of right values."""

    accuracy: float
    low: float
    high: float
    right: int
    pictures: int
    thing: float
    value: float


@dataclass(frozen=True)
class Scores:
    """A scorecard as the report reads it: cells by method, shots and group.

    A group is a task, "mean" (the plain mean of the tasks), "seen" or "held-out" (pairs).
    """

    methods: tuple[str, ...]
    shots: tuple[int, ...]
    tasks: tuple[str, ...]
    confidence: float
    cells: Mapping[tuple[str, int, str], Cell]

    def cell(self, method: str, shots: int, group: str = "mean") -> Cell | None:
        """One accuracy, or None when nothing was scored there."""
        return self.cells.get((method, shots, group))

    def joined(self, others: Mapping[str, Scores]) -> Scores:
        """These with the cells of other systems' scorecards, which have one method each, under the systems' names."""
        cells = dict(self.cells)
        for name, scores in others.items():
            cells |= {(name, shots, group): cell for (_, shots, group), cell in scores.cells.items()}
        return Scores((*self.methods, *others), self.shots, self.tasks, self.confidence, cells)


@dataclass(frozen=True)
class Mean:
    """The mean over seeds, and its 95% interval where there are at least two."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Condition:
    """One cell of an ablation: an aligner's change, a decoder, and the accuracies of its seeds.

    `by_seed[seed][shots]` maps each task, and "mean", to an accuracy; `questions` counts the prompts by shots.
    """

    name: str
    by_seed: Mapping[int, Mapping[int, Mapping[str, float]]]
    questions: Mapping[int, int]

    @property
    def change(self) -> str:
        """What is different, e.g. no masking; the part of the name before a comma."""
        return self.name.partition(", ")[0]

    @property
    def decoder(self) -> str:
        """The part of the name after a comma, empty for the recipe's own decoder."""
        return self.name.partition(", ")[2]

    def values(self, shots: int, task: str = "mean") -> list[float]:
        """The accuracies of the seeds, in the order of the seeds."""
        found = [self.by_seed[seed].get(shots, {}).get(task) for seed in sorted(self.by_seed)]
        return [value for value in found if value is not None]


@dataclass(frozen=True)
class Difference:
    """How much the recipe as it is does better than a changed one, in pairs of one seed each."""

    condition: Condition
    shots: int
    gain: Mean
    paper: float | None


def mean_interval(values: Sequence[float]) -> Mean:
    """The mean of a sample and its 95% interval by Student's t."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Mean(mean, None, None, count)
    quantile = T_975[count - 2] if count - 1 <= len(T_975) else 1.96 + 2.46 / (count - 1)
    half = quantile * statistics.stdev(values) / math.sqrt(count)
    return Mean(mean, mean - half, mean + half, count)


def conditions(named: Mapping[str, Scores], method: str = "aligned") -> list[Condition]:
    """Groups scorecards named `condition, seed N` by condition, in the order in which conditions first come.

    Other methods that a condition's scorecards have (a text bridge, say) are conditions by their own names, after it.
    """
    grouped: dict[str, dict[int, Scores]] = {}
    for key, scores in named.items():
        name, _, seed = key.rpartition(", seed ")
        grouped.setdefault(name or key, {})[int(seed) if name and seed.isdigit() else 0] = scores
    made = []
    for name, cards in grouped.items():
        first = next(iter(cards.values()))
        _, comma, decoder = name.partition(", ")
        for found in sorted(first.methods, key=lambda each: each != method):
            by_seed = {seed: accuracies(scores, found) for seed, scores in cards.items()}
            questions = {n: cell.pictures for n in first.shots if (cell := first.cell(found, n)) is not None}
            route = found.replace("_", " ")
            made.append(Condition(name if found == method else f"{route}{comma}{decoder}", by_seed, questions))
    return made


def accuracies(scores: Scores, method: str) -> dict[int, dict[str, float]]:
    """One method's accuracies by shots and task, the mean of the tasks last."""
    return {
        shots: {
            group: cell.accuracy for group in (*scores.tasks, "mean") if (cell := scores.cell(method, shots, group))
        }
        for shots in scores.shots
        if scores.cell(method, shots) is not None
    }


def differences(found: Sequence[Condition]) -> list[Difference]:
    """Every changed condition against the recipe as it is with the same decoder, for each number of shots."""
    base = {condition.decoder: condition for condition in found if condition.change == BASE}
    made = []
    for condition in found:
        other = base.get(condition.decoder)
        if other is None or other is condition:
            continue
        for shots in all_shots([other, condition]):
            gains = paired(other, condition, shots)
            if gains:
                made.append(Difference(condition, shots, mean_interval(gains), paper_gain(condition, shots)))
    return made


def paired(base: Condition, other: Condition, shots: int) -> list[float]:
    """base - other for every seed that both have."""
    both = sorted(set(base.by_seed) & set(other.by_seed))
    both = [seed for seed in both if shots in base.by_seed[seed] and shots in other.by_seed[seed]]
    return [base.by_seed[seed][shots]["mean"] - other.by_seed[seed][shots]["mean"] for seed in both]


def paper_gain(condition: Condition, shots: int) -> float | None:
    """The same difference in the paper, which has it for 2 shots only."""
    found = PAPER_ABLATIONS.get(condition.change)
    return None if found is None or shots != 2 else PAPER_ABLATIONS[BASE] - found


def reading(difference: Difference) -> str:
    """What a difference allows to say, and whether that is what the paper says."""
    low, high, paper = difference.gain.low, difference.gain.high, difference.paper
    if low is None or high is None:
        return "one pair of seeds: nothing can be said"
    few = "" if difference.gain.seeds >= ENOUGH_SEEDS else f" (only {difference.gain.seeds} seeds)"
    if low > 0:
        return "worse than aligned" + (", as in the paper" if paper is not None else "") + few
    if high < 0:
        return "better than aligned" + (", against the paper" if paper is not None else "") + few
    if paper is not None and paper <= high:
        return "undecided: both zero and the paper's figure fit" + few
    return "no clear difference" + (", unlike the paper" if paper is not None else "") + few


def gained(scores: Scores, method: str, few: int, many: int) -> Mean | None:
    """How much better a method is with more shots: a difference of means of tasks, whose questions are different ones.

    Its 95% interval is the normal one of the tasks' binomial variances.
    """
    pairs = [(scores.cell(method, few, task), scores.cell(method, many, task)) for task in scores.tasks]
    both = [(one, two) for one, two in pairs if one is not None and two is not None]
    if not both:
        return None
    mean = statistics.fmean(two.accuracy - one.accuracy for one, two in both)
    spread = sum(cell.accuracy * (1 - cell.accuracy) / cell.pictures for pair in both for cell in pair)
    half = NORMAL_975 * math.sqrt(spread) / len(both)
    return Mean(mean, mean - half, mean + half, len(both))


def all_shots(found: Iterable[Condition]) -> list[int]:
    """The numbers of shots that any seed of any condition has."""
    return sorted({shots for condition in found for scores in condition.by_seed.values() for shots in scores})


@dataclass(frozen=True)
class Chance:
    """How often a picture is right that shows any of the words, and one that shows the query's word and any other."""

    blind: float
    query_only: float


def chance(spec: CobsatPrompts) -> Chance:
    """The mean over the tasks of guessing both words, and of knowing the written one and guessing the latent one."""
    sizes = [tuple(len(words) for words in task.words) for task in tasks(spec)]
    return Chance(
        blind=statistics.fmean(1 / (written * latent) for written, latent in sizes),
        query_only=statistics.fmean(1 / latent for _, latent in sizes),
    )
