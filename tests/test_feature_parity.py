"""Whichever way vLLM runs, it gives transformers' tokens and features: runners, chunks, caches, preemption, ends."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from thinkdiff.schemas.errors import EngineError
from thinkdiff.schemas.features import EndPolicy, TokenKind
from thinkdiff.tasks.feature_tap import check_internals
from thinkdiff.tasks.qwen_chat import Generation, Sampling
from thinkdiff.tasks.qwen_engine import QwenEngine, prepare_torchvision
from thinkdiff.tasks.transformers_engine import TransformersEngine

pytest.importorskip("vllm")
prepare_torchvision()
from tiny_models import Family, make_tiny_qwen_vl  # noqa: E402
from tiny_requests import COMMON, FAST, SCARCE, TOLERANCE, T, assert_counted, assert_same, prompts  # noqa: E402

V2_CHILD = str(Path(__file__).parent / "v2_child.py")
BOTH: frozenset[TokenKind] = frozenset({"generated", "input"})
LONGER: tuple[EndPolicy, ...] = ("run_on", "forced")
GENERATED: frozenset[TokenKind] = frozenset({"generated"})


class V2Engine(QwenEngine):
    program = (V2_CHILD, "sync")


class AsyncV2Engine(QwenEngine):
    program = (V2_CHILD, "async")


RUNNERS: dict[str, type[QwenEngine]] = {"V1": QwenEngine, "V2": V2Engine, "V2 async": AsyncV2Engine}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"features": BOTH},
    "chunks and cached prefixes": {
        "features": GENERATED,  # a cached prefix has no states
        "prefix_caching": True,
        "vllm": {"block_size": 32, "max_num_batched_tokens": 64},
    },
    "starved": {"features": BOTH, "vllm": SCARCE},
}
# V1's plain engine is that of test_qwen_engine.py; V2 async is V2 with another scheduler, which scarce memory tries
ELSEWHERE = {("V1", "plain"), ("V2 async", "plain"), ("V2 async", "chunks and cached prefixes")}
CASES = [case for case in itertools.product(RUNNERS, SETTINGS) if case not in ELSEWHERE]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen_vl(tmp_path_factory.mktemp("tiny-qwen2-vl"))


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> dict[EndPolicy, list[Generation]]:
    import torch

    torch.set_num_threads(1)
    with TransformersEngine(checkpoint, **COMMON, features=BOTH) as engine:
        answers: dict[EndPolicy, list[Generation]] = {"stop": engine.generate(prompts(24))}
        answers.update({policy: engine.generate(prompts(8), Sampling(0, 1, T, policy)) for policy in LONGER})
        return answers


def assert_same_inputs(found: list[Generation], expected: list[Generation]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a.input_features), np.asarray(b.input_features), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("runner", "setting"), CASES)
def test_tokens_and_features_equal_transformers(
    checkpoint: Path, reference: dict[EndPolicy, list[Generation]], runner: str, setting: str
):
    expected = reference["stop"]
    with RUNNERS[runner](checkpoint, **COMMON, **FAST, **SETTINGS[setting]) as engine:
        assert engine.versions["model_runner"] == runner[:2]
        before = engine.statistics()
        found = engine.generate(prompts(24))
        counts = engine.statistics()
        for policy in LONGER if setting == "plain" else ():
            assert_same(engine.generate(prompts(8), Sampling(0, 1, T, policy)), reference[policy])
    assert_same(found, expected)
    if SETTINGS[setting]["features"] == BOTH:
        assert_same_inputs(found, expected)
    assert (counts["preempted"] > 0) == (setting == "starved")
    assert (counts["recomputed"] > 0) == (setting == "starved")
    ended = sum(g.end_index is not None for g in found)
    assert 0 < ended < 24
    # async scheduling runs one position beyond an end token
    assert_counted(before, counts, found, beyond=ended if runner == "V2 async" else 0)


@pytest.mark.parametrize(
    ("family", "runner"), [("qwen2_5_vl", "V1"), ("qwen3_vl", "V1"), ("qwen3_vl", "V2 async")], ids=str
)
def test_later_families_tokens_and_features_equal_transformers(tmp_path: Path, family: Family, runner: str):
    model = make_tiny_qwen_vl(tmp_path, family, seed=4)
    with TransformersEngine(model, **COMMON, features=BOTH) as engine:
        expected = engine.generate(prompts(10))
    with RUNNERS[runner](model, **COMMON, **FAST, features=BOTH) as engine:
        found = engine.generate(prompts(10))
    assert 0 < sum(g.end_index is not None for g in expected) < 10
    assert_same(found, expected)
    assert_same_inputs(found, expected)


def test_vllm_of_other_internals_is_refused_and_the_two_passes_offered():
    worker = SimpleNamespace(
        vllm_config=SimpleNamespace(speculative_config=None, use_v2_model_runner=False),
        parallel_config=SimpleNamespace(world_size=1),
        model_runner=SimpleNamespace(execute_model_state=None, input_batch=None),
    )
    with pytest.raises(EngineError, match=r"without model runner V1\.query_start_loc.*tested: 0\.32.*engine=two-pass"):
        check_internals(worker)
