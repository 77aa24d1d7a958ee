"""The report as one HTML page that needs nothing else: no network, no script, light and dark.

In: `Content`, numbers and bytes that a verb has read. Out: the page's bytes. No sentence holds a result that is not
computed from the content, and all that comes from data is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from thinkdiff.schemas.artifact import Artifact
from thinkdiff.schemas.features import FeatureStatistics
from thinkdiff.tasks.report_ablations import ablations
from thinkdiff.tasks.report_accuracy import NAMES, accuracy, by_task
from thinkdiff.tasks.report_confusion import Confusion, confused
from thinkdiff.tasks.report_data import data
from thinkdiff.tasks.report_examples import Example, axes, cards, hero
from thinkdiff.tasks.report_failures import BLAMED, Counts, failures
from thinkdiff.tasks.report_features import Spoken, features
from thinkdiff.tasks.report_filters import Axis, buttons, rules
from thinkdiff.tasks.report_frame import document
from thinkdiff.tasks.report_losses import Trained
from thinkdiff.tasks.report_markup import Child, Html, join, percent, plural, table, tag
from thinkdiff.tasks.report_numbers import Chance, Condition, Scores
from thinkdiff.tasks.report_plots import curves


@dataclass(frozen=True)
class Content:
    """Everything that the page shows. `artifacts` are the report's ancestors by role, oldest first."""

    title: str
    fingerprint: str
    scores: Scores
    chance: Chance
    examples: Sequence[Example]
    answers: Sequence[Spoken]
    statistics: FeatureStatistics | None
    training: Sequence[float]
    validation: Sequence[Sequence[float]]
    conditions: Sequence[Condition]
    artifacts: Mapping[str, Artifact]
    variants: Mapping[str, Artifact]
    trained: Sequence[Trained] = ()
    readings: Sequence[Mapping[str, str]] = ()
    comparable: bool = False
    failed: Counts = field(default_factory=dict)
    confused: Sequence[Confusion] = ()
    second: bool = False
    read_back: bool = False

    @property
    def axes(self) -> list[Axis]:
        """What the questions are filtered by."""
        outcomes = ("right", "wrong") if "aligned" in self.scores.methods else ()
        return axes(self.scores.tasks, self.scores.shots, outcomes, list(BLAMED.values()) if self.failed else ())

    def model(self, role: str, field: str) -> str:
        """The name of a model that an artifact's spec asked for."""
        found = self.artifacts[role].spec.get(field)
        found = found.get("model", found) if isinstance(found, dict) else found  # a judge's kind stands around it
        return str(found["name"]).rpartition("/")[2] if isinstance(found, dict) else "none"


def page(content: Content) -> bytes:
    """The whole page as UTF-8."""
    sections = [
        ("accuracy", "Accuracy", accuracy(content.scores, content.chance, content.model("scores", "judge"))),
        ("pictures", "Questions and pictures", pictures(content)),
        ("tasks", "Task by task", by_task(content.scores, content.comparable)),
        ("failures", "Mistakes", mistakes(content)),
        ("training", "Training the aligner", training(content)),
        ("data", "Captions and pictures", data(content.artifacts["captions"], content.artifacts["images"])),
        ("features", "What the VLM says", features(content.answers, content.statistics)),
        ("ablations", "Ablations", ablations(content.conditions, content.chance.blind, content.trained)),
        ("provenance", "Provenance", provenance(content)),
    ]
    style = rules(content.axes, "pictures", ".card")
    return document(content.title, opening(content), sections, footer(content), style)


def opening(content: Content) -> Html:
    """The title, three sentences for someone who has never heard of it, and one question answered."""
    counts, scores = content.artifacts["aligner"].counts, content.scores
    steps, rows = counts.get("steps", 0), counts.get("training_rows", 0)
    taught = f"trained for {plural(steps, 'step')} on {plural(rows, 'captioned picture')} and on no analogy"
    lede: list[Child] = [
        "A diffusion model completes visual analogies. It reads them through the eyes of a vision-language model, "
        "whose thoughts reach it by way of a small network, the aligner, "
        f"{taught if steps else 'left untrained here'}. "
    ]
    found = [(shots, cell) for shots in scores.shots if (cell := scores.cell("aligned", shots)) is not None]
    if found:
        asked = plural(sum(cell.pictures for _, cell in found), "question")
        lede.append(f"Asked {asked}, it draws the right picture ")
        for i, (shots, cell) in enumerate(found):
            lede += [" and " if i else None, tag("b", f"{percent(cell.accuracy)}%"), " of the time "]
            lede.append(f"from {plural(shots, 'example')}")
        lede.append(f"; a blind guess is right {percent(content.chance.blind)}% of the time.")
    about = f"ThinkDiff on CoBSAT · {content.model('queries', 'vlm')} → aligner → {content.model('media', 'decoder')}"
    words = tag("p", *lede, class_="lede")
    return tag("header", tag("p", about, class_="eyebrow"), tag("h1", content.title), words, hero(content.examples))


