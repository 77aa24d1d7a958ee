"""Attribution of failures: every chain of evidence by hand, and shares that add up."""

from __future__ import annotations

import itertools

import pytest

from thinkdiff.storage.score_tables import AskedPrompt, Verdict
from thinkdiff.tasks.cobsat import COBSAT_FAMILIES, display
from thinkdiff.tasks.failures import CAUSES, FURTHER, Evidence, causes, names_all


def verdict(method: str, name: str, right: bool) -> Verdict:
    return Verdict(method, name, "Color-I", "color", 2, False, "red", "hat", "red", "hat", right, right, right, 0.0)


def evidence(answer="a red hat", read: str | None = "red hat", text=False, true=True, other=False) -> Evidence:
    """What is known of one prompt whose aligned picture is wrong."""
    asked = {"p": AskedPrompt("p", "Color-I", "color", 2, False, "red", "hat", answer, "red hat")}
    seen = [verdict("aligned", "p", False), verdict("text_bridge", "p", text), verdict("true_caption", "p", true)]
    second = {("aligned", "p"): verdict("aligned", "p", other)}
    return Evidence(asked, {(v.method, v.name): v for v in seen}, second, {} if read is None else {"p": read})


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (evidence(other=True, answer="a dog"), "judge"),
        (evidence(answer="a blue hat"), "vlm"),
        (evidence(answer="a blue hat", true=False, text=True), "vlm"),
        (evidence(true=False, text=True), "decoder"),
        (evidence(read="red cup"), "aligner"),
        (evidence(read="red cup", text=True), "aligner"),
        (evidence(text=True), "aligner"),
        (evidence(), "decoder"),
        (evidence(read=None), "decoder"),
        (evidence(read=None, text=True), "aligner"),
    ],
)
def test_cause_is_the_first_that_holds(known, expected):
    assert causes(known) == {"p": expected}


def test_every_wrong_picture_has_one_cause_and_no_right_one_has():
    asked, seen, second, readings = {}, {}, {}, {}
    for number, bits in enumerate(itertools.product((False, True), repeat=5)):
        right, text, true, other, read = bits
        name = str(number)
        answer = "a red hat" if number % 3 else "a hat"
        asked[name] = AskedPrompt(name, "Color-I", "color", 2, False, "red", "hat", answer, "red hat")
        for method, found in (("aligned", right), ("text_bridge", text), ("true_caption", true)):
            seen[method, name] = verdict(method, name, found)
        second["aligned", name] = verdict("aligned", name, other)
        if read:
            readings[name] = "red hat" if number % 2 else "nothing"
    found = causes(Evidence(asked, seen, second, readings))
    assert set(found) == {name for name in asked if not seen["aligned", name].right}
    assert set(found.values()) == set(CAUSES)


def test_without_pictures_of_the_true_captions_nothing_is_attributed():
    known = evidence()
    alone = {key: found for key, found in known.verdicts.items() if key[0] != "true_caption"}
    assert causes(Evidence(known.prompts, alone, known.second, known.readings)) == {}


@pytest.mark.parametrize(
    ("text", "words", "named"),
    [
        ("A lion is running.", ("run", "lion"), True),
        ("Two Lions run", ("run", "lion"), True),
        ("swimming pigs", ("swim", "pig"), True),
        ("a cow cries", ("cry", "cow"), True),
        ("a wireframe of a chair", ("3d", "chair"), True),
        ("a 3D chair", ("3d", "chair"), True),
        ("an amusement\npark with a cat", ("park", "cat"), True),
        ("a parked car and a cat", ("park", "cat"), True),
        ("a scarlet car", ("red", "car"), False),
        ("a reddish carpet", ("red", "car"), False),
        ("a blue sky with a unicorn", ("blue", "corn"), False),
        ("single", ("sing",), False),
        ("a singer", ("sing",), True),
        ("old.", ("old",), True),
        ("gold", ("old",), False),
        ("", ("old",), False),
        ("A wooden chair", ("wood", "chair"), True),
        ("a metallic teacup", ("metal", "cup"), True),
        ("Red leaves", ("red", "leaf"), True),
        ("leave the red", ("leaf",), False),
        ("a pixelated hat in pixel art", ("pixel", "hat"), True),
        ("a monkey, fast asleep", ("sleep", "monkey"), True),
        ("the cow slept", ("sleep", "cow"), True),
        ("a bag of gold sequins", ("sequined", "bag"), True),
        ("a bird in mid-flight", ("fly", "bird"), True),
        ("a zebra on the sea\nfloor", ("seafloor", "zebra"), True),
        ("a three-dimensional box", ("3d", "box"), True),
        ("an amusement-park with a lioness", ("park", "lion"), True),
        ("a watercolour of an apple", ("watercolor", "apple"), True),
        ("a drunk, iconic monkey", ("drink",), False),
        ("a lacy book", ("lace", "book"), True),
        ("a lazy book", ("lace",), False),
    ],
)
def test_words_are_found_in_their_forms_and_not_in_other_words(text, words, named):
    assert names_all(text, words) is named


def test_further_forms_are_of_the_benchmarks_words_and_name_no_other_of_a_list():
    lists = [words for family in COBSAT_FAMILIES for words in (family.values, family.things)]
    known = {name for words in lists for word in words for name in (word, display(word))}
    assert FURTHER.keys() <= known
    for words in lists:
        for word in words:
            for form in FURTHER.get(word, word).split(", "):
                assert [other for other in words if names_all(f"a {form}.", [other])] == [word]
