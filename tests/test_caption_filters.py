"""Filters of captions: a column is judged as each of its captions is; BLIP's cleaning."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkdiff.schemas.artifact import validated
from thinkdiff.schemas.captions import BOILERPLATE, CaptionFilters
from thinkdiff.schemas.errors import SpecError
from thinkdiff.storage.caption_blocks import Text
from thinkdiff.tasks.caption_filters import REASONS, blip_caption, looked_at, reasons

ALL = CaptionFilters(
    min_words=2, max_words=5, control_characters=True, replacement_characters=True, boilerplate=BOILERPLATE
)
PIECES = st.sampled_from(
    ["a", "dog", " ", "  ", "\t", "\x00", "\x1f", "\x7f", "\x85", "\x9f", "\xa0", "\ufffd", "\ufffe", "é", "東",
     "Click to VIEW", "image coming soon", "ſ", "K", "\u2028", "\r"]
)  # fmt: skip
CAPTIONS = st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=40)


def reason_of(caption: str, filters: CaptionFilters) -> int:
    """The code of one caption, by what the filters say."""
    words = len([word for word in re.split("[\t-\r ]+", caption) if word])
    lower = "".join(char.lower() if char.isascii() else char for char in caption)
    found = (
        filters.control_characters and re.search("[\x00-\x1f\x7f-\x9f]", caption) is not None,
        filters.replacement_characters and "\ufffd" in caption,
        words < filters.min_words,
        filters.max_words is not None and words > filters.max_words,
        any(phrase.lower() in lower for phrase in filters.boilerplate),
    )
    return found.index(True) + 1 if True in found else 0


def column(captions: list[str]) -> Text:
    return Text.of(pa.array([caption.encode("utf-8", "replace") for caption in captions], pa.large_binary()))


SOME = [
    ALL,
    CaptionFilters(),
    CaptionFilters(max_words=3),
    CaptionFilters(control_characters=True),
    CaptionFilters(replacement_characters=True),
    CaptionFilters(boilerplate=("a d",)),
]


@given(st.lists(CAPTIONS), st.sampled_from(SOME))
def test_reasons_of_a_column_are_those_of_each_caption(captions: list[str], filters: CaptionFilters):
    captions = [caption for caption in captions if caption.strip()]
    assert reasons(column(captions), filters).tolist() == [reason_of(c, filters) for c in captions]


PHRASES = st.text("abAB ", min_size=1, max_size=4).filter(str.strip)


@given(st.lists(PHRASES, max_size=4), st.lists(st.text("abAB ", max_size=12)))
def test_phrases_are_found_wherever_they_stand(phrases: list[str], captions: list[str]):
    filters = CaptionFilters(boilerplate=tuple(phrases))
    captions = [caption for caption in captions if caption.strip()]
    assert reasons(column(captions), filters).tolist() == [reason_of(c, filters) for c in captions]


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("two words", None),
        ("one", "too few words"),
        ("a b c d e f", "too many words"),
        ("a b \x07", "control characters"),
        ("a b\x85c", "control characters"),
        ("caf\ufffd au lait", "replacement characters"),
        ("please Click To View it", "boilerplate"),
        ("non breaking\xa0space counts as no space", "too many words"),
        ("word " * 3 + "x" * 9000, None),
    ],
)
def test_reason_of_a_caption(caption: str, reason: str | None):
    code = reason_of(caption, ALL)
    assert (REASONS[code - 1] if code else None) == reason
    assert reasons(column([caption]), ALL).tolist() == [code]


def test_words_are_counted_between_white_space():
    captions = ["a", "a b", " a  b\tc ", "a" * 100 + " b" * 9]
    assert looked_at(column(captions))[0].tolist() == [len(caption.split()) for caption in captions]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"min_words": 5, "max_words": 4}, "must not be below"),
        ({"boilerplate": (" ",)}, "one line of ASCII"),
        ({"boilerplate": ("é",)}, "one line of ASCII"),
    ],
)
def test_filters_that_cannot_be_meant_are_refused(wrong: dict, says: str):
    with pytest.raises(SpecError, match=says):
        validated(CaptionFilters, wrong)


@pytest.mark.parametrize(
    ("caption", "clean"),
    [
        ("A  dog!\n", "a dog"),
        ('"Hello" (World): #tag; 50% ~ok*', "hello world tag 50% ok"),
        ("x " * 60, " ".join(["x"] * 50)),
        ("don't", "don't"),
    ],
)
def test_blip_caption_cleans_as_the_clip_variant_was_trained(caption: str, clean: str):
    assert blip_caption(caption) == clean
