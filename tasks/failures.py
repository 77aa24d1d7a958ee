"""Where a wrong picture went wrong: which part of the chain from the VLM to the judge is to blame.

In: what the VLM said, which caption the T5 decoder finds likeliest to the aligned rows, and what judges saw in the
picture and in those drawn from words. Out: one cause for each wrong picture, so that shares add up to one. Words are
found in texts by rule, with the endings that English gives them, and the benchmark's in more forms; no model is asked.
Reads no file.

A wrong picture has the first of these causes that holds:

    judge     the other judge finds it right
    vlm       the VLM's answer does not name both the object and the attribute
    decoder   the picture of the true caption is wrong, too: it cannot be drawn, or not be recognised
    aligner   the caption that is read back does not name both, or the VLM's words are drawn rightly
    decoder   all else: both are named all the way, and neither words nor aligned rows are drawn rightly
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

from thinkdiff.tasks.cobsat import display

if TYPE_CHECKING:
    from thinkdiff.storage.score_tables import AskedPrompt, Verdict

Cause = Literal["vlm", "aligner", "decoder", "judge"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
ROUTE = "aligned"
WORDS_AS_THEY_ARE, TRUE_WORDS = "text_bridge", "true_caption"
GAP = r"[\s-]+"

# Forms of the benchmark's words that `forms` does not make: other spellings, strong verbs, adjectives of materials,
# kinds of a thing in one word. What mostly means something else is left out: drunk, iconic, spaceship.
FURTHER: Mapping[str, str] = {
    "leaf": "leaves",
    "cup": "teacup, teacups",
    "chair": "armchair, armchairs",
    "bag": "handbag, handbags",
    "tiger": "tigress, tigresses",
    "pig": "piglet, piglets",
    "lion": "lioness, lionesses",
    "beach": "beachside, beachfront",
    "glacier": "glacial",
    "volcano": "volcanic",
    "gym": "gymnasium, gymnasiums",
    "waterfall": "water fall, water falls",
    "cave": "cavern, caverns, cavernous",
    "seafloor": "sea floor",
    "watercolor": "watercolour, watercolours, water color, water colors, water colour, water colours",
    "sketch": "sketchy",
    "pixel": "pixelate, pixelated, pixelating, pixelation, pixelized, pixelised",
    "graffiti": "graffito",
    "futuristic": "futuristically, futurist, futurism",
    "3d": "3 d, 3 dimensional, three dimensional",
    "wireframe": "wire frame, wire frames, wire framed",
    "old": "oldest",
    "swim": "swam, swum",
    "sleep": "slept, asleep",
    "sing": "sang, sung",
    "run": "ran",
    "fly": "flew, flown, flight, midflight",
    "eat": "ate, eaten",
    "drink": "drank",
    "angry": "angrily, angrier, angriest, anger, angered",
    "wood": "wooden, woody, woodgrain",
    "wicker": "wickerwork",
    "sequined": "sequin, sequins",
    "plastic": "plasticky",
    "paper": "papery, papercraft",
    "metal": "metallic",
    "leather": "leathery",
    "lace": "lacy, lacework",
}


@dataclass(frozen=True)
class Evidence:
    """What is known of each prompt, by its name; verdicts by (method, prompt)."""

    prompts: Mapping[str, AskedPrompt]
    verdicts: Mapping[tuple[str, str], Verdict]
    second: Mapping[tuple[str, str], Verdict]
    readings: Mapping[str, str]

    @property
    def enough(self) -> bool:
        """Whether failures of the aligned route can be told apart: pictures of the true captions were judged."""
        return any(method == TRUE_WORDS for method, _ in self.verdicts)


def causes(found: Evidence) -> dict[str, Cause]:
    """The cause of every wrong picture of the aligned route, by the prompt's name; {} without enough evidence."""
    if not found.enough:
        return {}
    wrong = [name for (method, name), verdict in found.verdicts.items() if method == ROUTE and not verdict.right]
    return {name: cause(found, name) for name in wrong}


def cause(found: Evidence, name: str) -> Cause:
    """The first cause that holds, in the order of this module."""
    prompt = found.prompts[name]
    wanted = prompt.target_value, prompt.target_thing
    if judged(found.second, ROUTE, name):
        return "judge"
    if not names_all(prompt.answer, wanted):
        return "vlm"
    if not judged(found.verdicts, TRUE_WORDS, name):
        return "decoder"
    if name in found.readings and not names_all(found.readings[name], wanted):
        return "aligner"
    return "aligner" if judged(found.verdicts, WORDS_AS_THEY_ARE, name) else "decoder"


def judged(verdicts: Mapping[tuple[str, str], Verdict], method: str, name: str) -> bool:
    """Whether a picture was judged, and right."""
    found = verdicts.get((method, name))
    return found is not None and found.right


def names_all(text: str, words: Iterable[str]) -> bool:
    """Whether a text names each word, as the benchmark writes or displays it, whatever its ending."""
    return all(pattern(word).search(text) for word in words)


@lru_cache(maxsize=1024)
def pattern(word: str) -> re.Pattern[str]:
    """A word, or the one that is displayed for it, with the endings of plurals, -ing, -ed and -er, and FURTHER ones."""
    named = {word, display(word)}
    further = [GAP.join(each.split()) for name in named if name in FURTHER for each in FURTHER[name].split(", ")]
    return re.compile(rf"(?<!\w)(?:{'|'.join([*map(forms, named), *further])})(?!\w)", re.IGNORECASE)


def forms(word: str) -> str:
    """A pattern of a word's forms: run, runs, running; bake, baked, baking; cry, cries, cried; with any gaps."""
    *before, last = word.split()
    stem = re.escape(last)
    found = [rf"{stem}(?:e?s|ed|ing|er)?"]
    if len(last) > 2 and last[-1] not in "aeiouwxy":
        found.append(rf"{stem}{re.escape(last[-1])}(?:ed|ing|er)")
    if last.endswith("e"):
        found.append(rf"{re.escape(last[:-1])}(?:ed|ing|er)")
    if last.endswith("y"):
        found.append(rf"{re.escape(last[:-1])}(?:ies|ied)")
    return GAP.join([*map(re.escape, before), f"(?:{'|'.join(found)})"])
