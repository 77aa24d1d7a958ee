"""The vLLM engine against plain transformers on a random tiny Qwen2-VL: ids, features, end policies, seeds, faults."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from thinkdiff.schemas.errors import EngineError, InputError, ModelError
from thinkdiff.schemas.features import TokenKind
from thinkdiff.tasks.qwen_chat import Generation, Request, Sampling
from thinkdiff.tasks.qwen_engine import QwenEngine, prepare_torchvision
from thinkdiff.tasks.transformers_engine import TransformersEngine

pytest.importorskip("vllm")
prepare_torchvision()
from tiny_models import make_tiny_qwen_vl, random_image  # noqa: E402
from tiny_requests import COMMON, FAST, SAMPLED, SCARCE, TOLERANCE, T, assert_counted, assert_same, prompts  # noqa: E402


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen_vl(tmp_path_factory.mktemp("tiny-qwen2-vl"))


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
    before = engine.statistics()
    found = engine.generate(prompts(24))
    assert_counted(before, after := engine.statistics(), found)
    assert after["preempted"] == after["recomputed"] == 0
    assert_same(found, expected)
    ended = [g for g in found if g.end_index is not None]
    assert 0 < len(ended) < 24  # both ways to end are covered
    assert all(g.end_index == len(g.token_ids) - 1 for g in ended)
    assert engine.hidden_size == 128
    assert engine.versions["model_runner"] == "V1"


def test_generate_input_features_equal_transformers(engine: QwenEngine, expected: list[Generation]):
    for found, wanted in zip(engine.generate(prompts(24)), expected, strict=True):
        assert found.input_features is not None
        assert wanted.input_features is not None
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


def test_two_passes_equal_transformers(checkpoint: Path, expected: list[Generation]):
    both: frozenset[TokenKind] = frozenset({"generated", "input"})
    with QwenEngine(checkpoint, **COMMON, **FAST, features=both, two_pass=True) as engine:
        found = engine.generate(prompts(24))
        with pytest.raises(InputError, match="'long'"):
            engine.generate([*prompts(2), Request("long", ("word " * 900,))])
        assert_same(engine.generate(prompts(2)), expected[:2])
    assert_same(found, expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a.input_features), np.asarray(b.input_features), rtol=0, atol=TOLERANCE)


def test_generate_refused_request_leaves_engine_usable(engine: QwenEngine, expected: list[Generation]):
    good = prompts(2)
    with pytest.raises(InputError, match=r"'sample-0' more than once"):
        engine.generate([good[0], good[0]])
    with pytest.raises(InputError, match="found 5 pictures, expected at most 4"):
        engine.generate([Request("five", (random_image(0),) * 5)])
    with pytest.raises(InputError, match="'long'"):
        engine.generate([*good, Request("long", ("word " * 900,))])
    todo = r"512 tokens together. Set run.max_model_len to more, at most 2048, or make the pictures smaller"
    for parts in (("word " * 900,), (random_image(0), "word " * 900)):
        with pytest.raises(InputError, match=f"'long'.*{todo}"):
            engine.generate([Request("long", parts)])
    with pytest.raises(InputError, match=f"'tight'.*leaves no room for more.*{todo}"):
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


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", None])
def test_model_weights_cut_short_are_named_before_start(checkpoint: Path, tmp_path: Path, content: bytes | None):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ModelError, match=r"model.safetensors: found \d+ bytes, expected"):
        QwenEngine(folder, **COMMON)


def test_child_ends_when_its_parent_is_killed(checkpoint: Path):
    program = (
        "import sys, threading, time\n"
        "from thinkdiff.tasks.qwen_engine import QwenEngine, Sampling\n"
        "engine = QwenEngine(sys.argv[1], dtype='float32', sampling=Sampling(0, 1, 8))\n"
        "threading.Thread(target=engine.__enter__).start()\n"
        "while engine.pid is None: time.sleep(0.01)\n"
        "print(engine.pid, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=python_path()) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(1)  # the child is importing vLLM
        assert is_running(child)
        parent.kill()
    deadline = time.monotonic() + 60
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def python_path() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_stream_gives_what_batches_give_and_ends_the_engine_when_left(engine: QwenEngine, expected: list[Generation]):
    """The last to use this engine, which it leaves dead."""
    batches = [prompts(24)[first : first + 8] for first in range(0, 24, 8)]
    found = [answer for answers in engine.stream(batches) for answer in answers]
    assert_same(found, expected)
    assert_same(engine.generate(prompts(2)), expected[:2])
    counts = engine.statistics()
    assert 0 < counts["tap_seconds"] < counts["cpu_seconds"]
    assert counts["moving_seconds"] > 0
    assert counts["prefill_seconds"] > 0
    assert counts["decode_seconds"] > 0
    with pytest.raises(InputError, match="'long'"):
        list(engine.stream([prompts(2), [Request("long", ("word " * 900,))], prompts(3)]))
    with pytest.raises(EngineError, match="found it closed"):
        engine.generate(prompts(1))


def test_killed_child_raises_engine_error(scarce: QwenEngine):
    """Last in this file, since it leaves a dead engine behind."""
    assert scarce.pid is not None
    threading.Timer(0.3, os.kill, (scarce.pid, signal.SIGKILL)).start()
    with pytest.raises(EngineError, match=r"ended by signal SIGKILL.*ran out of memory"):
        scarce.generate(prompts(500))
    scarce.close()
    with pytest.raises(EngineError, match="found it closed"):
        scarce.generate(prompts(1))
