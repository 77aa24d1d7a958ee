"""The report's drawings: bars with intervals, seeds as dots, loss curves. Numbers in, HTML and SVG out.

Positions are percentages and labels are HTML above a stretched SVG, so that a drawing fits any width with letters of
one size; colours come from the style sheet, so that it fits light and dark. The same numbers give the same bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from thinkdiff.tasks.report_markup import Html, join, percent, tag
from thinkdiff.tasks.report_numbers import Cell, Mean

DRAWN_POINTS = 500
SMOOTH_SHARE = 25  # the training curve's running mean spans this fraction of the steps
LABEL_HEIGHT = 11.0  # percent of a plot's height that an end label takes
LOWEST_LABEL = 94.0


@dataclass(frozen=True)
class Bar:
    """One accuracy with its interval."""

    name: str
    note: str
    cell: Cell
    main: bool = False


@dataclass(frozen=True)
class Dots:
    """The accuracies of several seeds, their mean, its interval if there is one, the paper's figure if comparable."""

    name: str
    values: tuple[float, ...]
    over: Mean
    main: bool = False
    paper: float | None = None


def at(share: float) -> str:
    """A share of the track's width, kept inside the track."""
    return f"left:{100 * min(max(share, 0.0), 1.0):.2f}%"


def span(low: float, high: float) -> str:
    """The place of an interval on the track."""
    low, high = min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)
    return f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"


def mark(kind: str, style: str) -> Html:
    return tag("i", class_=kind, style=style)


def row(name: Html, track: Iterable[Html], value: Html, main: bool) -> Html:
    whole = tag("div", *track, class_="track", aria_hidden="true")
    value = tag("div", value, class_="value")
    return tag("div", tag("div", name, class_="name"), whole, value, class_="row main" if main else "row")


def bars(title: str, rows: Iterable[Bar], chance: float) -> Html:
    """Accuracies below one another, each with its interval; chance is a dotted line through all."""
    drawn = []
    for bar in rows:
        cell = bar.cell
        track = [
            mark("fill", f"width:{100 * cell.accuracy:.2f}%"),
            mark("whisker", span(cell.low, cell.high)),
            mark("chance", at(chance)),
        ]
        name = join([bar.name, tag("small", bar.note) if bar.note else None])
        value = join([f"{percent(cell.accuracy)}%", tag("small", f"{percent(cell.low)} – {percent(cell.high)}")])
        drawn.append(row(name, track, value, bar.main))
    return tag("div", tag("h3", title), *drawn, axis(), class_="chart")


def dots(title: str, rows: Iterable[Dots], chance: float) -> Html:
    """Conditions below one another: a dot for each seed, a line at the mean, a band for its interval."""
    drawn = []
    for item in rows:
        over, between = item.over, "one seed"
        track = [mark("chance", at(chance))]
        if over.low is not None and over.high is not None:
            track.append(mark("range", span(over.low, over.high)))
            between = f"{percent(max(over.low, 0))} – {percent(min(over.high, 1))}"
        track += [mark("dot", at(value)) for value in sorted(item.values)]
        track.append(mark("mean", at(over.mean)))
        if item.paper is not None:
            track.append(mark("paper", at(item.paper)))
        value = join([f"{percent(over.mean)}%", tag("small", between)])
        drawn.append(row(join([item.name]), track, value, item.main))
    return tag("div", tag("h3", title), *drawn, axis(), class_="chart")


def histogram(title: str, counts: Mapping[str, int]) -> Html:
    """Counts below one another, the largest filling its track."""
    most = max(counts.values(), default=0) or 1
    drawn = [
        row(join([name]), [mark("fill", f"width:{100 * count / most:.2f}%")], join([f"{count:,}"]), main=False)
        for name, count in counts.items()
    ]
    return tag("div", tag("h3", title), *drawn, class_="chart")


def axis() -> Html:
    """0 to 100% below the tracks."""
    marks = [tag("span", f"{tick}%" if tick == 100 else tick, style=f"left:{tick}%") for tick in (0, 25, 50, 75, 100)]
    track = tag("div", *marks, class_="track")
    return tag("div", tag("span"), track, tag("span"), class_="row axis", aria_hidden="true")


