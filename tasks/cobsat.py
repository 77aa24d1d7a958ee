"""The CoBSAT benchmark as data and rules: its words, its draws of prompts, what is shown and what is right.

In: a CobsatPrompts spec. Out: `Prompt` values, ThinkDiff's wording of them, picture paths relative to the data set's
folder, true captions, and the answer rule. Other prompt types are in `cobsat_prompts`. Reads no file, runs no model.

Source: CoBSAT (Zeng et al. 2024), `configs.py`, `load_datasets/gen_prompts.py`, `load_dataset.py` and `helper.py` of
its public code, as facts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, permutations, product
from typing import Literal, NamedTuple

from thinkdiff.schemas.cobsat import CobsatPrompts, Family

Version = Literal["I", "II"]
VERSIONS: tuple[Version, ...] = ("I", "II")

FT_TEST = 250  # prompts of a task in the split ft_test

# Words that a reader sees in another form than files and labels have; the benchmark maps them both ways.
DISPLAY = {"3d": "wireframe", "park": "amusement park"}

_OBJECTS = ("leaf", "hat", "cup", "chair", "car", "box", "book", "ball", "bag", "apple")
_ANIMALS = ("zebra", "tiger", "sheep", "pig", "monkey", "lion", "dog", "cow", "cat", "bird")
_COLORS = ("yellow", "white", "red", "purple", "pink", "orange", "green", "brown", "blue", "black")
_BACKGROUNDS = (
    "beach", "desert", "glacier", "volcano", "park", "gym", "waterfall", "space", "cave", "seafloor",
)  # fmt: skip
_STYLES = (
    "watercolor", "sketch", "pixel", "origami", "lego", "icon", "graffiti", "futuristic", "3d", "old",
)  # fmt: skip
_ACTIONS = ("swim", "sleep", "sing", "run", "read", "fly", "eat", "drink", "cry", "angry")
_DOING = (
    "swimming", "sleeping", "singing", "running", "reading",
    "flying", "eating", "drinking", "crying", "angry",
)  # fmt: skip
_TEXTURES = (
    "wood", "wicker", "sequined", "plastic", "paper", "metal", "leather", "lace", "denim", "ceramic",
)  # fmt: skip

# The benchmark's ten tasks. The order of the words decides the draw, so it is part of the benchmark; the
# captions are ours (the benchmark has none for its answers).
COBSAT_FAMILIES: tuple[Family, ...] = (
    Family(name="color", values=_COLORS, things=_OBJECTS),
    Family(
        name="background",
        thing="animal",
        values=_BACKGROUNDS,
        things=_ANIMALS,
        caption="{thing}, {value} background",
    ),
    Family(name="style", values=_STYLES, things=_OBJECTS, caption="{thing}, {value} style"),
    Family(
        name="action",
        thing="animal",
        values=_ACTIONS,
        things=_ANIMALS,
        caption=tuple(f"{doing} {{thing}}" for doing in _DOING),
    ),
    Family(name="texture", values=_TEXTURES, things=_OBJECTS),
)


class Demo(NamedTuple):
    """One demonstration: the word that is shown, and the picture's attribute value and thing."""

    word: str
    value: str
    thing: str


@dataclass(frozen=True)
class ImageRef:
    """A picture of the benchmark, by what it shows; `path` is relative to the data set's folder."""

    family: str
    value: str
    thing: str

    @property
    def path(self) -> str:
        return image_path(self.family, self.value, self.thing)


Content = list[str | ImageRef]


