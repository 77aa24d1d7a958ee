"""A gallery's arithmetic: similarities in; means over prompts with intervals out, by system, kind and measure.

Reads no file and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thinkdiff.schemas.gallery import KINDS
from thinkdiff.tasks.report_markup import grid
from thinkdiff.tasks.report_numbers import mean_interval
from thinkdiff.tasks.similarity import MEASURES

if TYPE_CHECKING:
    from thinkdiff.storage.gallery_tables import Similarity

ALL = "all"
Tables = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""System -> kind of prompt, or `all` -> measure -> mean, low and high (None of one prompt), prompts."""


def by_prompt(rows: Iterable[Similarity]) -> dict[tuple[str, str, str, str], float]:
    """(system, kind, prompt, measure) -> the mean over the pictures that the prompt shows."""
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row.system, row.kind, row.prompt, row.measure), []).append(row.value)
    return {key: sum(values) / len(values) for key, values in found.items()}


def tables(rows: Iterable[Similarity]) -> Tables:
    """The means over prompts, in the order in which systems come, of kinds and of measures."""
    cells: dict[tuple[str, str, str], list[float]] = {}
    for (system, kind, _, measure), value in by_prompt(rows).items():
        for group in (kind, ALL):
            cells.setdefault((system, group, measure), []).append(value)
    systems = dict.fromkeys(system for system, _, _ in cells)
    return {
        system: {
            group: {m: cell(cells[system, group, m]) for m in MEASURES if (system, group, m) in cells}
            for group in (*KINDS, ALL)
            if any((system, group, m) in cells for m in MEASURES)
        }
        for system in systems
    }


def cell(values: Sequence[float]) -> dict[str, Any]:
    """A mean and its 95 % interval by Student's t, where there are at least two prompts."""
    found = mean_interval(values)
    low, high = (None if bound is None else round(bound, 6) for bound in (found.low, found.high))
    return {"mean": round(found.mean, 6), "low": low, "high": high, "prompts": found.seeds}


def measures_of(found: Tables) -> tuple[str, ...]:
    """The measures that were taken."""
    return tuple(m for m in MEASURES if any(m in cells for by in found.values() for cells in by.values()))


def kinds_of(found: Tables) -> tuple[str, ...]:
    """The kinds of prompts that there are, all of them last."""
    return tuple(kind for kind in (*KINDS, ALL) if any(kind in by for by in found.values()))


def prompts_of(cells: Mapping[str, Mapping[str, Any]]) -> int:
    """How many prompts a row of a table is about; CLIP-T is of those with words alone."""
    return max(cell["prompts"] for cell in cells.values())


def shown(cell: Mapping[str, Any] | None) -> str:
    """A cell in words: the mean, and its interval where there is one."""
    if cell is None:
        return "–"
    between = f" ({cell['low']:.3f} – {cell['high']:.3f})" if cell["low"] is not None else ""
    return f"{cell['mean']:.3f}{between}"


def markdown(found: Tables) -> str:
    """A table for each kind of prompt: systems by measures."""
    parts = []
    for kind in kinds_of(found):
        taken = [m for m in measures_of(found) if any(m in by.get(kind, {}) for by in found.values())]
        rows = [
            [name, str(prompts_of(by[kind])), *(shown(by[kind].get(m)) for m in taken)]
            for name, by in found.items()
            if kind in by
        ]
        parts.append(f"### {'all prompts' if kind == ALL else kind}\n\n" + grid(["system", "prompts", *taken], rows))
    return "\n\n".join(parts) + "\n"
