"""The report's tables as files: Markdown for notes, LaTeX rows for papers.

In: what the page shows. Out: text. The LaTeX is rows and no table: a method's name, its tasks in the paper's order,
their mean, one block for each number of shots; `booktabs` gives the rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinkdiff.tasks import published
from thinkdiff.tasks.report_ablations import markdown as ablation_tables
from thinkdiff.tasks.report_accuracy import MEAN, NAMES
from thinkdiff.tasks.report_accuracy import markdown as accuracy_tables
from thinkdiff.tasks.report_failures import markdown as failure_tables
from thinkdiff.tasks.report_losses import markdown as loss_tables
from thinkdiff.tasks.report_markup import plural
from thinkdiff.tasks.report_numbers import Scores

if TYPE_CHECKING:
    from thinkdiff.tasks.report_page import Content

SPECIAL = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


def latex(scores: Scores, comparable: bool) -> str:
    """Rows as in the paper's tables, three decimals, the best of a column in bold; the published ones if comparable."""
    order = [task for task in published.TASKS if task in scores.tasks]
    order += [task for task in scores.tasks if task not in order]
    lines = [f"% method & {' & '.join(map(escaped, order))} & mean \\\\"]
    for shots in scores.shots:
        lines += [r"\midrule", f"% {plural(shots, 'shot')}"]
        rows: list[tuple[str, list[float | None]]] = []
        if comparable:
            for system in published.PUBLISHED:
                rows.append((system, [published.accuracy(system, shots, task) for task in (*order, MEAN)]))
        for method in scores.methods:
            cells = [scores.cell(method, shots, task) for task in (*order, MEAN)]
            rows.append((NAMES.get(method, method), [cell.accuracy if cell else None for cell in cells]))
        best = [
            max((v for v in column if v is not None), default=None)
            for column in zip(*(v for _, v in rows), strict=True)
        ]
        lines += [f"{escaped(name)} & {' & '.join(map(number, values, best))} \\\\" for name, values in rows]
    return "\n".join(lines) + "\n"


def number(value: float | None, best: float | None) -> str:
    """`.463`, in bold where it is the best."""
    if value is None:
        return "--"
    written = f"{value:.3f}".removeprefix("0") if value < 1 else "1.000"
    return rf"\textbf{{{written}}}" if value == best else written


def escaped(words: str) -> str:
    """A name as LaTeX shows it."""
    return " ".join(words.translate(SPECIAL).split())


def tables(content: Content) -> str:
    """All of the report's tables as markdown."""
    parts = (
        accuracy_tables(content.scores, content.chance),
        failure_tables(content.failed),
        ablation_tables(content.conditions),
        loss_tables(content.trained),
    )
    return "\n\n".join(part for part in parts if part) + "\n"