def key(*entries: tuple[str, str]) -> Html:
    """What the marks of a track mean: (class of the mark, words)."""
    places = {"range": "left:0;width:100%", "whisker": "left:0;width:100%", "fill": "width:100%"}
    shown = [
        tag("span", tag("span", mark(kind, places.get(kind, "left:50%")), class_="track"), words)
        for kind, words in entries
    ]
    return tag("div", *shown, class_="key")


def curves(training: Sequence[float], validation: Sequence[Sequence[float]]) -> Html:
    """Training loss (every step, and its running mean) and validation loss over steps, on a logarithmic axis."""
    steps = len(training)
    held = [(step, loss) for step, loss in validation if loss > 0]
    every = [(i + 1, loss) for i, loss in enumerate(training) if loss > 0]
    if not every:
        return tag("p", "This aligner was not trained: it has no step to show.", class_="soft")
    smooth = [(i + 1, loss) for i, loss in enumerate(running_mean(training)) if loss > 0]
    losses = sorted(loss for _, loss in every)
    extremes = [losses[0], losses[-1], *(loss for _, loss in held)]
    low, high = math.log(min(extremes) / 1.12), math.log(max(extremes) * 1.12)

    def x(step: float) -> float:
        return 1000 * step / steps

    def y(loss: float) -> float:
        return 1000 * (high - math.log(loss)) / (high - low)

    ticks = loss_ticks(math.exp(low), math.exp(high))
    grid = " ".join(f"M0 {y(tick):.1f}H1000" for tick in ticks)
    paths = [
        tag("path", class_="grid", d=grid),
        tag("path", class_="raw", d=line((x(s), y(v)) for s, v in thinned(every))),
        tag("path", class_="smooth", d=line((x(s), y(v)) for s, v in thinned(smooth))),
        tag("path", class_="held", d=line((x(s), y(v)) for s, v in held)),
        tag("path", class_="points", d=" ".join(f"M{x(s):.1f} {y(v):.1f}h0" for s, v in thinned(held, 40))),
    ]
    labels = [tag("span", f"{tick:g}", class_="y", style=f"top:{y(tick) / 10:.2f}%") for tick in ticks]
    labels += [
        tag("span", f"{number:,}", class_="x", style=f"left:{x(number) / 10:.2f}%")
        for number in dict.fromkeys(round(steps * quarter / 4) for quarter in range(5))
    ]
    ends = [("training", smooth[-1][1], "end")]
    if held:
        ends.append(("validation", held[-1][1], "end held"))
    labels += end_labels([(name, loss, y(loss) / 10, class_) for name, loss, class_ in ends])
    spoken = f"Loss over {steps} steps: " + ", ".join(f"{name} ends at {loss:.3f}" for name, loss, _ in ends)
    svg = tag("svg", *paths, viewBox="0 0 1000 1000", preserveAspectRatio="none", aria_hidden="true")
    return tag("div", svg, *labels, class_="plot", role="img", aria_label=spoken)


def end_labels(ends: list[tuple[str, float, float, str]]) -> list[Html]:
    """The names of the curves at their right ends, moved apart where they would touch and up where they would leave."""
    ordered = sorted(ends, key=lambda end: end[2])
    tops = [end[2] for end in ordered]
    for i in range(1, len(tops)):
        tops[i] = max(tops[i], tops[i - 1] + LABEL_HEIGHT)
    over = max(tops[-1] - LOWEST_LABEL, 0.0)
    return [
        tag("span", name, tag("br"), f"{loss:.3f}", class_=class_, style=f"top:{top - over:.2f}%")
        for (name, loss, _, class_), top in zip(ordered, tops, strict=True)
    ]


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of the values around every place; the window is a fraction of the whole and cut off at the ends."""
    half = len(values) // SMOOTH_SHARE // 2
    sums = [0.0, *itertools.accumulate(values)]
    spans = [(max(i - half, 0), min(i + half + 1, len(values))) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def thinned(points: Sequence[tuple[float, float]], most: int = DRAWN_POINTS) -> list[tuple[float, float]]:
    """At most that many of the points, evenly, the last one among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def line(points: Iterable[tuple[float, float]]) -> str:
    """The path of an SVG line."""
    joined = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f"M{joined}" if joined else ""


def loss_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two losses; finer where that leaves fewer than three."""
    ticks: list[float] = []
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(n / 10 for n in range(10, 100))):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [round(tick, 12) for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 7)]
    return ticks
