"""Requests to a tiny random Qwen2-VL, and how two engines' answers to them are compared, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from tiny_models import random_image

from thinkdiff.tasks.qwen_chat import Generation, Request, Sampling

T = 24
GREEDY = Sampling(temperature=0, top_p=1, max_tokens=T, end_policy="stop")
SAMPLED = Sampling(temperature=0.6, top_p=0.9, max_tokens=T, end_policy="run_on")
SCARCE: dict[str, Any] = {"block_size": 32, "num_gpu_blocks_override": 20, "max_num_batched_tokens": 64}
COMMON: dict[str, Any] = {"dtype": "float32", "sampling": GREEDY, "max_images": 4, "add_vision_id": True}
FAST: dict[str, Any] = {"max_num_seqs": 32, "max_model_len": 512}
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


def assert_counted(before: dict[str, float], after: dict[str, float], found: list[Generation], beyond: int = 0) -> None:
    """An engine's statistics around a batch: rows are the answers', what was computed again, and `beyond`."""
    used = {name: after[name] - before[name] for name in after}
    assert 0 < used["steady"] < used["steps"]  # both ways of copying rows had their turn
    assert after["live"] == after["ended"] == 0
    assert 0 < used["vision_seconds"] < used["prefill_seconds"]
    assert used["rows"] - used["recomputed"] - sum(len(g.token_ids) for g in found) == beyond