@dataclass(frozen=True)
class Prompt:
    """One in-context question: the demos share a latent word; the query asks for it with another word."""

    name: str  # unique in a spec, e.g. color-1/shot_2/0_car_blue_brown_orange
    task: str  # e.g. Color-I
    family: str
    version: Version  # I: words are attributes and the thing is latent; II: the other way round
    shots: int
    index: int  # of the draw, the same for every task
    demos: tuple[Demo, ...]
    query: str  # the last word, as shown
    target_value: str
    target_thing: str
    held_out: bool  # the target pair is one that no model has been trained on
    decoys: tuple[str, ...] = ()  # for each word one of the latent kind that misleads, as shown; ft_train has none

    @property
    def sample(self) -> str:
        """The name that the benchmark gives to a sample of a task, e.g. 0_car_blue_brown_orange."""
        return self.name.rsplit("/", 1)[1]

    @property
    def words(self) -> tuple[str, ...]:
        """The words that are written: those of the demos, and the query."""
        return (*(demo.word for demo in self.demos), self.query)

    @property
    def latent(self) -> str:
        """The latent word, as shown."""
        return display(self.target_thing if self.version == "I" else self.target_value)


class Choice(NamedTuple):
    """A prompt as indices: into the written words, the last for the query, and into the latent words."""

    written: tuple[int, ...]
    latent: int
    decoys: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """A family in one of its two versions."""

    family: Family
    version: Version

    @property
    def name(self) -> str:
        """As in the benchmark's tables, e.g. Color-I."""
        return f"{self.family.name.capitalize()}-{self.version}"

    @property
    def slug(self) -> str:
        """As in file names, e.g. color-1."""
        return f"{self.family.name}-{len(self.version)}"

    @property
    def words(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The words that are written (x) and the words that are latent (theta)."""
        both = (self.family.values, self.family.things)
        return both if self.version == "I" else (both[1], both[0])


def tasks(spec: CobsatPrompts) -> list[Task]:
    """The tasks in benchmark order: Color-I, Color-II, Background-I, ..."""
    return [Task(family, version) for family in spec.families for version in VERSIONS]


def draws(x_words: int, theta_words: int, seed: int, count: int) -> Iterator[tuple[list[int], list[int]]]:
    """`count` pairs of index lists (x, theta), each a permutation.

    As in the benchmark, both lists are shuffled in place again and again by one generator, x first. For lists
    of ten words, seed 123 and 1000 pairs this is the benchmark's own file, entry for entry. Lists of another
    length, which the benchmark does not have, are shuffled in the same way at their own length.
    """
    rng = random.Random(seed)
    x, theta = list(range(x_words)), list(range(theta_words))
    for _ in range(count):
        rng.shuffle(x)
        rng.shuffle(theta)
        yield list(x), list(theta)


def choices(spec: CobsatPrompts, task: Task, shots: int) -> Iterator[Choice]:
    """The prompts of a task in the spec's split.

    default: demos are x[0..shots-1], the query is x[shots], the latent word is theta[shots+1], and what misleads in
    place i is theta[i], so that it is never the latent word. ft_test: the same on the latter half of each list, 250
    times; the index of theta is taken modulo the half's length, so that at four shots one decoy is the latent word.
    ft_train: all permutations of shots+1 of the former half's words, in lexicographic order, each with every latent
    word of the half. The lists of default and ft_test are held to the benchmark's files; order and numbers of ft_train
    follow from its code, which saves no sample of it under a name.
    """
    x_words, theta_words = map(len, task.words)
    if spec.split == "ft_train":
        every = product(permutations(range(x_words // 2), shots + 1), range(theta_words // 2))
        yield from (Choice(x, theta, ()) for x, theta in islice(every, spec.per_task))
        return
    half = spec.split == "ft_test"
    first_x, first_theta = (x_words // 2, theta_words // 2) if half else (0, 0)
    count = min(spec.per_task, FT_TEST) if half else spec.per_task
    for x, theta in draws(x_words - first_x, theta_words - first_theta, spec.seed, count):
        thetas = [first_theta + theta[i % len(theta)] for i in range(shots + 2)]
        yield Choice(tuple(first_x + i for i in x[: shots + 1]), thetas[-1], tuple(thetas[:-1]))


def prompts(spec: CobsatPrompts) -> list[Prompt]:
    """All prompts of a spec: by task, then by number of shots, then by index."""
    held_out = frozenset(spec.held_out)
    return [
        _prompt(task, shots, index, choice, held_out)
        for task in tasks(spec)
        for shots in spec.shots
        for index, choice in enumerate(choices(spec, task, shots))
    ]


def _prompt(
    task: Task, shots: int, index: int, choice: Choice, held_out: frozenset[tuple[str, str, str]]
) -> Prompt:  # fmt: skip
    x_words, theta_words = task.words
    latent, written = theta_words[choice.latent], [x_words[i] for i in choice.written]
    pairs = [(word, latent) if task.version == "I" else (latent, word) for word in written]
    target_value, target_thing = pairs[-1]
    shown = [display(word) for word in written]
    return Prompt(
        name=f"{task.slug}/shot_{shots}/{'_'.join([str(index), latent, *shown])}",
        task=task.name,
        family=task.family.name,
        version=task.version,
        shots=shots,
        index=index,
        demos=tuple(Demo(word, *pair) for word, pair in zip(shown[:-1], pairs[:-1], strict=True)),
        query=shown[-1],
        target_value=target_value,
        target_thing=target_thing,
        held_out=(task.family.name, target_value, target_thing) in held_out,
        decoys=tuple(display(theta_words[i]) for i in choice.decoys),
    )


def display(word: str) -> str:
    """A word as a reader sees it: `3d` is wireframe and `park` is amusement park."""
    return DISPLAY.get(word, word)


def image_path(family: str, value: str, thing: str) -> str:
    """Where the data set keeps a pair's picture, e.g. `color_car/white_car.jpg`; raw words, not as shown."""
    return f"{family}_{thing}/{value}_{thing}.jpg"


def pictures(spec: CobsatPrompts) -> list[ImageRef]:
    """Every picture that the benchmark has: one for each family, value and thing."""
    return [
        ImageRef(family.name, value, thing)
        for family in spec.families
        for value in family.values
        for thing in family.things
    ]


def interleaved(spec: CobsatPrompts, prompt: Prompt) -> Content:
    """The user's turn in ThinkDiff's wording: instruction, `Word i: <word>, ` and picture each, the query."""
    return framed(spec.instruction, prompt, prompt.words)


def framed(instruction: str, prompt: Prompt, words: Sequence[str]) -> Content:
    """ThinkDiff's frame around some words and the prompt's pictures (Appendix B, the authors' multi-image script).

    Texts are to be joined as they stand: blank lines are part of them.
    """
    found: Content = [instruction + "\n\n"]
    for number, word in enumerate(words, start=1):
        gap = "" if number == 1 else "\n\n"
        found.append(f"{gap}Word {number}: {word}, ")
        if number <= len(prompt.demos):
            demo = prompt.demos[number - 1]
            found.append(ImageRef(prompt.family, demo.value, demo.thing))
    return found


def true_caption(spec: CobsatPrompts, prompt: Prompt) -> str:
    """A text that says what the right picture shows."""
    family = next(family for family in spec.families if family.name == prompt.family)
    return caption(family, prompt.target_value, prompt.target_thing)


def caption(family: Family, value: str, thing: str) -> str:
    """A text that says what a pair looks like."""
    template = family.caption
    if not isinstance(template, str):
        template = template[family.values.index(value)]
    return template.format(value=display(value), thing=display(thing))


def captions(spec: CobsatPrompts) -> dict[str, tuple[str, ...]]:
    """By family the texts of all its pairs."""
    return {f.name: tuple(caption(f, value, thing) for value in f.values for thing in f.things) for f in spec.families}


def same_word(found: str, expected: str) -> bool:
    """Whether two words are one, each in its raw or its displayed form."""
    return display(found) == display(expected)


def is_right(prompt: Prompt, thing: str, value: str) -> bool:
    """The benchmark's rule: a picture is right when both its thing and its value are the target's."""
    return same_word(thing, prompt.target_thing) and same_word(value, prompt.target_value)
