"""Judges that are VLMs and CLIPs: the benchmark's questions and parsing, answers kept, failures told."""

from __future__ import annotations

import io
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_judges import make_tiny_clip, make_tiny_llava
from tiny_models import random_image

from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.cobsat import Family
from thinkdiff.schemas.errors import EngineError, SpecError
from thinkdiff.schemas.scores import ClipJudge, ScoreSpec, VlmJudge
from thinkdiff.storage.judge_answers import JudgeAnswers, answer_key
from thinkdiff.tasks.cobsat import COBSAT_FAMILIES
from thinkdiff.tasks.judge import Wanted
from thinkdiff.tasks.judge_questions import chosen_word, questions
from thinkdiff.tasks.judge_vlm import AskingJudge, identity, squared
from thinkdiff.tasks.judges import open_judge
from thinkdiff.tasks.models import folder_revision

COLOR, STYLE = COBSAT_FAMILIES[0], COBSAT_FAMILIES[2]
LOG = logging.getLogger("test")


def test_answers_of_a_local_judge_are_another_ones_once_its_weights_are_replaced(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    spec, path = VlmJudge(model=Model(name=str(tmp_path))), str(tmp_path)
    first = identity(spec, path)
    assert identity(spec, path) == first
    fixed = spec.model_copy(update={"model": Model(name="judge", revision=folder_revision(path))})
    told = identity(fixed, path)
    (tmp_path / "model.safetensors").write_bytes(b"another")
    assert identity(spec, path) != first
    assert identity(fixed, path) == told  # by its revision, which is verified where the folder is looked for


def test_questions_are_the_benchmarks_to_the_letter():
    things = " (1)leaf (2)hat (3)cup (4)chair (5)car (6)box (7)book (8)ball (9)bag (10)apple"
    tail = ". Answer the number only and do not include any other texts (e.g., 1)."
    thing, value = questions(STYLE)
    assert thing == f"What is the main object in this image? Answer from the following options: {things}{tail}"
    assert value == (
        "What is the style (of the main object) in this image? Answer from the following options:  (1)watercolor "
        "(2)sketch (3)pixel (4)origami (5)lego (6)icon (7)graffiti (8)futuristic (9)wireframe (10)old" + tail
    )
    thing, value = questions(COLOR, "a red car")
    assert thing.startswith(
        "Image caption: a red car. What is the main object in this image based on the description? Answer from the "
        f"following options: {things}"
    )
    assert value.startswith(
        "Image caption: a red car. What is the color (of the main object) in the image based on the description? Answer"
    )


@pytest.mark.parametrize(
    ("reply", "option"),
    [
        ("3", 3), ("(3)", 3), (" 3.", 3), ("10", 10), ("(10)apple", 10), ("03", 3), ("the answer is 7, a book", 7),
        ("1 or 2", 12), ("1, 2", 12), ("1 0", 10), ("0", 0), ("11", 11), ("-4", 4), ("3.0", 30), ("", 0), ("red", 0),
        ("ten", 0), ("²", 0), ("٣", 3), ("9" * 5000, 0),
    ],
)  # fmt: skip
def test_all_digits_of_a_reply_make_the_number(reply: str, option: int):
    assert chosen_word(reply, COLOR.things) == (COLOR.things[option - 1] if 1 <= option <= 10 else "")


def png(seed: int, side: int = 32) -> bytes:
    data = io.BytesIO()
    Image.fromarray(random_image(seed, side=side)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    return make_tiny_llava(tmp_path_factory.mktemp("models") / "llava")


def judge_of(llava: Path, root: Path, **changes: Any) -> AskingJudge:
    spec = VlmJudge(model=Model(name=str(llava)), max_tokens=12, compute_dtype="float32")
    run = Execution(root=str(root), device="cpu", threads=1, max_num_seqs=16, **changes)
    return AskingJudge(spec, {family.name: family for family in COBSAT_FAMILIES}, run, LOG)


def reply_of(llava: Path, image: Image.Image | None, question: str) -> str:
    """LLaVA's greedy reply by transformers, the prompt written out."""
    from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration

    tokenizer: Any = AutoTokenizer.from_pretrained(llava)
    model: Any = LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32).eval()
    start = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: "
    )
    inputs: dict[str, Any] = {}
    if image is None:
        ids = tokenizer(f"{start}{question} ASSISTANT:")["input_ids"]
    else:
        after = tokenizer(f"\n{question} ASSISTANT:", add_special_tokens=False)["input_ids"]
        ids = [*tokenizer(start)["input_ids"], *[2] * 4, *after]
        inputs["pixel_values"] = AutoImageProcessor.from_pretrained(llava)(images=[image], return_tensors="pt")[
            "pixel_values"
        ]
    said = model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
        max_new_tokens=12, **inputs,
    )  # fmt: skip
    return tokenizer.decode(said[0, len(ids) :], skip_special_tokens=True)


