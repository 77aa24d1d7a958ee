"""The stage extract_features around its engine: what it asks about, in which order, and what it holds in memory."""

from __future__ import annotations

import gc
import logging
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from keyed_engine import WIDTH, KeyedEngine
from many_images import FAILING, key_of, write_images
from store_artifacts import artifact_of, flip

from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.errors import InputError, StoreError, ThinkDiffError
from thinkdiff.schemas.features import CaptionPrompts, FeatureSet, FeatureSpec
from thinkdiff.schemas.images import ImageSet
from thinkdiff.storage.feature_store import FeatureReader
from thinkdiff.storage.root import Folder
from thinkdiff.tasks import engines
from thinkdiff.tasks.engines import Idle
from thinkdiff.tasks.extract_features import extract_features
from thinkdiff.tasks.feature_questions import keyed_number
from thinkdiff.tasks.qwen_chat import Generation, Request
from thinkdiff.tasks.step import Made, Work
from thinkdiff.tasks.vlm_context import CONTEXT

SPEC = FeatureSpec(
    vlm=Model(name="none"), max_tokens=1, compute_dtype="float32", dtype="float32", shard_size=64, seed=5
)  # fmt: skip


@pytest.fixture(autouse=True)
def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "IDLE", Idle())
    monkeypatch.setattr(engines, "open_engine", KeyedEngine)


def extract(folder: Path, images: ImageSet | None, spec: FeatureSpec = SPEC, workers: int = 1) -> tuple[Made, Folder]:
    """The stage's body, outside of any flow."""
    (folder / "none").mkdir(parents=True, exist_ok=True)
    (folder / "none" / "config.json").write_text(f'{{"hidden_size": {WIDTH}}}')
    run = Execution(device="cpu", model_dirs=(str(folder),), engines=workers)
    place = Folder(str(folder / "features"))
    work = Work(place, run, SimpleNamespace(), logging.getLogger("test"))  # pyright: ignore[reportArgumentType]
    return extract_features.body(work, spec, images), place


@pytest.mark.parametrize(("shard_size", "workers"), [(1000, 1), (7, 1), (100, 3)])
def test_rows_are_those_with_a_picture_in_the_order_of_keys_and_each_has_its_own(
    tmp_path: Path, shard_size: int, workers: int
):
    images = write_images(Folder(str(tmp_path / "images")), 400, shard_size)
    made, place = extract(tmp_path, images, workers=workers)
    reader = FeatureReader(artifact_of(FeatureSet, place, made.files))
    keys = [key_of(number) for number in range(400) if number % FAILING != FAILING - 1]
    assert reader.keys == keys
    assert made.counts["rows"] == len(keys)
    engine, texts = KeyedEngine(None, SPEC, ""), SPEC.prompts.texts  # pyright: ignore[reportAttributeAccessIssue]
    for key, row in zip(keys, reader.iterate(), strict=True):
        prompt = texts[keyed_number(5, key, "prompt") % len(texts)]
        expected = engine.answer(Request(key, (key.encode(), prompt), keyed_number(5, key, "sampling")))
        assert (row.prompt, row.text, list(row.token_ids)) == (prompt, expected.text, expected.token_ids)


def test_only_what_is_missing_is_asked_again(tmp_path: Path):
    images = write_images(Folder(str(tmp_path / "images")), 400, 100)
    made, place = extract(tmp_path, images)
    for shard in (1, 4):
        place.delete(f"commits/{shard:06}.json")
    again, _ = extract(tmp_path, images)
    assert again.stats["run"]["requests"] == 2 * SPEC.shard_size
    assert again.files == made.files


@pytest.mark.parametrize("name", ["rows/00001.parquet", "commits/000001.json"])
def test_altered_rows_or_records_of_the_pictures_raise(tmp_path: Path, name: str):
    folder = Folder(str(tmp_path / "images"))
    images = write_images(folder, 400, 100)
    flip(folder, name, 40)
    with pytest.raises(StoreError, match=f"{name}: found other bytes than recorded"):
        extract(tmp_path, images)


@pytest.mark.parametrize("fault", ["encode", "put"])
def test_engine_is_closed_when_a_commit_fails_and_the_collector_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    closed: list[int] = []

    class Faulty(KeyedEngine):
        """Answers that are no numbers, or a store that loses a folder to a file meanwhile."""

        def close(self) -> None:
            closed.append(1)

        def answer(self, request: Request) -> Generation:
            if fault == "put" and not (tmp_path / "features" / "rows").is_file():
                shutil.rmtree(tmp_path / "features" / "rows", ignore_errors=True)
                (tmp_path / "features" / "rows").write_text("no folder")
            made = super().answer(request)
            return replace(made, features=made.features * np.nan) if fault == "encode" else made

    monkeypatch.setattr(engines, "open_engine", Faulty)
    images = write_images(Folder(str(tmp_path / "images")), 400, 100)
    with pytest.raises((ThinkDiffError, NotADirectoryError)) as caught:
        extract(tmp_path, images)
    assert closed == [1]
    del caught
    gc.collect()  # hangs where it finds a generator that is still open


def test_set_without_pictures_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="found no images"):
        extract(tmp_path, None)


def test_memory_of_the_driver_does_not_grow_with_the_rows(tmp_path: Path):
    """Between 4,000 and 16,000 rows the peak grows by a few bytes a row: bookkeeping of shards, no rows."""
    spec, peaks = SPEC.but(shard_size=500), {}
    for captions in (1000, 4000, 16_000):  # the first warms up
        folder = tmp_path / f"{captions}"
        images = write_images(Folder(str(folder / "images")), captions)
        tracemalloc.start()
        extract(folder, images, spec)
        peaks[captions] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (peaks[16_000] - peaks[4000]) / 12_000 < 40


@pytest.mark.parametrize(("resize", "expected"), [(None, 16384), ({"longest_side": 512}, 0)])
def test_engine_has_room_for_the_largest_picture_that_was_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resize: Any, expected: int
):
    asked: list[int] = []

    class Roomy(KeyedEngine):
        def __init__(self, *args: Any, max_model_len: int, **more: Any) -> None:
            super().__init__(*args, **more)
            asked.append(max_model_len)

    monkeypatch.setattr(engines, "open_engine", Roomy)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "preprocessor_config.json").write_text('{"max_pixels": 12845056, "patch_size": 14}')
    images = write_images(Folder(str(tmp_path / "images")), 4, 4)
    extract(tmp_path, images.model_copy(update={"spec": {"max_pixels": 50_000_000, "resize": resize}}))
    words = max(len(text) for text in SPEC.prompts.texts) if isinstance(SPEC.prompts, CaptionPrompts) else 0
    needed = expected + words + SPEC.max_tokens
    assert asked[0] == CONTEXT if not expected else needed < asked[0] < needed + 200
