"""The miniature's world: what a picture can show, how it is said, and which pairs nobody may see while training.

A picture is six small integers (`Attributes`, `(N, 6)` int64): the object, then one value for each of the five
families of CoBSAT (colour, background, style, action, texture). A family value of 0 is the default look (gray, white,
filled, upright, plain), which is never named. Captions are lists of lower-case words; punctuation is a word.

In: a numpy random generator. Out: attribute arrays and captions. Drawing is `renderer.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Attributes = npt.NDArray[np.int64]

OBJECTS = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon")
FAMILIES: dict[str, tuple[str, ...]] = {
    "color": ("red", "green", "blue", "yellow", "purple", "orange"),
    "background": ("sky", "meadow", "desert", "night", "sunset", "sea"),
    "style": ("outlined", "pixelated", "blurry", "shadowed", "neon"),
    "action": ("jumping", "lying", "stretching", "running", "leaning"),
    "texture": ("striped", "checkered", "dotted", "grainy", "halved"),
}
FAMILY_NAMES = tuple(FAMILIES)
BACKGROUND_PHRASES = {
    "sky": "in the sky",
    "meadow": "in the meadow",
    "desert": "in the desert",
    "night": "at night",
    "sunset": "at sunset",
    "sea": "at sea",
}
LEADS = ("a photo of", "a picture of", "an image of", "create an image of", "")
LEAD_PHOTO, LEAD_CREATE = 0, 3
NAMED_COUNTS = (1, 2, 3)
NAMED_COUNT_ODDS = (0.40, 0.35, 0.25)
MOST_VALUES = max(len(values) for values in FAMILIES.values())


def is_held_out(obj: int, family: int, value: int) -> bool:
    """Whether nobody but the judge and the autoencoder may see this object with this value (1..n) of a family.

    About one pair in six, spread so that every object and every value stays in training with others.
    """
    return value > 0 and (obj * 7 + family * 3 + value * 5) % 6 == 0


HELD_OUT = np.array(
    [
        [[is_held_out(obj, family, value) for value in range(MOST_VALUES + 1)] for family in range(len(FAMILIES))]
        for obj in range(len(OBJECTS))
    ]
)


def held_out_pairs() -> list[tuple[str, str, str]]:
    """All held-out `(family, value, object)`."""
    return [
        (family, word, OBJECTS[obj])
        for f, (family, values) in enumerate(FAMILIES.items())
        for v, word in enumerate(values, start=1)
        for obj in range(len(OBJECTS))
        if is_held_out(obj, f, v)
    ]


def has_held_out(attributes_N6: Attributes) -> npt.NDArray[np.bool_]:
    """Per row, whether any family shows a held-out pair."""
    families = np.arange(len(FAMILIES))[None, :]
    return np.any(HELD_OUT[attributes_N6[:, :1], families, attributes_N6[:, 1:]], axis=1)


def sample_attributes(count: int, rng: np.random.Generator, all_pairs: bool = False) -> Attributes:
    """`count` pictures with one to three named families each; held-out pairs only where `all_pairs`."""
    drawn = _draw(count, rng)
    while not all_pairs and (bad := has_held_out(drawn)).any():
        drawn[bad] = _draw(int(bad.sum()), rng)
    return drawn


def _draw(count: int, rng: np.random.Generator) -> Attributes:
    attributes = np.zeros((count, 1 + len(FAMILIES)), np.int64)
    attributes[:, 0] = rng.integers(len(OBJECTS), size=count)
    named = rng.choice(NAMED_COUNTS, size=count, p=NAMED_COUNT_ODDS)
    rank = rng.random((count, len(FAMILIES))).argsort(1).argsort(1)
    for family, values in enumerate(FAMILIES.values()):
        value = rng.integers(1, len(values) + 1, size=count)
        attributes[:, 1 + family] = np.where(rank[:, family] < named, value, 0)
    return attributes


def single_attribute_pictures(all_pairs: bool = False) -> Attributes:
    """Every object with exactly one named value, in a fixed order; held-out pairs only where `all_pairs`."""
    rows = []
    for family, values in enumerate(FAMILIES.values()):
        for value in range(1, len(values) + 1):
            for obj in range(len(OBJECTS)):
                row = [obj, 0, 0, 0, 0, 0]
                row[1 + family] = value
                rows.append(row)
    attributes = np.array(rows, np.int64)
    return attributes if all_pairs else attributes[~has_held_out(attributes)]


def value_word(row: npt.NDArray[np.int64], family: str) -> str | None:
    """The word of a picture's value in a family, or None where it has the default look."""
    value = int(row[1 + FAMILY_NAMES.index(family)])
    return FAMILIES[family][value - 1] if value else None


def noun_phrase(row: npt.NDArray[np.int64]) -> list[str]:
    """`a blurry red star jumping at night`, with `an` before a vowel."""
    words = [word for family in ("style", "color", "texture") if (word := value_word(row, family))]
    words.append(OBJECTS[int(row[0])])
    if action := value_word(row, "action"):
        words.append(action)
    if background := value_word(row, "background"):
        words += BACKGROUND_PHRASES[background].split()
    return ["an" if words[0][0] in "aeiou" else "a", *words]


def detail_sentences(row: npt.NDArray[np.int64], rng: np.random.Generator | None = None) -> list[str]:
    """One sentence a named family; each says the object again, so that every part of a caption carries it.

    `rng` shuffles the sentences; without it they come in a fixed order.
    """
    noun = OBJECTS[int(row[0])]
    sentences = [
        ["the", noun, "is", word, "."]
        for family in ("color", "texture", "style", "action")
        if (word := value_word(row, family))
    ]
    if background := value_word(row, "background"):
        sentences.append(["the", noun, "is", *BACKGROUND_PHRASES[background].split(), "."])
    if rng is not None:
        rng.shuffle(sentences)
    return [word for sentence in sentences for word in sentence]


def caption(
    row: npt.NDArray[np.int64],
    lead: int,
    detailed: bool = True,
    details_first: bool = False,
    rng: np.random.Generator | None = None,
) -> list[str]:
    """The words of a caption: `LEADS[lead]` and the noun phrase, with the detail sentences behind or before it."""
    phrase = LEADS[lead].split() + noun_phrase(row)
    if not detailed:
        return phrase
    details = detail_sentences(row, rng)
    return details + phrase if details_first else [*phrase, ".", *details]


def caption_template(family: str, value: str) -> str:
    """The true caption of a picture with this one named value, as a template: `... {value} {thing} ...`.

    The same words as `caption(row, LEAD_CREATE)` gives; the article is already chosen.
    """
    row = np.zeros(1 + len(FAMILIES), np.int64)
    row[1 + FAMILY_NAMES.index(family)] = 1 + FAMILIES[family].index(value)
    said = ["{thing}" if word == OBJECTS[0] else word for word in caption(row, LEAD_CREATE)]
    return " ".join(said)


def answer_caption(row: npt.NDArray[np.int64], prompt: int) -> list[str]:
    """What the miniature VLM is taught to answer to the paper's captioning prompt number `prompt` (0..15).

    The last five prompts ask for a diffusion prompt and get `create an image of`; four get the details first, so that
    a prefix of a caption does not always begin with the noun phrase.
    """
    return caption(row, LEAD_CREATE if prompt >= 11 else LEAD_PHOTO, details_first=prompt in (2, 6, 10, 13))
