"""Engines are lent and come back, are closed when something goes wrong, and each has a GPU of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.features import FeatureSpec
from thinkdiff.tasks import engines, extract_features, models
from thinkdiff.tasks.engines import Idle, borrowed_engine, close_engines, gpus
from thinkdiff.tasks.qwen_chat import Sampling
from thinkdiff.tasks.qwen_engine import QwenEngine

RUN, SPEC = Execution(), FeatureSpec(vlm=Model(name="some/model"))


class FakeEngine:
    """Knows whether it runs, and its place."""

    def __init__(self, place: int) -> None:
        self.place, self.running = place, False

    def __enter__(self) -> FakeEngine:
        self.running = True
        return self

    def close(self) -> None:
        self.running = False


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """The engines that were opened, in their order."""
    found: list[FakeEngine] = []

    def open_engine(*_: object, place: int, **__: object) -> FakeEngine:
        found.append(FakeEngine(place))
        return found[-1]

    monkeypatch.setattr(engines, "IDLE", Idle())
    monkeypatch.setattr(engines, "open_engine", open_engine)
    return found


def borrow(spec: FeatureSpec = SPEC) -> Any:
    return borrowed_engine(RUN, spec, "model", add_vision_id=False, max_images=1, log=print)


def test_engine_is_kept_for_the_next_borrower_until_all_are_closed(opened: list[FakeEngine]):
    for _ in range(3):
        with borrow() as engine:
            assert engine.running
    assert len(opened) == 1
    assert opened[0].running
    close_engines()
    assert not opened[0].running
    with borrow():
        assert [engine.place for engine in opened] == [0, 0]


def test_borrowers_side_by_side_have_engines_and_places_of_their_own(opened: list[FakeEngine]):
    with borrow(), borrow(), borrow():
        assert [engine.place for engine in opened] == [0, 1, 2]
    with borrow(), borrow():
        assert len(opened) == 3
    close_engines()
    assert not any(engine.running for engine in opened)


def test_engine_is_closed_when_its_borrower_fails_and_its_place_is_free(opened: list[FakeEngine]):
    def fail() -> None:
        with borrow():
            raise KeyError("broken")

    with borrow():
        with pytest.raises(KeyError, match="broken"):
            fail()
        assert [engine.running for engine in opened] == [True, False]
        with borrow() as third:
            assert third.place == 1


def test_engine_of_another_kind_is_closed_first(opened: list[FakeEngine]):
    with borrow():
        pass
    with borrow(SPEC.but(max_tokens=5)):
        assert [(engine.running, engine.place) for engine in opened] == [(False, 0), (True, 0)]


def test_gpus_are_those_that_the_process_may_see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert gpus(Execution(device="cpu")) == []
    monkeypatch.setattr(models, "compute_device", lambda run: "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus(RUN) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5,7")
    assert gpus(RUN) == ["GPU-5", "7"]
    chosen = [engines.open_engine(RUN, SPEC, "some/model", add_vision_id=False, max_images=1, log=print, place=place)
              for place in range(3)]  # fmt: skip
    assert [engine.gpu for engine in chosen if isinstance(engine, QwenEngine)] == ["GPU-5", "7", "GPU-5"]
    engine = QwenEngine("some/model", dtype="float32", sampling=Sampling(0, 1, 4), gpu="7")
    assert engine._environment()["CUDA_VISIBLE_DEVICES"] == "7"


def test_engines_in_this_process_have_a_gpu_each_by_their_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(models, "compute_device", lambda run: "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("thinkdiff.tasks.transformers_engine.check_model", lambda path: None)
    tower = SPEC.but(prompts={"kind": "pictures"}, tokens=("input",), max_input_tokens=65)
    for run, spec in ((RUN, tower), (Execution(engine="transformers"), SPEC.but(temperature=0.0))):
        opened = [
            engines.open_engine(run, spec, "model", add_vision_id=False, max_images=1, log=print, place=place)
            for place in range(3)
        ]
        assert [getattr(engine, "device", None) for engine in opened] == ["cuda:0", "cuda:1", "cuda:0"]


@pytest.mark.parametrize(("run", "expected"), [(RUN, 17000), (Execution(max_model_len=9000), 9000)])
def test_engine_has_the_context_that_is_needed_or_the_one_that_the_run_says(run: Execution, expected: int):
    chosen = engines.open_engine(
        run, SPEC, "some/model", add_vision_id=False, max_images=1, log=print, max_model_len=17000
    )
    assert isinstance(chosen, QwenEngine)
    assert chosen.options.max_model_len == expected


@pytest.mark.parametrize(
    ("run", "found", "expected"),
    [
        (Execution(), [], (1, 0)),
        (Execution(), ["0", "1"], (2, 0)),
        (Execution(engines=3), ["0"], (3, 0)),
        (Execution(engine="transformers"), ["0", "1"], (1, 0)),
        (Execution(runner="ray", device="cuda", engines=8), [], (8, 1)),
        (Execution(runner="dask"), ["0", "1"], (1, 0)),
    ],
)
def test_engines_are_as_many_as_gpus_unless_said(
    monkeypatch: pytest.MonkeyPatch, run: Execution, found: list[str], expected: tuple[int, int]
):
    monkeypatch.setattr(extract_features, "gpus", lambda run: found)
    assert extract_features.side_by_side(run) == expected
