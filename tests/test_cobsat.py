"""The benchmark as data: the draw against the published digest and names, paths, wording, rules."""

import hashlib
import json
from itertools import product

import pytest

from thinkdiff.schemas.artifact import validated
from thinkdiff.schemas.cobsat import CobsatPrompts, Family
from thinkdiff.schemas.errors import SpecError
from thinkdiff.tasks import cobsat

REAL = CobsatPrompts(families=cobsat.COBSAT_FAMILIES, images="datasets")
SMALL = Family(
    name="color",
    values=("red", "blue", "green", "3d", "park"),
    things=tuple("abcdefgh"),
    caption=("a red {thing}", "{thing} {value}", "g", "x {value}", "y {value}"),
)


def by_name(spec: CobsatPrompts) -> dict[str, cobsat.Prompt]:
    return {prompt.name: prompt for prompt in cobsat.prompts(spec)}


def test_draws_of_ten_words_are_the_benchmarks_published_list():
    entries = [{"x_list": x, "theta_list": theta} for x, theta in cobsat.draws(10, 10, 123, 1000)]
    text = json.dumps(entries, separators=(",", ":"))
    expected = "2b9bb57fa0fbef66772c9c875434507619a088f331a97bc671547dfc1f2d5af1"
    assert hashlib.sha256(text.encode()).hexdigest() == expected


def test_prompts_of_the_real_lists_have_the_benchmarks_names_and_counts():
    prompts = cobsat.prompts(REAL)
    assert len(prompts) == 10 * 2 * 1000
    assert len({prompt.name for prompt in prompts}) == len(prompts)
    assert [task.name for task in cobsat.tasks(REAL)] == [
        f"{family}-{version}"
        for family, version in product(("Color", "Background", "Style", "Action", "Texture"), ("I", "II"))
    ]
    named = by_name(REAL)
    assert named["color-1/shot_2/0_car_blue_brown_orange"].task == "Color-I"
    assert "color-1/shot_4/0_leaf_blue_brown_orange_black_red" in named
    assert "background-2/shot_2/0_park_cat_cow_lion" in named
    # The reference counts 942 distinct 2-shot prompts and 999 4-shot ones in each task.
    for shots, distinct in ((2, 942), (4, 999)):
        of_task = [p for p in prompts if p.task == "Style-II" and p.shots == shots]
        assert len({(p.demos, p.query) for p in of_task}) == distinct
        assert len({(p.target_value, p.target_thing) for p in of_task}) == 100


def test_prompt_of_version_two_shares_the_value_and_asks_for_a_thing():
    prompt = by_name(REAL)["background-2/shot_2/0_park_cat_cow_lion"]
    assert prompt.demos == (cobsat.Demo("cat", "park", "cat"), cobsat.Demo("cow", "park", "cow"))
    assert (prompt.query, prompt.target_value, prompt.target_thing) == ("lion", "park", "lion")
    assert cobsat.true_caption(REAL, prompt) == "lion, amusement park background"
    assert cobsat.image_path("background", "park", "cat") == "background_cat/park_cat.jpg"


def test_interleaved_content_is_thinkdiffs_wording():
    prompt = by_name(REAL)["color-1/shot_2/0_car_blue_brown_orange"]
    assert cobsat.interleaved(REAL, prompt) == [
        REAL.instruction + "\n\n",
        "Word 1: blue, ",
        cobsat.ImageRef("color", "blue", "car"),
        "\n\nWord 2: brown, ",
        cobsat.ImageRef("color", "brown", "car"),
        "\n\nWord 3: orange, ",
    ]


def test_lists_of_other_lengths_draw_every_latent_word_and_show_mapped_words():
    spec = CobsatPrompts(families=(SMALL,), images="x", shots=(4,), per_task=200, seed=0)
    one, two = ([p for p in cobsat.prompts(spec) if p.version == version] for version in cobsat.VERSIONS)
    assert {p.target_thing for p in one} == set(SMALL.things)
    assert {p.target_value for p in two} == set(SMALL.values)
    for prompt in one:
        assert len({demo.value for demo in prompt.demos} | {prompt.target_value}) == 5
        assert {demo.thing for demo in prompt.demos} == {prompt.target_thing}
    wireframes = [p for p in one if p.target_value == "3d"]
    assert {p.query for p in wireframes} == {"wireframe"}
    assert {cobsat.true_caption(spec, p) for p in wireframes} == {"x wireframe"}


def test_held_out_marks_exactly_the_listed_pairs():
    spec = CobsatPrompts(families=(SMALL,), images="x", per_task=300, held_out=(("color", "red", "a"),))
    prompts = cobsat.prompts(spec)
    marked = {(p.target_value, p.target_thing) for p in prompts if p.held_out}
    assert marked == {("red", "a")}
    assert not [p for p in prompts if not p.held_out and (p.target_value, p.target_thing) == ("red", "a")]


def test_pictures_of_the_real_lists_are_the_data_sets_500_files_in_50_folders():
    paths = [picture.path for picture in cobsat.pictures(REAL)]
    assert len(set(paths)) == len(paths) == 500
    assert len({path.split("/")[0] for path in paths}) == 50
    asked = {item.path for p in cobsat.prompts(REAL.model_copy(update={"per_task": 50}))
             for item in cobsat.interleaved(REAL, p) if not isinstance(item, str)}  # fmt: skip
    assert asked <= set(paths)


def test_is_right_needs_both_words_in_either_form():
    prompt = next(p for p in cobsat.prompts(REAL) if (p.target_value, p.target_thing) == ("3d", "car"))
    assert cobsat.is_right(prompt, "car", "3d")
    assert cobsat.is_right(prompt, "car", "wireframe")
    assert not cobsat.is_right(prompt, "cup", "3d")
    assert not cobsat.is_right(prompt, "car", "lego")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shots": (5,)}, "5 shots and a query need lists of more than 5 words"),
        ({"families": (SMALL, SMALL)}, "families must differ by name"),
        (
            {"families": ({"name": "color", "values": ("a/b", "b", "c"), "things": ("a", "b", "c")},)},
            "found 'a/b'",
        ),
        (
            {"families": ({"name": "color", "values": ("b", "b", "c"), "things": ("a", "b", "c")},)},
            "must differ",
        ),
        ({"families": ({**SMALL.model_dump(), "caption": "{objekt}"},)}, "no other fields"),
        ({"families": ({**SMALL.model_dump(), "caption": ("a", "b")},)}, "2 captions must be one"),
    ],
)
def test_spec_that_cannot_be_drawn_is_refused_in_one_sentence(changes: dict, said: str):
    with pytest.raises(SpecError, match=said):
        validated(CobsatPrompts, {"families": (SMALL,), "images": "x", **changes})
