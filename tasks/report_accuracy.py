"""The report's accuracies: the headline, the pairs never trained on, every task; and the same as markdown.

In: `Scores` and `Chance`. Out: HTML, and markdown tables for the Prefect UI.
"""

from __future__ import annotations

from collections.abc import Mapping

from thinkdiff.tasks import published
from thinkdiff.tasks.report_markup import Child, Html, grid, join, percent, plural, points, table, tag
from thinkdiff.tasks.report_numbers import Chance, Scores, gained
from thinkdiff.tasks.report_plots import Bar, bars, key

NAMES: Mapping[str, str] = {
    "aligned": "Aligned",
    "text_bridge": "Text bridge",
    "text_prompt": "Text as a prompt",
    "true_caption": "True caption",
    "answer": "Answer in words",
}
NOTES: Mapping[str, str] = {
    "aligned": "the VLM's hidden states",
    "text_bridge": "the VLM's words",
    "text_prompt": "the same, padded",
    "true_caption": "the right answer's words",
    "answer": "what the VLM says",
}
ROUTES: Mapping[str, str] = {
    "aligned": "the hidden states of the VLM's answer, through the aligner. No word is passed on.",
    "text_bridge": "the VLM's answer as text, through the T5 encoder, all else as for the aligned: like for like.",
    "text_prompt": "the same text as a user would hand it to the diffusion model: padded, pooled by its CLIP, if any.",
    "true_caption": "a caption of the right picture, through the T5 encoder: the best this diffusion model can do.",
    "answer": "what the VLM says, before anything is drawn.",
}
GROUPS: Mapping[str, str] = {"seen": "seen", "held-out": "held out"}
MEAN = "mean"


def accuracy(scores: Scores, chance: Chance, judge: str) -> Html:
    """The methods beside each other for each number of shots, and what they are."""
    charts = []
    for shots in scores.shots:
        rows = [
            Bar(NAMES.get(method, method), NOTES.get(method, ""), cell, main=method == "aligned")
            for method in scores.methods
            if (cell := scores.cell(method, shots)) is not None
        ]
        charts.append(bars(f"{shots} shots", rows, chance.blind))
    words = "answer" in scores.methods
    asked = (
        "Each question shows a few words, each with a picture, and then a word alone. "
        f"{'No picture is judged here: what is said to it' if words else 'The picture drawn for it'} is right when the "
        f"judge ({judge}) finds both the right object and the right attribute in it. "
        f"{'Judged is:' if words else 'The same diffusion model draws in these ways:'}"
    )
    guesser = (
        "A guesser who draws the word that is asked for, with any of the other words, would be right "
        f"{percent(chance.query_only)}% of the time; one who draws any words at all, {percent(chance.blind)}%."
    )
    return join(
        [
            tag("p", asked),
            tag("ul", *(tag("li", tag("b", NAMES[m]), f": {ROUTES[m]}") for m in scores.methods if m in ROUTES)),
            tag("div", *charts, class_="two"),
            key(
                ("whisker", f"{percent(scores.confidence, 0)}% Wilson interval"),
                ("chance", f"blind guess, {percent(chance.blind)}%"),
            ),
            kept(scores),
            tag("p", guesser, class_="soft"),
            held_out(scores),
            more_shots(scores),
            halves(scores),
        ]
    )


def kept(scores: Scores) -> Html | None:
    """How much of what the words bring about the hidden states bring about too."""
    shares = []
    for shots in scores.shots:
        mine, words = scores.cell("aligned", shots), scores.cell("text_bridge", shots)
        if mine is not None and words is not None and words.accuracy > 0:
            shares.append(f"{percent(mine.accuracy / words.accuracy, 0)}% at {shots} shots")
    if not shares:
        return None
    return tag("p", f"The aligned route reaches {' and '.join(shares)} of what the text bridge reaches.")


def held_out(scores: Scores) -> Html | None:
    """Pairs that no model was trained on, beside those that were."""
    groups = [g for g in GROUPS if any(scores.cell(m, s, g) for m in scores.methods for s in scores.shots)]
    if "held-out" not in groups:
        return None
    columns = [(shots, group) for shots in scores.shots for group in groups]
    head = ["", *(f"{shots} shots, {GROUPS[group]}" for shots, group in columns)]
    rows = [[NAMES.get(m, m), *(counted(scores, m, *column) for column in columns)] for m in scores.methods]
    note = (
        "The held-out pairs of object and attribute were left out of the training of the VLM, the aligner and the "
        "diffusion model: their parts have to be put together anew."
    )
    return join([tag("h3", "Pairs never seen in training"), tag("p", note), table(head, rows)])


def counted(scores: Scores, method: str, shots: int, group: str) -> Html:
    """An accuracy with its interval and its count below."""
    cell = scores.cell(method, shots, group)
    if cell is None:
        return Html("–")
    between = tag("small", f"{percent(cell.low)} – {percent(cell.high)}")
    return join([f"{percent(cell.accuracy)}%", between, tag("small", f"n = {cell.pictures}")])