def test_vlm_judge_says_what_llava_says_and_is_asked_once(llava, tmp_path, caplog):
    wide = Image.fromarray(random_image(9, side=32)).crop((0, 0, 32, 20))
    data = io.BytesIO()
    wide.save(data, "PNG")
    subjects = [png(1), png(2), data.getvalue(), png(1)]
    wanted = [Wanted("color", "red", "car"), Wanted("style", "3d", "hat"), Wanted("color", "red", "hat")]
    wanted.append(wanted[0])
    with judge_of(llava, tmp_path) as judge:
        seen = judge.see(subjects, wanted)
        assert len(judge.answers) == 6  # the last subject is the first
        for subject, want, one in zip(subjects, wanted, seen, strict=True):
            family = judge.families[want.family]
            for question, words, found in zip(questions(family), (family.things, family.values), (one.thing, one.value),
                                              strict=True):  # fmt: skip
                image = squared(Image.open(io.BytesIO(subject)).convert("RGB"))
                reply = reply_of(llava, image, question)
                assert judge.answers.get(answer_key(subject, question)) == reply
                assert found == chosen_word(reply, words)
        text = judge.see(["a red car", ""], wanted[:2])
        key = answer_key(b"a red car", questions(COLOR, "a red car")[0])
        assert judge.answers.get(key) == reply_of(llava, None, questions(COLOR, "a red car")[0])
    with judge_of(llava, tmp_path) as again:
        assert again.see(subjects, wanted) == seen
        assert again.see(["a red car", ""], wanted[:2]) == text
        assert again._engine is None
    files = sorted(again.answers.folder.sizes(""))
    altered = next(name for name in files if name != "judge.json")
    again.answers.folder.write(altered, again.answers.folder.read(altered).replace(b'": "', b'": "9', 1))
    left = JudgeAnswers(str(tmp_path), again.answers.folder.read("judge.json").decode())
    assert len(left) < 10
    assert "expected a judge's answers. It is left aside" in caplog.text


def test_picture_is_padded_to_a_square_with_the_mean_colour():
    image = Image.fromarray(np.full((4, 10, 3), 7, np.uint8))
    found = np.asarray(squared(image))
    assert found.shape == (10, 10, 3)
    assert (found[3:7] == 7).all()
    assert (found[[0, 1, 2, 7, 8, 9]] == (122, 116, 104)).all()


def test_judge_that_dies_or_hangs_is_told_and_its_answers_so_far_are_kept(llava, tmp_path):
    wanted = [Wanted("color", "red", "car")]
    with judge_of(llava, tmp_path) as judge:
        judge.see([png(1)], wanted)
        assert judge.engine.pid
        os.kill(judge.engine.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="vLLM's process: found it ended by signal SIGKILL"):
            judge.see([png(2)], wanted)
    with judge_of(llava, tmp_path, judge_seconds=60.0) as judge:
        assert len(judge.answers) == 2
        assert judge.engine.pid
        judge.engine.timeout = 0.5
        os.kill(judge.engine.pid, signal.SIGSTOP)
        with pytest.raises(EngineError, match=r"found no answer within 0\.5 seconds, expected one"):
            judge.see([png(3)], wanted)


def test_judge_without_the_pictures_words_is_refused(llava, tmp_path):
    with judge_of(llava, tmp_path) as judge, pytest.raises(SpecError, match=r"found color, .*, expected weather"):
        judge.see([png(1)], [Wanted("weather", "sunny", "dog")])


def test_answers_are_kept_by_two_runs_at_once(tmp_path):
    def add(number: int) -> None:
        held = JudgeAnswers(str(tmp_path), "{}")
        for i in range(20):
            held.add({answer_key(b"picture", f"{number} {i}"): str(i)})

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = JudgeAnswers(str(tmp_path), "{}")
    assert [found.get(answer_key(b"picture", f"{n} {i}")) for n in range(4) for i in range(20)] == [
        str(i) for _ in range(4) for i in range(20)
    ]
    assert len(JudgeAnswers(str(tmp_path), '{"another": "judge"}')) == 0


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"a": 1}', b'{"zz": "1"}', b"[" * 100_000, b"\xff"])
def test_file_that_holds_no_answers_is_left_aside(tmp_path, data: bytes, caplog):
    from thinkdiff.storage.root import sha256_hex

    held = JudgeAnswers(str(tmp_path), "{}")
    held.folder.write(f"{sha256_hex(data)}.json", data)
    assert len(JudgeAnswers(str(tmp_path), "{}")) == 0
    assert "It is left aside; what it held is asked again." in caplog.text


def test_clip_judge_takes_the_nearest_words_and_tells_the_likeness(tmp_path):
    folder = make_tiny_clip(tmp_path / "clip")
    from transformers import AutoProcessor, CLIPModel

    model: Any = CLIPModel.from_pretrained(folder).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    subjects = [png(seed) for seed in range(3)]
    wanted = [Wanted("color", "red", "car"), Wanted("style", "3d", "hat"), Wanted("style", "old", "cup")]
    families = {family.name: family for family in COBSAT_FAMILIES}
    with open_judge(ClipJudge(model=Model(name=str(folder))), COBSAT_FAMILIES, Execution(device="cpu"), LOG) as judge:
        found = judge.see(subjects, wanted)
    for data, want, one in zip(subjects, wanted, found, strict=True):
        family = families[want.family]
        for words, seen in ((family.things, one.thing), (family.values, one.value)):
            inputs = processor(text=list(words), images=Image.open(io.BytesIO(data)), return_tensors="pt", padding=True)
            with torch.no_grad():
                assert words[int(model(**inputs).logits_per_image[0].argmax())] == seen
        inputs = processor(
            text=[f"{want.value} {want.thing}"], images=Image.open(io.BytesIO(data)), return_tensors="pt", padding=True
        )
        with torch.no_grad():
            expected = max(float(model(**inputs).logits_per_image[0, 0]), 0.0)
        assert one.similarity == pytest.approx(expected, abs=1e-4)


def test_judges_that_cannot_be_asked_are_refused_in_one_sentence():
    family = Family(name="color", values=("a", "b", "c"), things=("d", "e", "f"))
    with pytest.raises(ValueError, match="judges by words to choose from; give the benchmark's families"):
        ScoreSpec(judge=VlmJudge(model=Model(name="m")))
    with pytest.raises(ValueError, match="answers in words are judged by a VLM"):
        ScoreSpec(judge=ClipJudge(model=Model(name="m")), families=(family,), mode="text")
