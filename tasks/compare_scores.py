"""Two runs side by side: which questions one gets right and the other does not, and in what the runs differ.

In: two scorecards under one root, each by one method. Out: numbers, the differing settings, and the questions. Only
questions that both were asked are compared. Reads, writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any

from thinkdiff.schemas.artifact import Artifact
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.scores import Scorecard
from thinkdiff.storage.media_files import MediaReader
from thinkdiff.storage.records import artifact_folder, find_artifacts, read_record
from thinkdiff.storage.score_tables import AskedPrompt, Verdict, read_prompts, read_verdicts
from thinkdiff.tasks.report_reader import parent

MEAN = "mean"
OUTCOMES = ("both", "first only", "second only", "neither")
SHOWN_VALUE = 60
VERDICTS_DEPEND_ON = ("judge", "mode", "families")
NORMAL_975 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Side:
    """One method of one scorecard, with what was asked and seen of each prompt by its name."""

    card: Scorecard
    media: MediaSet
    method: str
    prompts: Mapping[str, AskedPrompt]
    verdicts: Mapping[str, Verdict]

    @property
    def name(self) -> str:
        """How it is called on pages: the method and the start of the fingerprint."""
        return f"{self.method} {self.card.fingerprint[:8]}"


@dataclass(frozen=True)
class Pairs:
    """How many questions both, one or none of two sides got right."""

    both: int = 0
    first: int = 0
    second: int = 0
    neither: int = 0

    @property
    def total(self) -> int:
        """All questions."""
        return self.both + self.first + self.second + self.neither

    @property
    def accuracies(self) -> tuple[float, float]:
        """Shares right of the first and of the second side."""
        return (self.both + self.first) / self.total, (self.both + self.second) / self.total

    @property
    def gain(self) -> float:
        """The second's accuracy less the first's."""
        return (self.second - self.first) / self.total

    @property
    def variance(self) -> float:
        """Of the gain, the questions being a sample."""
        return (self.second + self.first - (self.second - self.first) ** 2 / self.total) / self.total**2

    @property
    def chance(self) -> float:
        """McNemar's exact p: how likely so unequal a split is when neither side is better."""
        discordant, less = self.first + self.second, min(self.first, self.second)
        tail = (
            math.fsum(math.comb(discordant, k) * 0.5**discordant for k in range(less + 1)) if discordant < 1000 else 0
        )
        if discordant >= 1000:  # where the normal approximation is exact to more digits than are shown
            z = (abs(self.first - self.second) - 1) / math.sqrt(discordant)
            tail = 1 - NormalDist().cdf(z)
        return min(1.0, 2 * tail)


@dataclass(frozen=True)
class Gain:
    """Two accuracies, their difference with its 95% interval, and McNemar's p of all its questions."""

    first: float
    second: float
    gain: float
    low: float
    high: float
    pairs: Pairs


@dataclass(frozen=True)
class Comparison:
    """Two sides. `gains` by (shots, task), the task `mean` being the plain mean of the tasks; `outcomes` by prompt."""

    first: Side
    second: Side
    gains: Mapping[tuple[int, str], Gain]
    outcomes: Mapping[str, str]
    differing: Mapping[str, tuple[str, str]]

    @property
    def same_judge(self) -> bool:
        """Whether one judge judged both in one way; a second judge and the intervals' confidence change no verdict."""
        one, two = self.first.card, self.second.card
        return one.version == two.version and all(one.spec.get(k) == two.spec.get(k) for k in VERDICTS_DEPEND_ON)


def side(root: str, reference: str) -> Side:
    """A scorecard by `fingerprint` or `fingerprint:method`; the method is `aligned` by default, or the only one.

    Raises SpecError when there is none such, or several.
    """
    start, _, method = reference.partition(":")
    found = [a for a in find_artifacts(root, ("score_cobsat",)) if a.fingerprint.startswith(start)]
    card = read_record(artifact_folder(root, "score_cobsat", found[0].fingerprint), Scorecard) if found else None
    if card is None or len(found) != 1:
        raise SpecError(
            f"{reference}: found {len(found)} scorecards under {root} that start with {start!r}, expected exactly one. "
            "`thinkdiff artifacts` lists them."
        )
    verdicts = read_verdicts(card)
    methods = list(dict.fromkeys(verdict.method for verdict in verdicts))
    method = method or ("aligned" if "aligned" in methods else methods[0])
    if method not in methods:
        raise SpecError(f"{reference}: found the methods {', '.join(methods)}, expected {method!r} among them.")
    media = parent(root, card, "media", MediaSet)
    asked = {prompt.name: prompt for prompt in read_prompts(media)}
    return Side(card, media, method, asked, {v.name: v for v in verdicts if v.method == method})


