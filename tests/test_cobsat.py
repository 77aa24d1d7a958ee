"""The benchmark as data: the draw against the published digest and names, splits, paths, wording, rules."""

import hashlib
import json
from itertools import permutations, product

import pytest

from thinkdiff.schemas.artifact import Model, fingerprint, validated
from thinkdiff.schemas.cobsat import CobsatPrompts, Family
from thinkdiff.schemas.errors import SpecError
from thinkdiff.schemas.features import FeatureSpec
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


# Worked out by hand from the rules; beside each name are the rows x and theta of its index in the published list. A
# word of x or theta is the word of that number, from 0, in the list of the task; x[0..shots] are written (3d and park
# as wireframe and amusement park), theta[shots + 1] is latent (as files have it).
BY_HAND = (
    "color-1/shot_2/1_hat_brown_pink_purple",  # x 7 4 3 ..., theta 3 4 8 1 ...
    "color-1/shot_6/1_book_brown_pink_purple_green_red_white_yellow",  # x 7 4 3 6 2 1 0 ..., theta 3 4 8 1 9 2 7 6 ...
    "color-2/shot_2/2_green_hat_car_apple",  # x 1 4 9 ..., theta 7 4 8 6 ...
    "color-2/shot_4/2_yellow_hat_car_apple_box_chair",  # x 1 4 9 5 3 ..., theta 7 4 8 6 9 0 ...
    "background-1/shot_2/3_sheep_gym_seafloor_beach",  # x 5 9 0 ..., theta 3 1 4 2 ...
    # x 5 9 0 2 4 1 3 7 6 ..., theta 3 1 4 2 7 6 9 5 0 8
    "background-1/shot_8/3_cat_gym_seafloor_beach_glacier_amusement park_desert_volcano_space_waterfall",
    "background-2/shot_4/7_desert_sheep_cow_monkey_zebra_dog",  # x 2 7 4 0 6 ..., theta 9 3 5 7 4 1 ...
    # x 7 4 0 2 6 3 5 ..., theta 3 2 0 7 4 9 5 1 ...
    "background-2/shot_6/42_desert_cow_monkey_zebra_sheep_dog_pig_lion",
    "style-1/shot_2/42_ball_futuristic_lego_watercolor",  # x 7 4 0 ..., theta 3 2 0 7 ...
    # x 1 2 8 6 3 0 4 7 9 ..., theta 6 2 7 8 0 9 5 1 3 4
    "style-1/shot_8/123_car_sketch_pixel_wireframe_graffiti_origami_watercolor_lego_futuristic_old",
    "style-2/shot_2/250_graffiti_apple_car_box",  # x 9 4 5 ..., theta 8 7 2 6 ...
    "style-2/shot_4/499_3d_leaf_box_cup_bag_car",  # x 0 5 2 8 4 ..., theta 4 3 2 1 5 8 ...
    "action-1/shot_6/500_tiger_run_eat_fly_sing_cry_read_angry",  # x 3 6 5 2 8 4 9 ..., theta 2 6 7 0 5 8 3 1 ...
    "action-2/shot_2/777_read_lion_dog_sheep",  # x 5 6 2 ..., theta 6 9 1 4 ...
    "texture-1/shot_4/777_leaf_metal_leather_sequined_wicker_lace",  # x 5 6 2 1 7 ..., theta 6 9 1 4 5 0 ...
    "texture-2/shot_2/999_plastic_cup_leaf_box",  # x 2 0 5 ..., theta 1 6 7 3 ...
    # x 2 0 5 7 6 9 3 8 4 ..., theta 1 6 7 3 2 9 8 4 0 5
    "texture-2/shot_8/999_metal_cup_leaf_box_ball_book_apple_chair_bag_car",
)


