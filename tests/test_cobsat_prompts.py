"""What each prompt type says: the whole text of one prompt, and what its words have to do with the answer."""

from __future__ import annotations

import pytest

from thinkdiff.schemas.artifact import validated
from thinkdiff.schemas.cobsat import CobsatPrompts, PromptType
from thinkdiff.tasks import cobsat, cobsat_prompts

INSTRUCTION = (
    "I give you several words and pictures. First, please analyse what the next picture is. Then give me a detailed "
    "diffusion prompt to describe the next picture. Please only provide me the detailed prompt and start the answer "
    "with 'Create an image'."
)
# Of 2-shot Color-I #0; theta of the published list begins with 7 6 3, so that ball, book and chair mislead.
WORDED: dict[PromptType, str] = {
    "default": INSTRUCTION
    + "\n\nWord 1: blue, <color_car/blue_car.jpg>\n\nWord 2: brown, <color_car/brown_car.jpg>\n\nWord 3: orange, ",
    "caption": INSTRUCTION + "\n\nEach picture is given by its caption."
    "\n\nWord 1: blue, a blue car parked\n\nWord 2: brown, a brown car parked\n\nWord 3: orange, ",
    "instruct": INSTRUCTION
    + "\n\nAll pictures show the same object, and each word names the color in its picture. The "
    "next picture shows that object with the color that the last word names."
    "\n\nWord 1: blue, <color_car/blue_car.jpg>\n\nWord 2: brown, <color_car/brown_car.jpg>\n\nWord 3: orange, ",
    "misleading": INSTRUCTION + "\n\nWord 1: blue ball, <color_car/blue_car.jpg>"
    "\n\nWord 2: brown book, <color_car/brown_car.jpg>\n\nWord 3: orange chair, ",
    "exact": INSTRUCTION + "\n\nWord 1: blue car, <color_car/blue_car.jpg>"
    "\n\nWord 2: brown car, <color_car/brown_car.jpg>\n\nWord 3: orange car, ",
    "cot": "I give you several words and pictures. Think step by step: say how each word and its picture belong "
    "together, what all pictures have in common, and what the next picture must therefore show."
    "\n\nWord 1: blue, <color_car/blue_car.jpg>\n\nWord 2: brown, <color_car/brown_car.jpg>\n\nWord 3: orange, ",
}


def spec_of(prompt_type: PromptType, **changes: object) -> CobsatPrompts:
    values = {"families": cobsat.COBSAT_FAMILIES, "images": "x", "prompt_type": prompt_type, "per_task": 40}
    return validated(CobsatPrompts, values | changes)


def captions(spec: CobsatPrompts) -> dict[cobsat.ImageRef, str]:
    return {picture: f"a {picture.value} {picture.thing} parked" for picture in cobsat.pictures(spec)}


def text(content: cobsat.Content) -> str:
    return "".join(part if isinstance(part, str) else f"<{part.path}>" for part in content)


@pytest.mark.parametrize("prompt_type", WORDED)
def test_whole_text_of_a_prompt(prompt_type: PromptType):
    spec = spec_of(prompt_type)
    prompt = cobsat.prompts(spec)[0]
    assert prompt.name == "color-1/shot_2/0_car_blue_brown_orange"
    assert text(cobsat_prompts.content(spec, prompt, captions(spec))) == WORDED[prompt_type]


def test_second_question_of_a_chain_of_thought_quotes_the_first_answer():
    spec = spec_of("cot")
    said = text(cobsat_prompts.cot_answer(spec, cobsat.prompts(spec)[0], "All are cars."))
    assert said == INSTRUCTION + (
        "\n\nThis is an analysis of them: All are cars."
        "\n\nWord 1: blue, <color_car/blue_car.jpg>\n\nWord 2: brown, <color_car/brown_car.jpg>\n\nWord 3: orange, "
    )


def test_task_is_told_of_version_two_as_well():
    spec = spec_of("instruct")
    prompt = next(p for p in cobsat.prompts(spec) if p.name == "background-2/shot_2/0_park_cat_cow_lion")
    assert text(cobsat_prompts.content(spec, prompt, {})).startswith(
        INSTRUCTION
        + "\n\nAll pictures have the same background, and each word names the animal in its picture. The next "
        "picture shows the animal that the last word names with that background.\n\nWord 1: cat, "
    )


def test_misleading_words_never_tell_the_answer_and_exact_ones_always():
    wrong, right = spec_of("misleading", shots=(2, 8)), spec_of("exact", shots=(2, 8))
    for prompt in cobsat.prompts(wrong):
        assert prompt.latent not in prompt.decoys
        assert len(set(prompt.decoys)) == len(prompt.words)
        assert cobsat_prompts.text_inputs(right, prompt) == [f"{word} {prompt.latent}" for word in prompt.words]
    assert cobsat.prompts(wrong) == cobsat.prompts(right)


def test_text_inputs_are_the_benchmarks():
    def found(prompt_type: PromptType) -> list[str]:
        spec = spec_of(prompt_type)
        return cobsat_prompts.text_inputs(spec, cobsat.prompts(spec)[0], colon=": ")

    assert found("default") == found("instruct") == found("cot") == ["blue: ", "brown: ", "orange: "]
    assert found("misleading") == ["blue ball: ", "brown book: ", "orange chair: "]
    assert found("exact") == ["blue car: ", "brown car: ", "orange car: "]
