"""A gallery as one HTML page that needs nothing else: inputs beside what each system drew, filtered by kind, no script.

In: `Wall`, what a verb has read. Out: the page's bytes. The filter is radio buttons and `:has()`; all that comes from
data is escaped. Markup, style and the picture element are the report's.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thinkdiff.schemas.artifact import Artifact
from thinkdiff.schemas.gallery import KINDS, GalleryPrompt
from thinkdiff.tasks.gallery_numbers import ALL, Tables, kinds_of, measures_of, prompts_of, shown
from thinkdiff.tasks.report_examples import image
from thinkdiff.tasks.report_frame import document
from thinkdiff.tasks.report_markup import Child, Html, join, plural, table, tag
from thinkdiff.tasks.similarity import CLIP_T

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
LARGEST_VIDEO = 8 << 20  # bytes; of a larger one the frame in the middle is shown alone
KEYS = {kind: kind.replace(" + ", "-").replace(" ", "-") for kind in (ALL, *KINDS)}
FILTER = "\n".join(
    f"body:has(#show-{key}:checked) .wall .card:not(.{key}) {{ display: none; }}" for key in KEYS.values() if key != ALL
)
MORE_STYLE = f"""
.filter {{ border: 0; padding: 0; margin: 1.2rem 0 0; display: flex; flex-wrap: wrap; gap: .4rem; }}
.filter legend {{ float: left; margin-right: .6rem; color: var(--soft); font-size: .9375rem; padding: .3rem 0; }}
.filter label {{ cursor: pointer; border: 1px solid var(--line); border-radius: 1rem; padding: .25rem .8rem; }}
.filter label {{ font-size: .9375rem; }}
.filter label:has(:checked) {{ background: var(--accent-wash); border-color: var(--accent); }}
.filter label:has(:focus-visible) {{ outline: 2px solid var(--accent); outline-offset: 2px; }}
.filter input {{ position: absolute; opacity: 0; }}
.wall .strip, .wall .answers {{ display: flex; flex-wrap: wrap; gap: .6rem; }}
.wall .strip figure {{ width: 4.5rem; }}
.wall .answers figure {{ width: calc((100% - 1.2rem) / 3); }}
.wall video {{ display: block; width: 100%; border-radius: 5px; }}
.wall .asked {{ overflow-wrap: anywhere; }}
.scatter .dot {{ stroke: var(--bar); stroke-width: 9; opacity: .75; }}
.scatter .s0 {{ stroke: var(--accent); }} .scatter .s1 {{ stroke: var(--soft); }}
.scatter .s2 {{ stroke: var(--ink); }} .scatter .mean {{ stroke-width: 18; opacity: 1; }}
.scatter .bars {{ stroke: var(--soft); stroke-width: 1.5; }}
.scatter span.name {{ transform: translate(.7rem, -50%); color: var(--ink); font-weight: 600;
  text-shadow: 0 0 3px var(--paper), 0 0 3px var(--paper), 0 0 3px var(--paper); }}
