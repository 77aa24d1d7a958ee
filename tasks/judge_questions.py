"""What a judge is asked and how its reply is read, by the letter of CoBSAT's `evaluation_icl.py`.

In: a family of words, and in text mode the text that is judged. Out: two questions, each with its numbered options, and
from a reply the option it names. No model is run here.
"""

from __future__ import annotations

from collections.abc import Sequence

from thinkdiff.schemas.cobsat import Family
from thinkdiff.tasks.cobsat import display

TAIL = ". Answer the number only and do not include any other texts (e.g., 1)."


def questions(family: Family, caption: str | None = None) -> tuple[str, str]:
    """The questions for the object and for the attribute; about a text when a caption is given."""
    if caption is None:
        thing = "What is the main object in this image?"
        value = f"What is the {family.name} (of the main object) in this image?"
    else:
        said = f"Image caption: {caption}. "
        thing = f"{said}What is the main object in this image based on the description?"
        value = f"{said}What is the {family.name} (of the main object) in the image based on the description?"
    return with_options(thing, family.things), with_options(value, family.values)


def with_options(question: str, words: Sequence[str]) -> str:
    """A question and its numbered options, the words as readers see them."""
    options = "".join(f" ({number}){display(word)}" for number, word in enumerate(words, start=1))
    return f"{question} Answer from the following options: {options}{TAIL}"


def chosen_word(reply: str, words: Sequence[str]) -> str:
    """The word that a reply names, or "" for none: all its digits, wherever they stand, make the option's number."""
    try:
        number = int("".join(filter(str.isdigit, reply)))
    except ValueError:  # no digit at all, thousands of them, or one such as a superscript
        return ""
    return words[number - 1] if 1 <= number <= len(words) else ""
