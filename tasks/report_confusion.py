"""The report's confusions: which word was wanted and which one the judge saw, by family.

In: verdicts and the benchmark's families. Out: HTML. Words are shown as the benchmark displays them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinkdiff.schemas.cobsat import Family
from thinkdiff.tasks.cobsat import display
from thinkdiff.tasks.report_markup import Child, Html, join, percent, plural, table, tag

if TYPE_CHECKING:
    from thinkdiff.storage.score_tables import Verdict

SHOWN = 10
NONE = "none"


@dataclass(frozen=True)
class Confusion:
    """The words of one kind (attribute, object, animal) in a family: how often each was seen where one was wanted."""

    family: str
    kind: str
    words: tuple[str, ...]
    counts: Mapping[tuple[str, str], int]

    @property
    def mistakes(self) -> list[tuple[str, str, int]]:
        """(wanted, seen, how often), the most frequent first."""
        wrong = [(*pair, count) for pair, count in self.counts.items() if pair[0] != pair[1]]
        return sorted(wrong, key=lambda one: (-one[2], one[0], one[1]))


def confusions(verdicts: Sequence[Verdict], families: Sequence[Family], method: str) -> list[Confusion]:
    """Two for each family: its attribute and its object. A word that is none of the family's counts as `none`."""
    found = []
    for family in families:
        these = [v for v in verdicts if v.method == method and v.family == family.name]
        for kind, words, pairs in (
            ("attribute", family.values, [(v.target_value, v.value) for v in these]),
            (family.thing, family.things, [(v.target_thing, v.thing) for v in these]),
        ):
            known = tuple(map(display, words))
            counted = Counter((display(wanted), word_of(seen, known)) for wanted, seen in pairs)
            found.append(Confusion(family.name, kind, known, counted))
    return found


def word_of(seen: str, known: Sequence[str]) -> str:
    return display(seen) if display(seen) in known else NONE


def confused(found: Sequence[Confusion]) -> Html | None:
    """The most frequent mistakes, and every matrix folded away."""
    mistakes = [(one, *mistake) for one in found for mistake in one.mistakes]
    mistakes.sort(key=lambda one: -one[3])
    if not mistakes:
        return None
    rows: list[list[Child]] = [
        [f"{one.family}: {one.kind}", wanted, seen, count] for one, wanted, seen, count in mistakes[:SHOWN]
    ]
    said = (
        f"The {plural(len(rows), 'most frequent mistake')} of the aligned route. The whole of it is below: rows are "
        "the words that were wanted, columns those that the judge saw, cells percent of a row."
    )
    matrices = [tag("details", tag("summary", f"{one.family}: {one.kind}"), matrix(one)) for one in found if one.counts]
    head = ["Family: kind", "Wanted", "Seen", "Pictures"]
    return join([tag("h3", "What was taken for what"), tag("p", said), table(head, rows, class_="words"), *matrices])


def matrix(one: Confusion) -> Html:
    """Wanted words down, seen words across, tinted by share."""
    columns = [*one.words, *([NONE] if any(seen == NONE for _, seen in one.counts) else [])]
    rows: list[list[Child]] = []
    for wanted in one.words:
        total = sum(count for (word, _), count in one.counts.items() if word == wanted)
        cells = [tinted(one.counts.get((wanted, seen), 0), total) for seen in columns]
        rows.append([join([wanted, tag("small", f"n = {total}")]), *cells])
    return table(["", *columns], rows, class_="heat")


def tinted(count: int, total: int) -> Html | str:
    if not count:
        return ""
    ground = f"background:rgba(var(--heat),{0.42 * count / total:.3f})"
    return tag("span", percent(count / total, 0), class_="tint", style=ground, title=plural(count, "picture"))
