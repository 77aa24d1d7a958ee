"""The report's questions with their pictures: which ones are shown, and each one as a card.

In: prompts, verdicts and picture bytes. Out: HTML with the pictures inlined. The choice is made by a hash of the
prompts' names, so nobody picked what looks good. Pictures and texts are a stranger's: what does not decode stays blank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from thinkdiff.tasks.cobsat import Prompt
from thinkdiff.tasks.page_pictures import inline
from thinkdiff.tasks.report_filters import Axis, attributes
from thinkdiff.tasks.report_markup import Html, join, tag

TEXT_SHOWN = 260


@dataclass(frozen=True)
class Answer:
    """What one method drew for a prompt and what the judge saw in it."""

    method: str
    picture: bytes | None
    right: bool
    seen: str


@dataclass(frozen=True)
class Example:
    """A prompt with everything that a card shows; `expected` in the words that a judge would use."""

    prompt: Prompt
    expected: str
    demos: tuple[tuple[str, bytes | None], ...]
    text: str
    answers: tuple[Answer, ...]
    reading: str | None = None
    blamed: str = ""

    @property
    def outcome(self) -> str:
        """What became of the aligned picture: right, wrong, or "" when there is none."""
        found = [answer for answer in self.answers if answer.method == "aligned"]
        return ("right" if found[0].right else "wrong") if found else ""


def axes(tasks: Sequence[str], shots: Sequence[int], outcomes: Sequence[str], blamed: Sequence[str]) -> list[Axis]:
    """What questions are filtered by, in the order of `filtered`."""
    return [
        Axis("task", "task", tasks),
        Axis("shots", "shots", list(map(str, shots))),
        Axis("outcome", "aligned picture", outcomes),
        Axis("blamed", "fails in", blamed),
    ]


def filtered(example: Example, by: Sequence[Axis]) -> dict[str, str]:
    """A card's attributes."""
    return attributes(by, (example.prompt.task, str(example.prompt.shots), example.outcome, example.blamed))


def choose_failures(prompts: Iterable[Prompt], causes: Mapping[str, str], count: int) -> list[Prompt]:
    """`count` prompts that failed, evenly over the causes, by a hash of their names."""
    left: dict[str, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.name.encode()).digest()):
        if prompt.name in causes:
            left.setdefault(causes[prompt.name], []).append(prompt)
    turns = [kin[turn] for turn in range(count) for kin in left.values() if turn < len(kin)]
    return turns[:count]


def choose(prompts: Iterable[Prompt], count: int) -> list[Prompt]:
    """`count` prompts, evenly over the tasks and shots, in the order of the benchmark."""
    cells: dict[tuple[str, int], list[Prompt]] = {}
    order: dict[str, int] = {}
    for prompt in prompts:
        cells.setdefault((prompt.task, prompt.shots), []).append(prompt)
        order.setdefault(prompt.name, len(order))
    for cell in cells.values():
        cell.sort(key=lambda prompt: hashlib.sha256(prompt.name.encode()).digest())
    chosen: list[Prompt] = []
    for turn in range(max((len(cell) for cell in cells.values()), default=0)):
        # one round over the tasks for each number of shots: the first ten prompts cover ten tasks
        for _, cell in sorted(cells.items(), key=lambda item: item[0][1]):
            if turn < len(cell) and len(chosen) < count:
                chosen.append(cell[turn])
    return sorted(chosen, key=lambda prompt: order[prompt.name])


def image(data: bytes | None, says: str) -> Html:
    """A picture element, or an empty frame of the same size."""
    found = inline(data)
    if found is None:
        return tag("div", "–", class_="query", role="img", aria_label=f"{says}: no picture")
    source, small = found
    return tag("img", src=source, alt=says, class_="small" if small else None, loading="lazy")


def card(example: Example, names: Mapping[str, str], by: Sequence[Axis]) -> Html:
    """One question: demonstrations and query, what each method drew, what the VLM said, what is read back."""
    prompt = example.prompt
    pair = " · held-out pair" if prompt.held_out else ""
    head = tag("header", tag("b", prompt.task), tag("span", f"{prompt.shots} shots{pair}"))
    shown = [
        tag("figure", image(data, f"demonstration: {word}"), tag("figcaption", word)) for word, data in example.demos
    ]
    query = tag("div", "?", class_="query", role="img", aria_label="the picture that is asked for")
    shown.append(tag("figure", query, tag("figcaption", prompt.query)))
    drawn = [answer(item, names.get(item.method, item.method)) for item in example.answers]
    read = None if example.reading is None else said("Likeliest to the T5", example.reading)
    fails = tag("p", "Fails in: ", tag("b", example.blamed), class_="asked") if example.blamed else None
    return tag(
        "article",
        head,
        tag("div", *shown, class_="strip"),
        tag("p", "Right answer: ", tag("b", example.expected), class_="asked"),
        tag("div", *drawn, class_="answers") if drawn else None,
        said("The VLM says", example.text),
        read,
        fails,
        class_="card",
        data_prompt=prompt.name,
        **filtered(example, by),
    )


def said(who: str, text: str) -> Html:
    """Somebody's words, cut where they are long."""
    cut = text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN].rstrip() + "…"
    return tag("p", tag("small", who), f"“{cut}”" if cut else "nothing", class_="said")


def hero(examples: Iterable[Example]) -> Html | None:
    """One question large, as a picture of what is asked: the first of 2 shots that the aligned route got right."""
    right = [
        (example, item) for example in examples for item in example.answers if item.method == "aligned" and item.right
    ]
    if not right:
        return None
    example, drawn = min(right, key=lambda pair: pair[0].prompt.shots)
    shown = [
        tag("figure", image(data, f"demonstration: {word}"), tag("figcaption", word)) for word, data in example.demos
    ]
    query = tag("div", "?", class_="query", role="img", aria_label="the picture that is asked for")
    result = tag("figure", image(drawn.picture, f"drawn: {drawn.seen}"), tag("figcaption", "drawn"), class_="drawn")
    strip = tag(
        "div",
        *shown,
        tag("figure", query, tag("figcaption", example.prompt.query)),
        tag("div", "→", class_="arrow", aria_hidden="true"),
        result,
        class_="hero",
    )
    said = f"One of the questions below, with the right answer: {example.expected}."
    return join([strip, tag("p", said, class_="soft")])


def answer(item: Answer, name: str) -> Html:
    """A generated picture with the judge's verdict and words."""
    verdict = "right" if item.right else "wrong"
    badge = tag("span", "✓" if item.right else "✕", class_="mark", title=verdict, role="img", aria_label=verdict)
    frame = tag("div", image(item.picture, f"{name}: the judge sees {item.seen}, {verdict}"), badge, class_="frame")
    words = tag("figcaption", tag("b", name), tag("span", item.seen))
    return tag("figure", frame, words, class_=verdict)


def cards(examples: Iterable[Example], names: Mapping[str, str], by: Sequence[Axis] = ()) -> Html:
    """All questions in a grid, and how many of them are shown."""
    grid = tag("div", join(card(example, names, by) for example in examples), class_="cards")
    return join([grid, tag("p", class_="soft shown")])
