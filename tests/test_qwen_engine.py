"""The vLLM engine against plain transformers on a random tiny Qwen2-VL: ids, features, end policies, seeds, faults."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from thinkdiff.schemas.errors import EngineError, InputError, ModelError
from thinkdiff.tasks.qwen_chat import Generation, Request, Sampling
from thinkdiff.tasks.qwen_engine import QwenEngine, prepare_torchvision
from thinkdiff.tasks.transformers_engine import TransformersEngine

pytest.importorskip("vllm")
prepare_torchvision()
from tiny_models import make_tiny_qwen2_vl, random_image  # noqa: E402

T = 24
GREEDY = Sampling(temperature=0, top_p=1, max_tokens=T, end_policy="stop")
SAMPLED = Sampling(temperature=0.6, top_p=0.9, max_tokens=T, end_policy="run_on")
SCARCE = {"block_size": 32, "num_gpu_blocks_override": 40, "max_num_batched_tokens": 64}
COMMON = {"dtype": "float32", "sampling": GREEDY, "max_images": 4, "add_vision_id": True}
FAST = {"threads": 1, "kv_cache_gib": 0.25, "max_num_seqs": 32, "max_model_len": 512}
TOLERANCE = 1e-4


def prompts(n: int) -> list[Request]:
    """Text with none to four pictures, first, last or in between, of several sizes."""
    requests: list[Request] = []
    for i in range(n):
        rng = np.random.default_rng(i)
        content: list[str | np.ndarray] = [f"Word {i}: "]
        for j in range(i % 5):
            content += [random_image(10 * i + j, int(rng.choice([32, 48, 64]))), "blue " * int(rng.integers(0, 4))]
        requests.append(Request(f"sample-{i}", (*content, "What is here?"), seed=i))
    return requests


def assert_same(found: list[Generation], expected: list[Generation]) -> None:
    """Equal ids, text and end; features within TOLERANCE."""
    assert [g.key for g in found] == [g.key for g in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.prompt_token_ids == b.prompt_token_ids, a.key
        assert a.token_ids == b.token_ids, a.key
        assert (a.text, a.end_index) == (b.text, b.end_index)
        assert a.features.shape == (len(a.token_ids), 128)
        np.testing.assert_allclose(a.features, b.features, rtol=0, atol=TOLERANCE, err_msg=a.key)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2_vl(tmp_path_factory.mktemp("tiny-qwen2-vl"))


@pytest.fixture(scope="module")
def reference(checkpoint: Path):
    import torch

    torch.set_num_threads(1)  # the model is tiny, and the vLLM engine next door wants a core too
    with TransformersEngine(checkpoint, **COMMON, features=frozenset({"generated", "input"})) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(reference: TransformersEngine) -> list[Generation]:
    return reference.generate(prompts(24))


@pytest.fixture(scope="module")
def engine(checkpoint: Path):
    with QwenEngine(checkpoint, **COMMON, **FAST, features=frozenset({"generated", "input"})) as engine:
        yield engine


@pytest.fixture(scope="module")
def scarce(checkpoint: Path):
    """Few cache blocks (requests are preempted and recomputed), prompts in chunks, cached prefixes."""
    with QwenEngine(checkpoint, **COMMON, **FAST, prefix_caching=True, vllm=SCARCE) as engine:
        yield engine


def test_generate_greedy_equals_transformers(engine: QwenEngine, expected: list[Generation]):
    found = engine.generate(prompts(24))
    assert_same(found, expected)
    ended = [g for g in found if g.end_index is not None]
    assert 0 < len(ended) < 24  # both ways to end are covered
    assert all(g.end_index == len(g.token_ids) - 1 for g in ended)
    assert engine.hidden_size == 128
    assert engine.versions["model_runner"] == "V1"


def test_generate_input_features_equal_transformers(engine: QwenEngine, expected: list[Generation]):
    for found, wanted in zip(engine.generate(prompts(24)), expected, strict=True):
        assert found.input_features is not None
        assert found.input_features.shape == (len(found.prompt_token_ids), 128)
        np.testing.assert_allclose(found.input_features, wanted.input_features, rtol=0, atol=TOLERANCE)


def test_features_through_output_head_give_generated_ids(engine: QwenEngine, checkpoint: Path):
    """Row i predicts token i: the one statement about features that needs no second engine."""
    from safetensors.numpy import load_file

    head = load_file(checkpoint / "model.safetensors")["lm_head.weight"]
    for generation in engine.generate(prompts(6)):
        assert (generation.features @ head.T).argmax(1).tolist() == generation.token_ids


@pytest.mark.parametrize("policy", ["run_on", "forced"])
def test_generate_to_full_length_equals_transformers(
    engine: QwenEngine, reference: TransformersEngine, expected: list[Generation], policy: str
):
    sampling = Sampling(0, 1, T, policy)  # pyright: ignore[reportArgumentType]
    found = engine.generate(prompts(24), sampling)
    assert {len(g.token_ids) for g in found} == {T}
    assert_same(found[:8], reference.generate(prompts(8), sampling))
    if policy == "run_on":  # the same answers, continued beyond their end tokens
        assert [g.end_index for g in found] == [g.end_index for g in expected]
        assert all(a.token_ids[: len(b.token_ids)] == b.token_ids for a, b in zip(found, expected, strict=True))
        assert [g.text for g in found] == [g.text for g in expected]
    else:
        assert {g.end_index for g in found} == {None}


def test_generate_sampled_depends_on_seed_and_not_on_batch(engine: QwenEngine, scarce: QwenEngine):
    batch = engine.generate(prompts(24), SAMPLED)
    alone = [engine.generate([request], SAMPLED)[0] for request in prompts(3)]
    reversed_batch = engine.generate(prompts(24)[::-1], SAMPLED)[::-1]
    before = scarce.statistics()
    chunked = scarce.generate(prompts(24), SAMPLED)
    assert scarce.statistics()["preempted"] > before["preempted"]
    ids = [g.token_ids for g in batch]
    assert [g.token_ids for g in alone] == ids[:3]
    assert [g.token_ids for g in reversed_batch] == ids
    assert [g.token_ids for g in chunked] == ids
    other = engine.generate([Request("again", prompts(1)[0].content, seed=99)], SAMPLED)
    assert other[0].token_ids != ids[0]


def test_generate_preempted_and_chunked_equals_transformers(scarce: QwenEngine, expected: list[Generation]):
    before = scarce.statistics()
    assert_same(scarce.generate(prompts(24)), expected)
    after = scarce.statistics()
    assert after["preempted"] > before["preempted"]
    assert after["recomputed"] > before["recomputed"]
    assert after["live"] == after["ended"] == 0


def test_generate_model_runner_v2_async_equals_transformers(checkpoint: Path, expected: list[Generation]):
    class V2Engine(QwenEngine):
        program = (str(Path(__file__).parent / "v2_child.py"),)

    with V2Engine(checkpoint, **COMMON, **FAST) as engine:
        assert engine.versions["model_runner"] == "V2"
        found = engine.generate(prompts(10))
        rows = engine.statistics()["rows"]
    assert_same(found, expected[:10])
    assert rows > sum(len(g.token_ids) for g in found)  # async scheduling ran beyond end tokens; trimmed


def test_generate_refused_request_leaves_engine_usable(engine: QwenEngine, expected: list[Generation]):
    good = prompts(2)
    with pytest.raises(InputError, match=r"'sample-0' more than once"):
        engine.generate([good[0], good[0]])
    with pytest.raises(InputError, match="found 5 pictures, expected at most 4"):
        engine.generate([Request("five", (random_image(0),) * 5)])
    with pytest.raises(InputError, match="'long'"):
        engine.generate([*good, Request("long", ("word " * 900,))])
    with pytest.raises(InputError, match=r"'tight'.*leaves no room"):
        engine.generate([*good, Request("tight", ("What" + " is" * 470,))], Sampling(0, 1, T, "run_on"))
    with pytest.raises(InputError, match=r"'torn'.*cannot be read"):
        engine.generate([*good, Request("torn", (b"\xff\xd8 no JPEG",))])
    with pytest.raises(InputError, match=f"at most the engine's {T}"):
        engine.generate(good, Sampling(0, 1, T + 1))
    assert_same(engine.generate(good), expected[:2])
    assert engine.statistics()["live"] == engine.statistics()["ended"] == 0


@pytest.mark.parametrize(
    "lost", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "processor_config.json"]
)
def test_model_folder_without_a_file_is_named_before_start(checkpoint: Path, tmp_path: Path, lost: str):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    (folder / lost).unlink()
    for kind in (QwenEngine, TransformersEngine):
        with pytest.raises(ModelError, match=lost.replace("model.", "")):
            kind(folder, **COMMON)
    with pytest.raises(ModelError, match="no folder"):
        QwenEngine(tmp_path / "nowhere", **COMMON)


def test_killed_child_raises_engine_error(checkpoint: Path):
    with QwenEngine(checkpoint, **COMMON, **FAST) as engine:
        assert engine.pid is not None
        threading.Timer(0.2, os.kill, (engine.pid, signal.SIGKILL)).start()
        with pytest.raises(EngineError, match=r"ended by signal SIGKILL.*ran out of memory"):
            for _ in range(1000):
                engine.generate(prompts(10))
    with pytest.raises(EngineError, match="found it closed"):
        engine.generate(prompts(1))


def test_child_ends_when_its_parent_is_gone(checkpoint: Path):
    engine = QwenEngine(checkpoint, **COMMON, **FAST)
    starting = threading.Thread(target=lambda: pytest.raises(EngineError, engine.__enter__))
    starting.start()
    while engine.pid is None:
        time.sleep(0.01)
    child = engine._child
    assert child is not None
    time.sleep(1)  # it is importing
    engine._connection.close()
    assert child.wait(60) == 0
    starting.join(60)
