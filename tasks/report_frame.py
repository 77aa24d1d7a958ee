"""The frame of every page: one self-contained file that loads nothing and runs nothing, light and dark.

In: a title, its opening, sections, and style rules of its own. Out: the page's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from thinkdiff.tasks.report_markup import Html, tag
from thinkdiff.tasks.report_style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
Section = tuple[str, str, Html]
"""Its id, its heading and what is in it."""


def document(
    title: str, opening: Html, sections: Sequence[Section], footer: Html, rules: str = "", policy: str = POLICY
) -> bytes:
    """The whole page as UTF-8. `rules` are style rules, which hold no stranger's word; `policy` what it may load."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Html(STYLE + rules)),
    )
    links = tag("nav", *(tag("a", heading, href=f"#{name}") for name, heading, _ in sections), aria_label="Sections")
    body = [tag("section", tag("h2", heading), inner, id=name) for name, heading, inner in sections]
    main = tag("main", opening, links, *body, footer)
    return f"<!doctype html>\n{tag('html', head, tag('body', main), lang='en')}\n".encode()