def compared(root: str, first: Side, second: Side) -> Comparison:
    """Both sides on the questions that both were asked. Raises InputError when there are none."""
    outcomes = {
        name: outcome(verdict.right, second.verdicts[name].right)
        for name, verdict in first.verdicts.items()
        if name in second.verdicts and same_question(first.prompts[name], second.prompts[name])
    }
    if not outcomes:
        raise InputError(
            f"{first.name}, {second.name}: found no question that both were asked, expected the same benchmark. Their "
            "words, shots, seeds or prompt types differ; compare runs of one benchmark."
        )
    cells: dict[tuple[int, str], list[str]] = {}
    for name, found in outcomes.items():
        cells.setdefault((first.prompts[name].shots, first.prompts[name].task), []).append(found)
    pairs = {key: Pairs(*(found.count(each) for each in OUTCOMES)) for key, found in sorted(cells.items())}
    gains = {key: gained([found]) for key, found in pairs.items()}
    for shots in sorted({shots for shots, _ in pairs}):
        gains[shots, MEAN] = gained([found for (n, _), found in pairs.items() if n == shots])
    return Comparison(first, second, gains, outcomes, differing(root, first, second))


def same_question(one: AskedPrompt, two: AskedPrompt) -> bool:
    """Whether two prompts of one name ask for the same."""
    return (one.task, one.shots, one.target_value, one.target_thing) == (
        two.task, two.shots, two.target_value, two.target_thing,
    )  # fmt: skip


def outcome(first: bool, second: bool) -> str:
    """Which side is right."""
    return OUTCOMES[2 * (not first) + (not second)]


def gained(tasks: list[Pairs]) -> Gain:
    """The plain mean over tasks of what the second side gains."""
    gain = fmean(pairs.gain for pairs in tasks)
    half = NORMAL_975 * math.sqrt(math.fsum(pairs.variance for pairs in tasks)) / len(tasks)
    first, second = (fmean(pairs.accuracies[end] for pairs in tasks) for end in (0, 1))
    counts = [sum(counts) for counts in zip(*((p.both, p.first, p.second, p.neither) for p in tasks), strict=True)]
    return Gain(first, second, gain, gain - half, gain + half, Pairs(*counts))


def differing(root: str, first: Side, second: Side) -> dict[str, tuple[str, str]]:
    """The settings of both runs that differ, by stage and name; of an ancestor that is gone nothing is told."""
    one, two = dict(settings(root, first.card, "scores")), dict(settings(root, second.card, "scores"))
    if first.method != second.method:
        one["method"], two["method"] = first.method, second.method
    changed = [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]
    return {name: (brief(one.get(name)), brief(two.get(name))) for name in changed}


def settings(root: str, artifact: Artifact, role: str) -> Iterator[tuple[str, Any]]:
    """`role.field.field` and value of an artifact's spec, and of its ancestors'."""
    yield from flat(artifact.spec, role)
    for name, named in artifact.parents.items():
        found = read_record(artifact_folder(root, named.stage, named.fingerprint), Artifact)
        if found is not None:
            yield from settings(root, found, name)


def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects by their paths; a list is a leaf."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from flat(inner, f"{name}.{key}")


def brief(value: Any) -> str:
    """A setting in a few characters."""
    text = "–" if value is None else str(value)
    return text if len(text) <= SHOWN_VALUE else text[: SHOWN_VALUE - 1] + "…"


def picture(side: Side, reader: MediaReader, name: str) -> bytes | None:
    """What a side drew, None when it drew nothing."""
    return reader.read(side.method, name) if reader.has(side.method, name) else None
