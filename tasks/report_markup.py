"""HTML without injection: what is not markup by type is escaped. Knows nothing of the report.

In: tag names, attributes and children. Out: `Html`, a string that is safe as it stands. Captions and a VLM's texts come
from strangers, so escaping must be what happens when nobody thinks of it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"br", "img", "input", "meta"})


class Html(str):
    """Markup; any other value that is put into a tag is escaped."""

    __slots__ = ()


Child = Html | str | int | float | None


def text(value: Child) -> Html:
    """A child as markup: Html as it is, None as nothing, all else escaped."""
    if value is None:
        return Html()
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(children: Iterable[Child], between: str = "") -> Html:
    """Children one after the other."""
    return Html(text(between).join(text(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """An element. `class_` stands for class, `data_x` for data-x; None and False leave an attribute out."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], class_: str = "", caption: Child = None) -> Html:
    """A table whose first column heads its rows. It scrolls sideways on its own where it is too wide."""
    columns = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = [
        tag("tr", *(tag("td" if i else "th", cell, scope=None if i else "row") for i, cell in enumerate(row)))
        for row in rows
    ]
    named = tag("caption", caption) if caption else None
    whole = tag("table", named, tag("thead", columns), tag("tbody", *body), class_=class_ or None)
    return tag("div", whole, class_="scroll", tabindex=0)


BREAK = tag("br")


def percent(share: float, digits: int = 1) -> str:
    """A share as a number of percent, without the sign."""
    return f"{100 * share:.{digits}f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with a sign and a true minus."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "−")


def plural(count: int, noun: str) -> str:
    """`1 seed`, `1,000 steps`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def code(words: str, most: int = 100) -> str:
    """A stranger's words in markdown, as code on one line: no part of them is markup, a link or a picture."""
    said = " ".join(words.split()).replace("`", "'").replace("|", "/")[:most]
    return f"`{said}`" if said else ""


def grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A markdown table; a bar in a cell would end it."""
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
