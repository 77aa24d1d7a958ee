"""Fidelity against prompt adherence as inline SVG: CLIP-I to the right, CLIP-T upwards, a dot for each prompt.

In: means with intervals, and the prompts' values. Out: HTML and SVG; positions are percentages and labels HTML, as in
the report's drawings, so that it fits any width. The same numbers give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from thinkdiff.tasks.gallery_numbers import Tables, cell
from thinkdiff.tasks.report_markup import Html, tag

STEPS = (0.02, 0.05, 0.1, 0.2, 0.5)
MOST_TICKS = 7


def scatter(tables: Tables, points: Mapping[tuple[str, str], tuple[float, float]]) -> Html:
    """All systems that were measured on prompts with pictures and words; a sentence where there are none."""
    if not points:
        return tag("p", "No prompt has both pictures and words.", class_="soft")
    names = [name for name in tables if any(system == name for system, _ in points)]
    spread = [range_of([point[axis] for point in points.values()]) for axis in (0, 1)]

    def place(value: float, axis: int) -> float:
        low, high = spread[axis]
        share = (value - low) / (high - low)
        return 1000 * (share if axis == 0 else 1 - share)

    grids = [tag("path", class_="grid", d=" ".join(f"M0 {place(t, 1):.1f}H1000" for t in ticks(*spread[1])))]
    grids.append(tag("path", class_="grid", d=" ".join(f"M{place(t, 0):.1f} 0V1000" for t in ticks(*spread[0]))))
    labels = [tag("span", f"{t:g}", class_="y", style=f"top:{place(t, 1) / 10:.2f}%") for t in ticks(*spread[1])]
    labels += [tag("span", f"{t:g}", class_="x", style=f"left:{place(t, 0) / 10:.2f}%") for t in ticks(*spread[0])]
    dots, means, spoken = [], [], []
    for number, name in enumerate(names):
        own = [point for (system, _), point in points.items() if system == name]
        path = " ".join(f"M{place(x, 0):.1f} {place(y, 1):.1f}h0" for x, y in own)
        dots.append(tag("path", class_=f"dot s{number}", d=path))
        over = [cell([point[axis] for point in own]) for axis in (0, 1)]
        x, y = (place(over[axis]["mean"], axis) for axis in (0, 1))
        means += [
            tag("path", class_="bars", d=bars(over, x, y, place)),
            tag("path", class_=f"dot mean s{number}", d=f"M{x:.1f} {y:.1f}h0"),
        ]
        side = f"name s{number}{' left' if x > 700 else ''}"
        labels.append(tag("span", name, class_=side, style=f"left:{x / 10:.2f}%;top:{y / 10:.2f}%"))
        spoken.append(f"{name} at {over[0]['mean']:.3f}, {over[1]['mean']:.3f}")
    svg = tag("svg", *grids, *dots, *means, viewBox="0 0 1000 1000", preserveAspectRatio="none", aria_hidden="true")
    said = f"CLIP-I to the right, CLIP-T upwards: {'; '.join(spoken)}"
    axis = tag("p", "CLIP-I, to the right; CLIP-T, upwards", class_="soft")
    return tag("div", tag("div", svg, *labels, class_="plot scatter", role="img", aria_label=said), axis)


def bars(over: Sequence[Mapping[str, float | None]], x: float, y: float, place: Callable[[float, int], float]) -> str:
    """The path of a mean's two intervals."""
    low_x, high_x, low_y, high_y = (over[axis][end] for axis in (0, 1) for end in ("low", "high"))
    if low_x is None or high_x is None or low_y is None or high_y is None:
        return ""
    level = f"M{place(low_x, 0):.1f} {y:.1f}H{place(high_x, 0):.1f}"
    return f"{level} M{x:.1f} {place(low_y, 1):.1f}V{place(high_y, 1):.1f}"


def range_of(values: Sequence[float]) -> tuple[float, float]:
    """From below the least to above the most."""
    low, high = min(values), max(values)
    margin = max((high - low) * 0.06, 0.01)
    return low - margin, high + margin


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two values, at most MOST_TICKS."""
    step = next((s for s in STEPS if (high - low) / s <= MOST_TICKS), STEPS[-1])
    return [round(n * step, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
