"""The benchmark's prompts before a real tiny VLM: from a zip as from a folder, captions, chains of thought."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from meters import Meter
from small_benchmark import SMALL, data_set, write_files, zip_of
from store_artifacts import artifact_of
from tiny_models import make_tiny_qwen_vl

from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.features import FeatureSet, FeatureSpec
from thinkdiff.storage.feature_store import FeatureReader, FeatureRow
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.cobsat_data import find_data, read_captions
from thinkdiff.tasks.extract_features import extract_features
from thinkdiff.tasks.qwen_chat import Generation, Request, Sampling
from thinkdiff.tasks.qwen_engine import prepare_torchvision
from thinkdiff.tasks.step import Made, Work
from thinkdiff.tasks.transformers_engine import TransformersEngine

ASKED = SMALL.model_copy(update={"per_task": 2})
LENGTH = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the data set as a folder and as a zip, and the VLM beside it."""
    folder = tmp_path_factory.mktemp("data")
    files = data_set(SMALL)
    write_files(Folder.at(str(folder / "datasets")), files)
    (folder / "datasets.zip").write_bytes(zip_of((f"datasets/{name}", data) for name, data in files.items()))
    prepare_torchvision()
    make_tiny_qwen_vl(folder / "vlm")
    return folder


def spec_of(prompts: CobsatPrompts) -> FeatureSpec:
    return FeatureSpec(
        vlm=Model(name="vlm"), prompts=prompts, max_tokens=LENGTH, temperature=0, top_p=1, end_policy="forced",
        compute_dtype="float32", dtype="float32", shard_size=3,
    )  # fmt: skip


def extract(data: Path, folder: Path, prompts: CobsatPrompts) -> tuple[Made, list[FeatureRow]]:
    """The stage's body, outside of any flow."""
    run = Execution(engine="transformers", device="cpu", threads=1, data=str(data), model_dirs=(str(data),), engines=1)
    place = Folder.at(str(folder))
    work = Work(place, run, SimpleNamespace(), logging.getLogger("test"))  # pyright: ignore[reportArgumentType]
    object.__setattr__(work, "progress", lambda total, unit: Meter())
    made = extract_features.body(work, spec_of(prompts), None)
    return made, list(FeatureReader(artifact_of(FeatureSet, place, made.files)).iterate())


def answer(data: Path, parts: tuple[str | bytes, ...]) -> Generation:
    """The VLM's own answer to one user turn."""
    sampling = Sampling(0, 1, LENGTH, "forced")
    with TransformersEngine(
        data / "vlm", dtype="float32", sampling=sampling, add_vision_id=True, features=frozenset({"generated"}),
        max_images=2,
    ) as engine:  # fmt: skip
        return engine.generate([Request("a", parts)])[0]


def test_zip_gives_the_same_bytes_as_the_folder_and_the_digest_is_told(data: Path, tmp_path: Path):
    (plain, rows), (zipped, _) = (
        extract(data, tmp_path / name, ASKED.model_copy(update={"images": name}))
        for name in ("datasets", "datasets.zip")
    )
    assert plain.files == zipped.files
    assert len(rows) == plain.counts["rows"] == 4 * 2
    digest = plain.stats["images_digest"]
    assert zipped.stats["images_digest"] == digest
    known = ASKED.model_copy(update={"images_digest": digest})
    assert extract(data, tmp_path / "known", known)[0].files == plain.files
    with pytest.raises(InputError, match=f"found files of digest {digest[:12]}…, expected 111111111111…"):
        extract(data, tmp_path / "other", ASKED.model_copy(update={"images_digest": "1" * 64}))


def test_data_set_that_lacks_a_picture_is_refused_before_anything_is_asked(data: Path, tmp_path: Path):
    files = data_set(SMALL)
    del files["background_dog/gym_dog.jpg"]  # of no prompt that is asked here
    write_files(Folder.at(str(tmp_path / "datasets")), files)
    asked = ASKED.model_copy(update={"images": str(tmp_path / "datasets")})
    with pytest.raises(InputError, match=r"27 of the benchmark's 28 pictures whole, 1 missing \(background_dog/gym"):
        extract(data, tmp_path / "features", asked)
    assert not (tmp_path / "features").exists()


def test_captions_stand_in_place_of_pictures(data: Path, tmp_path: Path):
    asked = ASKED.model_copy(update={"prompt_type": "caption"})
    made, rows = extract(data, tmp_path, asked)
    _, digest = read_captions(find_data(str(data), "datasets", asked), asked)
    assert made.stats["images_digest"] == digest
    assert all("<image>" not in row.prompt and "Word 1: " in row.prompt for row in rows)
    name = "style-1/shot_2/0_"
    row = next(row for row in rows if row.key.startswith(name))
    thing, first, *_ = row.key.removeprefix(name).split("_")
    assert f"Word 1: {first}, A {thing}, {'3d' if first == 'wireframe' else first}.\n\nWord 2: " in row.prompt
    by_hand = answer(data, (row.prompt,))
    assert (row.text, list(row.token_ids)) == (by_hand.text, by_hand.token_ids)
    np.testing.assert_allclose(row.features, by_hand.features, atol=1e-5)


def test_chain_of_thought_asks_twice_and_keeps_what_was_thought(data: Path, tmp_path: Path):
    asked = ASKED.model_copy(update={"prompt_type": "cot"})
    made, rows = extract(data, tmp_path, asked)
    row, pictures = rows[0], find_data(str(data), "datasets", asked)
    family, _, name = row.key.partition("-1/shot_2/0_")
    assert family == "style"
    latent, *words = name.split("_")
    raw = ["3d" if word == "wireframe" else word for word in words[:2]]
    one, two = pictures.read([f"{family}_{latent}/{word}_{latent}.jpg" for word in raw]).values()
    texts = ("Word 1: " + words[0] + ", ", "\n\nWord 2: " + words[1] + ", ", "\n\nWord 3: " + words[2] + ", ")
    first = (
        "I give you several words and pictures. Think step by step: say how each word and its picture belong together, "
        "what all pictures have in common, and what the next picture must therefore show.\n\n"
    )
    analysis = answer(data, (first, texts[0], one, texts[1], two, texts[2])).text
    second = f"{asked.instruction}\n\nThis is an analysis of them: {analysis}\n\n"
    by_hand = answer(data, (second, texts[0], one, texts[1], two, texts[2]))
    assert row.prompt == second + f"{texts[0]}<image>{texts[1]}<image>{texts[2]}"
    assert (row.text, list(row.token_ids)) == (by_hand.text, by_hand.token_ids)
    np.testing.assert_allclose(row.features, by_hand.features, atol=1e-5)
    assert len({r.prompt for r in rows}) == len(rows) == 8
    Folder.at(str(tmp_path)).delete("commits/000001.json")
    assert extract(data, tmp_path, asked)[0].files == made.files
