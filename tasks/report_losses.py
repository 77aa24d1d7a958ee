"""The report's losses of the ablations: the three starts of the norm as curves (the paper's Figure 7), ends as a table.

In: loss curves by condition and seed. Out: HTML, and rows for a markdown table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thinkdiff.tasks.report_markup import Child, Html, grid, join, table, tag
from thinkdiff.tasks.report_numbers import BASE, Mean, mean_interval
from thinkdiff.tasks.report_plots import end_labels, line, loss_ticks, running_mean, thinned

NORMS = {BASE: "T5's norm", "default norm": "norm from ones", "no norm": "no norm"}
LAST = 50  # steps that a loss at the end is the mean of


@dataclass(frozen=True)
class Trained:
    """The trainings of one condition: for each seed the loss of every step, and the last on held-out rows."""

    name: str
    training: Mapping[int, Sequence[float]]
    validation: Mapping[int, float]

    def ends(self) -> Mean | None:
        """The training loss at the end, over seeds."""
        found = [sum(values[-LAST:]) / len(values[-LAST:]) for values in self.training.values() if values]
        return mean_interval(found) if found else None

    def held_out(self) -> Mean | None:
        """The last validation loss, over seeds."""
        return mean_interval(list(self.validation.values())) if self.validation else None

    def curve(self) -> list[float]:
        """The running mean of the seeds' mean loss."""
        runs = [values for values in self.training.values() if values]
        return running_mean([sum(step) / len(runs) for step in zip(*runs, strict=True)])


def grouped(losses: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Trained]:
    """Losses named `condition, seed N`, by condition, in the order in which conditions first come."""
    found: dict[str, Trained] = {}
    for key, told in losses.items():
        name, _, seed = key.rpartition(", seed ")
        one = found.setdefault(name, Trained(name, {}, {}))
        training, validation = dict(one.training), dict(one.validation)
        training[int(seed)] = told["training"]
        if told["validation"]:
            validation[int(seed)] = told["validation"][-1]
        found[name] = Trained(name, training, validation)
    return list(found.values())


def losses(found: Sequence[Trained]) -> Html | None:
    """Figure 7 and the table; None where nothing was trained."""
    if not found:
        return None
    said = (
        "Nats per token, mean over seeds with its 95% interval; of training the last "
        f"{LAST} steps. Losses are comparable where the text to predict is the same: not across maskings, and not "
        "between a VLM's answers and a vision tower's captions."
    )
    rows: list[list[Child]] = [
        [one.name, str(len(one.training)), in_words(one.ends()), in_words(one.held_out())] for one in found
    ]
    head = ["Condition", "Seeds", "Training loss", "Validation loss"]
    return join([tag("h3", "Losses"), norms(found), tag("p", said), table(head, rows, class_="costs")])


def norms(found: Sequence[Trained]) -> Html | None:
    """Training losses by how the aligner's norm starts, on a logarithmic axis."""
    by_name = {one.name: one for one in found}
    curves = {words: curve for name, words in NORMS.items() if name in by_name and (curve := by_name[name].curve())}
    if len(curves) < 2:
        return None
    steps, values = max(map(len, curves.values())), [loss for curve in curves.values() for loss in curve if loss > 0]
    low, high = math.log(min(values) / 1.12), math.log(max(values) * 1.12)
    ticks = loss_ticks(math.exp(low), math.exp(high))

    def y(loss: float) -> float:
        return 1000 * (high - math.log(loss)) / (high - low)

    paths = [tag("path", class_="grid", d=" ".join(f"M0 {y(tick):.1f}H1000" for tick in ticks))]
    ends = []
    for number, (words, curve) in enumerate(curves.items()):
        points = [(1000 * (i + 1) / steps, y(loss)) for i, loss in enumerate(curve) if loss > 0]
        paths.append(tag("path", class_=f"smooth norm{number}", d=line(thinned(points))))
        ends.append((words, curve[-1], y(curve[-1]) / 10, f"end norm{number}"))
    labels = [tag("span", f"{tick:g}", class_="y", style=f"top:{y(tick) / 10:.2f}%") for tick in ticks]
    labels += [
        tag("span", f"{number:,}", class_="x", style=f"left:{100 * number / steps:.2f}%")
        for number in dict.fromkeys(round(steps * quarter / 4) for quarter in range(5))
    ]
    spoken = "Training loss: " + ", ".join(f"with {words} it ends at {loss:.3f}" for words, loss, _, _ in ends)
    svg = tag("svg", *paths, viewBox="0 0 1000 1000", preserveAspectRatio="none", aria_hidden="true")
    caption = (
        "Training loss by how the aligner's output norm starts, as in the paper's Figure 7 (arXiv 2502.10458): "
        "running means, averaged over seeds, logarithmic axis."
    )
    return join([tag("p", caption), tag("div", svg, *labels, *end_labels(ends), class_="plot", role="img",
                                        aria_label=spoken)])  # fmt: skip


def in_words(over: Mean | None) -> str:
    """A mean with its interval in one cell."""
    if over is None:
        return "–"
    if over.low is None or over.high is None:
        return f"{over.mean:.3f}"
    return f"{over.mean:.3f} ({over.low:.3f} – {over.high:.3f})"


def markdown(found: Sequence[Trained]) -> str:
    """The table as markdown."""
    if not found:
        return ""
    rows = [[one.name, str(len(one.training)), in_words(one.ends()), in_words(one.held_out())] for one in found]
    head = ["losses, nats per token", "seeds", "training", "validation"]
    return "## Losses of the ablations, mean over seeds and its 95% interval\n\n" + grid(head, rows)