def test_names_worked_out_by_hand_are_among_the_prompts_of_all_shots():
    spec = REAL.model_copy(update={"shots": (2, 4, 6, 8)})
    prompts = cobsat.prompts(spec)
    assert len(BY_HAND) == 17
    assert set(BY_HAND) <= {prompt.name for prompt in prompts}
    for task, shots in product(cobsat.tasks(spec), spec.shots):
        cell = [p for p in prompts if (p.task, p.shots) == (task.name, shots)]
        assert [p.index for p in cell] == list(range(1000))
        assert all(len(set(p.words)) == len(p.demos) + 1 == shots + 1 for p in cell)
        if shots in (2, 4):
            assert len({(p.demos, p.query) for p in cell}) == {2: 942, 4: 999}[shots]
            assert len({(p.target_value, p.target_thing) for p in cell}) == 100


def test_entry_0_is_as_published():
    x, theta = next(cobsat.draws(10, 10, 123, 1))
    assert (x, theta) == ([8, 7, 5, 9, 2, 3, 6, 1, 4, 0], [7, 6, 3, 4, 1, 0, 2, 5, 9, 8])


def test_tuned_models_are_tested_on_the_latter_half_of_each_list():
    spec = validated(CobsatPrompts, REAL.model_dump() | {"split": "ft_test"})
    prompts = cobsat.prompts(spec)
    assert len(prompts) == 10 * 2 * 250
    # The published file of this split begins with x 8 6 9 7 5, theta 9 6 8 5 7 and x 7 8 6 9 5, theta 9 8 5 7 6; the
    # index of theta is taken modulo 5, so that two shots take theta[3] and four take theta[0].
    names = {prompt.name for prompt in prompts}
    assert {
        "color-1/shot_2/0_box_blue_green_black",
        "color-1/shot_4/0_apple_blue_green_black_brown_orange",
        "style-2/shot_2/1_futuristic_ball_bag_book",
        "style-2/shot_4/1_old_ball_bag_book_apple_box",
    } <= names
    for task in cobsat.tasks(spec):
        x_words, theta_words = task.words
        of_task = [p for p in prompts if p.task == task.name]
        assert {word for p in of_task for word in p.words} == set(map(cobsat.display, x_words[5:]))
        assert {p.latent for p in of_task} == set(map(cobsat.display, theta_words[5:]))


def test_models_are_tuned_on_every_permutation_of_the_former_half():
    spec = validated(CobsatPrompts, REAL.model_dump() | {"split": "ft_train"})
    prompts = cobsat.prompts(spec)
    for task, (shots, count) in product(cobsat.tasks(spec), ((2, 300), (4, 600))):
        cell = [p for p in prompts if (p.task, p.shots) == (task.name, shots)]
        x_words, theta_words = ([cobsat.display(word) for word in words[:5]] for words in task.words)
        assert len(cell) == count
        assert [(p.words, p.latent) for p in cell] == list(product(permutations(x_words, shots + 1), theta_words))
    tested = validated(CobsatPrompts, REAL.model_dump() | {"split": "ft_test"})
    words = [{word for p in cobsat.prompts(s) if p.task == "Color-I" for word in p.words} for s in (spec, tested)]
    assert not words[0] & words[1]


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


def test_fields_that_came_later_leave_the_fingerprint_of_older_specs():
    asked = FeatureSpec(vlm=Model(name="vlm"), prompts=REAL)
    assert fingerprint(asked, {}) == "994e799d4eb99ac3200ee942c2492b08"  # without split, prompt_type and images_digest
    changes = ({"split": "ft_test"}, {"prompt_type": "cot"}, {"images_digest": "0" * 64})
    specs = [validated(CobsatPrompts, REAL.model_dump() | change) for change in changes]
    assert len({fingerprint(asked.but(prompts=spec), {}) for spec in (REAL, *specs)}) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_type": "riddle"}, r"prompt_type: found 'riddle', expected: input should be 'default', 'caption'"),
        (
            {"split": "ft_train", "shots": (2,)},
            "2 shots and a query need lists of more than 2 words, of which ft_train",
        ),
        (
            {"split": "ft_train", "shots": (1,), "prompt_type": "misleading"},
            "ft_train draws no words that could mislead",
        ),
        ({"images_digest": "abc"}, "images_digest: found 'abc'"),
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