.scatter span.name.s0 {{ color: var(--accent); }}
.scatter span.name.left {{ transform: translate(calc(-100% - .7rem), -50%); }}
.scatter .axis-name {{ color: var(--ink); }}
{FILTER}
"""


@dataclass(frozen=True)
class Drawn:
    """What a system drew of a prompt: a picture, a video where there is one, and its similarities by measure."""

    system: str
    picture: bytes | None
    video: bytes | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class Card:
    """A prompt with its pictures by name and what each system made of it."""

    prompt: GalleryPrompt
    inputs: Sequence[tuple[str, bytes | None]]
    drawn: Sequence[Drawn]


@dataclass(frozen=True)
class Wall:
    """Everything that the page shows. `points`: (system, prompt) -> its CLIP-I and CLIP-T where both were taken."""

    title: str
    fingerprint: str
    tables: Tables
    points: Mapping[tuple[str, str], tuple[float, float]]
    cards: Sequence[Card]
    artifacts: Mapping[str, Artifact]


def page(wall: Wall) -> bytes:
    """The whole page as UTF-8."""
    from thinkdiff.tasks.gallery_plot import scatter

    sections = [
        ("gallery", "Pictures", pictures(wall)),
        ("likeness", "Likeness", likeness(wall.tables)),
        ("plot", "Fidelity and adherence", join([tag("p", PLOT_SAYS), scatter(wall.tables, wall.points)])),
        ("provenance", "Provenance", provenance(wall.artifacts)),
    ]
    return document(wall.title, opening(wall), sections, footer(wall), MORE_STYLE, POLICY)


PLOT_SAYS = (
    "Each dot is a prompt with both pictures and words, the large one a system's mean with its 95 % interval. To the "
    "right: more like the pictures (CLIP-I). Upwards: more like the words (CLIP-T)."
)


def opening(wall: Wall) -> Html:
    """The title, and how much of what is here."""
    systems = [name for name in wall.artifacts if name not in ("gallery", "scores")]
    said = f"{plural(len(wall.cards), 'prompt')} of pictures and words, each drawn by {', '.join(systems)}."
    return tag("header", tag("p", "A gallery", class_="eyebrow"), tag("h1", wall.title), tag("p", said, class_="lede"))


def pictures(wall: Wall) -> Html:
    """The filter and all prompts as cards."""
    kinds = [kind for kind in KINDS if any(card.prompt.kind == kind for card in wall.cards)]
    counts = {kind: sum(card.prompt.kind == kind for card in wall.cards) for kind in kinds}
    buttons = [
        tag(
            "label",
            tag("input", type="radio", name="kind", id=f"show-{KEYS[kind]}", checked=kind == ALL),
            f"{kind} ({counts.get(kind, len(wall.cards))})",
        )
        for kind in (ALL, *kinds)
    ]
    eyes = " and ".join(m for m in measures_of(wall.tables) if m != CLIP_T)
    note = f"Below each drawn picture stand its cosines: {eyes} with the pictures shown, {CLIP_T} with the words."
    filter_ = tag("fieldset", tag("legend", "Kind of prompt"), *buttons, class_="filter")
    return join([tag("p", note), filter_, tag("div", *map(card_of, wall.cards), class_="cards wall")])


def card_of(card: Card) -> Html:
    """One prompt: what it shows and says, and what each system made of it."""
    prompt = card.prompt
    shown_ = [
        tag("figure", image(data, f"input {name}"), tag("figcaption", str(i) if len(card.inputs) > 1 else None))
        for i, (name, data) in enumerate(card.inputs, 1)
    ]
    words = tag("b", f"“{prompt.text}”") if prompt.text else tag("span", "no words")
    return tag(
        "article",
        tag("header", tag("b", prompt.name), tag("span", prompt.kind)),
        tag("div", *shown_, class_="strip") if shown_ else None,
        tag("p", words, class_="asked"),
        tag("div", *map(made_of, card.drawn), class_="answers"),
        class_=f"card {KEYS[prompt.kind]}",
        data_prompt=prompt.name,
    )


def made_of(drawn: Drawn) -> Html:
    """A system's picture, or video, with its cosines."""
    shown_ = image(drawn.picture, f"{drawn.system}")
    if drawn.video is not None and len(drawn.video) <= LARGEST_VIDEO:
        source = f"data:video/mp4;base64,{base64.b64encode(drawn.video).decode()}"
        shown_ = tag("video", src=source, controls=True, loop=True, muted=True, aria_label=drawn.system)
    values = [line for name, value in drawn.values.items() for line in (tag("br"), f"{name} {value:.2f}")]
    return tag("figure", shown_, tag("figcaption", tag("b", drawn.system), *values[1:]), data_system=drawn.system)


def likeness(tables: Tables) -> Html:
    """A table for each kind of prompt: systems by measures, means over prompts with their intervals."""
    note = (
        "Means over prompts with 95 % intervals by Student's t. A prompt that a system has no picture of is left out; "
        "compare rows of as many prompts. “The picture itself” is the first input, as if it had been copied: what "
        "fidelity alone is worth."
    )
    parts: list[Child] = [tag("p", note)]
    for kind in reversed(kinds_of(tables)):
        rows = {name: by[kind] for name, by in tables.items() if kind in by}
        taken = [m for m in measures_of(tables) if any(m in cells for cells in rows.values())]
        caption = "All prompts" if kind == ALL else kind.capitalize()
        body = [[name, prompts_of(cells), *(shown(cells.get(m)) for m in taken)] for name, cells in rows.items()]
        parts.append(table(["System", "Prompts", *taken], body, caption=caption))
    return join(parts)


def provenance(artifacts: Mapping[str, Artifact]) -> Html:
    """What each set is, when it was made, and what was asked for."""
    import json

    rows: list[list[Child]] = [
        [role, tag("code", a.fingerprint[:12]), tag("time", a.provenance.created), counts(a)]
        for role, a in artifacts.items()
    ]
    specs = [
        tag("details", tag("summary", f"Spec of {role}"), tag("pre", json.dumps(a.spec, indent=1, ensure_ascii=False)))
        for role, a in artifacts.items()
    ]
    return join([table(["Artifact", "Fingerprint", "Made (UTC)", "Counts"], rows, class_="words"), *specs])


def counts(artifact: Artifact) -> str:
    """An artifact's counts in words."""
    return ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in artifact.counts.items()) or "–"


def footer(wall: Wall) -> Html:
    """Whose work it is."""
    said = f", gallery {wall.fingerprint[:12]}. The method is from Mi et al. (arXiv 2502.10458). This file is whole."
    return tag("footer", "Made by ", tag("code", "thinkdiff"), said)
