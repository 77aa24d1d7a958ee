"""The page of a comparison: accuracies in pairs, in what the runs differ, and pictures where their outcomes do.

In: a `Comparison` and its pictures. Out: the page's bytes, which loads nothing and runs nothing, and a markdown table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from thinkdiff.storage.media_files import MediaReader
from thinkdiff.tasks.cobsat import display
from thinkdiff.tasks.compare_scores import MEAN, OUTCOMES, Comparison, Gain, picture
from thinkdiff.tasks.report_examples import Answer, answer, said
from thinkdiff.tasks.report_filters import Axis, attributes, buttons, rules
from thinkdiff.tasks.report_frame import document
from thinkdiff.tasks.report_markup import Child, Html, grid, join, percent, plural, points, table, tag

SCOPE = "questions"
COUNT = tag("p", class_="soft shown")
UNLIKE = "a difference may be the judges'. Score both with one judge to tell."
FOOTER = tag(
    "footer", "Made by ", tag("code", "thinkdiff"), ". This file is whole as it is: it loads and runs nothing."
)
LABELS: Mapping[str, str] = {
    "both": "both right", "first only": "first only", "second only": "second only", "neither": "both wrong",
}  # fmt: skip


def page(found: Comparison, count: int) -> bytes:
    """The whole page as UTF-8, with `count` questions, the discordant ones first."""
    cards = list(shown(found, count))
    by = axes(found)
    sections = [
        ("accuracy", "Accuracy", accuracy(found)),
        ("settings", "In what they differ", settings(found)),
        (SCOPE, "Questions and pictures", join([buttons(by, SCOPE), tag("div", *cards, class_="cards"), COUNT])),
    ]
    title = f"{found.first.name} against {found.second.name}"
    about = "First and second, on the questions that both were asked."
    opening = tag("header", tag("p", "ThinkDiff · comparison", class_="eyebrow"), tag("h1", title), tag("p", about))
    return document(title, opening, sections, FOOTER, rules(by, SCOPE, ".card"))


def axes(found: Comparison) -> list[Axis]:
    """What questions are filtered by."""
    shots, tasks = zip(*found.gains, strict=True)
    return [
        Axis("task", "task", [task for task in dict.fromkeys(tasks) if task != MEAN]),
        Axis("shots", "shots", list(map(str, dict.fromkeys(shots)))),
        Axis("outcome", "right", [LABELS[each] for each in OUTCOMES]),
    ]


def accuracy(found: Comparison) -> Html:
    """The means, and every task."""
    note = (
        "The difference is the second's accuracy less the first's, in percentage points, question by question; its 95% "
        "interval is over the questions, and p is McNemar's exact one."
    )
    warned = None if found.same_judge else tag("p", tag("b", "They were judged differently: "), UNLIKE)
    means = {key: gain for key, gain in found.gains.items() if key[1] == MEAN}
    rest = {key: gain for key, gain in found.gains.items() if key[1] != MEAN}
    folded = tag("details", tag("summary", "Every task"), gains_table(found, rest))
    return join([tag("p", note), warned, gains_table(found, means), folded])


def gains_table(found: Comparison, gains: Mapping[tuple[int, str], Gain]) -> Html:
    head = ["", found.first.name, found.second.name, "difference", "first only", "second only", "p"]
    rows: list[list[Child]] = []
    for (shots, task), gain in gains.items():
        name = plural(shots, "shot") if task == MEAN else f"{task}, {plural(shots, 'shot')}"
        between = tag("small", f"{points(gain.low)} to {points(gain.high)}")
        rows.append(
            [
                join([name, tag("small", f"n = {gain.pairs.total}")]), percent(gain.first), percent(gain.second),
                join([points(gain.gain), between]), gain.pairs.first, gain.pairs.second, chance(gain.pairs.chance),
            ]
        )  # fmt: skip
    return table(head, rows)


def chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def settings(found: Comparison) -> Html:
    """A table of the settings that differ."""
    if not found.differing:
        return tag("p", "Every setting is the same.", class_="soft")
    rows: list[list[Child]] = [[tag("code", name), *values] for name, values in found.differing.items()]
    return table(["setting", found.first.name, found.second.name], rows, class_="words")


def shown(found: Comparison, count: int) -> Iterator[Html]:
    """Cards of `count` questions: those that one side alone got right first, all by a hash of their names."""
    readers = [MediaReader(side.media) for side in (found.first, found.second)]
    order = ("first only", "second only", "neither", "both")
    names = sorted(
        found.outcomes,
        key=lambda name: (order.index(found.outcomes[name]) // 2, hashlib.sha256(name.encode()).digest()),
    )
    chosen = set(names[:count])
    by = axes(found)
    for name in (name for name in found.first.prompts if name in chosen):
        prompt, outcome = found.first.prompts[name], found.outcomes[name]
        answers = []
        for side, reader in zip((found.first, found.second), readers, strict=True):
            seen = side.verdicts[name]
            words = f"{display(seen.value)} {display(seen.thing)}".strip() or "nothing"
            answers.append(answer(Answer(side.name, picture(side, reader, name), seen.right, words), side.name))
        expected = f"{display(prompt.target_value)} {display(prompt.target_thing)}"
        yield tag(
            "article",
            tag("header", tag("b", prompt.task), tag("span", plural(prompt.shots, "shot"))),
            tag("p", "Right answer: ", tag("b", expected), class_="asked"),
            tag("div", *answers, class_="answers"),
            *(said(f"{side.name}: the VLM says", side.prompts[name].answer) for side in (found.first, found.second)),
            class_="card",
            data_prompt=name,
            **attributes(by, (prompt.task, str(prompt.shots), LABELS[outcome])),
        )


def markdown(found: Comparison) -> str:
    """The means and what differs, as markdown."""
    head = ["percent right", found.first.name, found.second.name, "difference", "p", "n"]
    rows = [
        [
            plural(shots, "shot") if task == MEAN else f"{task}, {plural(shots, 'shot')}", percent(gain.first),
            percent(gain.second), f"{points(gain.gain)} ({points(gain.low)} to {points(gain.high)})",
            chance(gain.pairs.chance), str(gain.pairs.total),
        ]
        for (shots, task), gain in sorted(found.gains.items(), key=lambda item: (item[0][1] != MEAN, item[0][0]))
    ]  # fmt: skip
    parts = [grid(head, rows)]
    if not found.same_judge:
        parts.append(f"They were judged differently: {UNLIKE}")
    if found.differing:
        changed = [[name, *values] for name, values in found.differing.items()]
        parts.append(grid(["setting", found.first.name, found.second.name], changed))
    return "\n\n".join(parts)