def halves(scores: Scores) -> Html:
    """Where it goes wrong: how often the object is right, and how often the attribute."""
    head = ["", *(f"{shots} shots, {part}" for shots in scores.shots for part in ("object", "attribute"))]
    rows: list[list[Child]] = []
    for method in scores.methods:
        cells = [scores.cell(method, shots) for shots in scores.shots]
        shares = [share for cell in cells for share in ((cell.thing, cell.value) if cell else (None, None))]
        rows.append([NAMES.get(method, method), *("–" if s is None else f"{percent(s)}%" for s in shares)])
    note = "Both must be right; each alone shows which of the two is lost."
    return join([tag("h3", "Object and attribute apart"), tag("p", note), table(head, rows)])


def more_shots(scores: Scores) -> Html | None:
    """What more examples bring: the fewest shots against the most."""
    if len(scores.shots) < 2:
        return None
    few, many = scores.shots[0], scores.shots[-1]
    rows: list[list[Child]] = []
    for method in scores.methods:
        gain = gained(scores, method, few, many)
        ends = [scores.cell(method, shots) for shots in (few, many)]
        shown = ["–" if cell is None else f"{percent(cell.accuracy)}%" for cell in ends]
        between = "–" if gain is None else join([points(gain.mean), tag("small", spread(gain.low, gain.high))])
        rows.append([NAMES.get(method, method), *shown, between])
    note = (
        "The questions with more examples are other ones, so the difference is not one of pairs; its 95% interval is "
        "of the mean over tasks."
    )
    head = ["", f"mean, {plural(few, 'shot')}", f"mean, {plural(many, 'shot')}", "difference, points"]
    return join([tag("h3", f"{many} against {plural(few, 'shot')}"), tag("p", note), table(head, rows)])


def spread(low: float | None, high: float | None) -> str:
    """An interval of points."""
    return "" if low is None or high is None else f"{points(low)} to {points(high)}"


def by_task(scores: Scores, comparable: bool) -> Html:
    """A table for each number of shots; the published accuracies too when they are comparable."""
    systems = tuple(published.PUBLISHED) if comparable else ()
    tables = []
    for shots in scores.shots:
        head = [f"{shots} shots", *(NAMES.get(m, m) for m in scores.methods)]
        head += [join([system, tag("small", "published")]) for system in systems]
        rows = [task_row(scores, shots, task, systems) for task in (*scores.tasks, MEAN)]
        tables.append(table(head, rows, class_="last-mean"))
    said = (
        "Percent right. In tasks I the words name the attribute and the object must be inferred; in tasks II it is the "
        "other way round."
    )
    paper = f" Published figures are those of {published.SOURCE}: the same questions and the same judge."
    narrow = len(scores.methods) + len(systems) < 5
    return join([tag("p", said, paper if systems else None), tag("div", *tables, class_="two" if narrow else None)])


def task_row(scores: Scores, shots: int, task: str, systems: tuple[str, ...]) -> list[Child]:
    """A task's accuracies, the aligned one with a meter, and the published ones."""
    cells: list[Child] = [task.capitalize() if task == MEAN else task]
    for method in scores.methods:
        cell = scores.cell(method, shots, task)
        if cell is None:
            cells.append("–")
        elif method == "aligned":
            fill = tag("i", style=f"width:{100 * cell.accuracy:.1f}%")
            meter = tag("span", fill, class_="meter", aria_hidden="true")
            cells.append(tag("span", meter, tag("b", percent(cell.accuracy)), class_="metered"))
        else:
            cells.append(percent(cell.accuracy))
    for system in systems:
        found = published.accuracy(system, shots, task)
        cells.append("–" if found is None else tag("span", percent(found), class_="soft"))
    return cells


def markdown(scores: Scores, chance: Chance) -> str:
    """The headline and the tasks as markdown tables."""
    head = ["percent right", *(f"{shots} shots" for shots in scores.shots)]
    rows = [[NAMES.get(m, m), *(interval(scores, m, shots) for shots in scores.shots)] for m in scores.methods]
    rows.append(["blind guess", *(percent(chance.blind) for _ in scores.shots)])
    columns = [(shots, method) for shots in scores.shots for method in scores.methods]
    task_head = ["task", *(f"{NAMES.get(method, method)}, {shots} shots" for shots, method in columns)]
    task_rows = [
        [task, *(percent(c.accuracy) if (c := scores.cell(m, shots, task)) else "–" for shots, m in columns)]
        for task in (*scores.tasks, MEAN)
    ]
    return "\n\n".join(["## Accuracy", grid(head, rows), "## Task by task", grid(task_head, task_rows)])


def interval(scores: Scores, method: str, shots: int) -> str:
    """An accuracy with its interval in one cell."""
    cell = scores.cell(method, shots)
    return f"{percent(cell.accuracy)} ({percent(cell.low)} – {percent(cell.high)})" if cell else "–"