def pictures(content: Content) -> Html:
    """A sample of questions with all their pictures."""
    if not content.examples:
        return tag("p", "This report was asked to show no examples.", class_="soft")
    note = (
        f"{plural(len(content.examples), 'question')}, spread evenly over the tasks, and of the failures over what "
        "they are put down to, all chosen by a hash of their names, so nobody picked the good ones. Under each name "
        "stands what the judge sees; ✓ means that object and attribute are both right."
    )
    return join([tag("p", note), buttons(content.axes, "pictures"), cards(content.examples, NAMES, content.axes)])


def mistakes(content: Content) -> Html:
    """Which part of the chain fails, and which words are taken for which."""
    parts = [failures(content.failed, content.second, content.read_back), confused(content.confused)]
    if not any(parts):
        found = "wrong" if "aligned" in content.scores.methods else "judged"
        return tag("p", f"No picture of the aligned route is {found}.", class_="soft")
    return join(parts)


def training(content: Content) -> Html:
    """What was trained, and the loss curves."""
    counts, spec = content.artifacts["aligner"].counts, content.artifacts["aligner"].spec
    ways = {
        "split": "the first part of a caption's hidden states goes in, and the frozen T5 decoder must continue it",
        "element": "some of a caption's hidden states go in, and the frozen T5 decoder must say the other words",
        "words": "a picture's tokens and the first words of its caption go in, and the frozen T5 decoder must go on",
        "none": "all of a caption's hidden states go in, and the frozen T5 decoder must repeat it",
    }
    said = (
        f"{plural(counts.get('parameters', 0), 'parameter')}, {plural(counts.get('steps', 0), 'step')} of "
        f"{spec.get('batch')} captions: {ways.get(str(spec.get('masking')), '')}. The diffusion model takes no part "
        f"in it. Validation is on {plural(counts.get('validation_rows', 0), 'held-out caption')}."
    )
    note = "Loss per token (logarithmic) by step. The faint line is each step's loss, the bold one a running mean."
    parts = [tag("p", said), curves(content.training, content.validation), tag("p", note, class_="soft")]
    return join([*parts, read_back(content.readings)])


def read_back(rows: Sequence[Mapping[str, str]]) -> Html | None:
    """What the T5 decoder says to held-out features, beside the VLM's own words."""
    if not rows:
        return None
    said = (
        "What the frozen T5 decoder reads, greedily, in the aligned features that are shown of a held-out caption, "
        "beside the words that are not shown. The features tell no more than the model had thought of by then."
    )
    body: list[list[Child]] = [[row["expected"], row["read"]] for row in rows]
    return join([tag("h3", "Read back"), tag("p", said), table(["Not shown", "The T5 reads"], body, class_="words")])


def provenance(content: Content) -> Html:
    """Every artifact: what it is, when, where and from what code it was made, and its whole spec."""
    head = ["Artifact", "Fingerprint", "Made (UTC)", "Took", "Host", "Commit", "Counts"]
    note = (
        "A fingerprint is a hash of what was asked for and of the parents' content. The same request on the same data "
        "is found in the store and not made again."
    )
    specs = [
        tag("details", tag("summary", f"Spec of {role}"), tag("pre", pretty(artifact.spec)))
        for role, artifact in content.artifacts.items()
    ]
    parts: list[Child] = [
        tag("p", note),
        table(head, [made(role, artifact) for role, artifact in content.artifacts.items()], class_="words"),
        tag("p", tag("b", "Packages: "), versions([*content.artifacts.values(), *content.variants.values()])),
        *specs,
    ]
    if content.variants:
        lines = table(head, [made(name, artifact) for name, artifact in content.variants.items()], class_="words")
        title = f"{plural(len(content.variants), 'scorecard')} of the ablations"
        parts.append(tag("details", tag("summary", title), lines))
    return join(parts)


def pretty(spec: Mapping[str, object]) -> str:
    """A spec as indented JSON."""
    return json.dumps(spec, indent=1, ensure_ascii=False)


def versions(artifacts: Sequence[Artifact]) -> str:
    """All packages with all the versions that any of the artifacts was made with."""
    found: dict[str, set[str]] = {}
    for artifact in artifacts:
        for name, version in artifact.provenance.packages.items():
            found.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' / '.join(sorted(each))}" for name, each in sorted(found.items()))


def made(role: str, artifact: Artifact) -> list[Child]:
    """One line of provenance."""
    origin = artifact.provenance
    counts = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in artifact.counts.items())
    return [
        join([role, tag("small", artifact.stage)]),
        tag("code", artifact.fingerprint[:12], title=artifact.fingerprint),
        tag("time", origin.created.replace("T", " ").removesuffix("+00:00")),
        tag("time", f"{origin.seconds:,.1f} s"),
        origin.host,
        tag("code", origin.git_commit[:10]) if origin.git_commit else "–",
        counts or "–",
    ]


def footer(content: Content) -> Html:
    """Whose work it is."""
    said = (
        f", report {content.fingerprint[:12]}. The method is from Mi et al., “I Think, Therefore I Diffuse” "
        "(arXiv 2502.10458), the benchmark from Zeng et al. 2024 (CoBSAT). This file is whole as it is: it loads "
        "nothing and runs nothing."
    )
    return tag("footer", "Made by ", tag("code", "thinkdiff"), said)
