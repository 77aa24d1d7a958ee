"""Whether a sample's tokens and features depend on what else is computed with it, and by how much.

    python tests/bench/bench_determinism.py deploy/mini/weights/mini-qwen2-vl [--requests 128] [--tokens 48]
    python tests/bench/bench_determinism.py random-20m --dtype bfloat16

The same requests of one picture, all in one batch, and then in other ways: again, in reverse, among twice as many
others, in eights, alone, in a second process, with prompts computed in chunks of 64 tokens, and with so few cache
blocks that requests are preempted and recomputed; greedy and at temperature 0.6. For each way a row of a table: samples
with equal ids; the first position at which an id differs (least, median); samples whose features are equal to the bit;
the largest difference of a feature up to and with the first differing position, where both have seen the same tokens.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from thinkdiff.tasks.qwen_chat import Generation, Request, Sampling
from thinkdiff.tasks.qwen_engine import QwenEngine, prepare_torchvision

EIGHT = 8
HEAD = ["temperature", "way", "equal ids", "first difference", "equal bits", "largest difference", "preempted"]
Answers = dict[str, Generation]


def requests_of(first: int, count: int) -> list[Request]:
    """Requests whose keys, pictures, texts and seeds are their own."""
    from tiny_models import random_image

    numbers = range(first, first + count)
    return [Request(f"{i:06}", (random_image(i), "Describe the image. " + "blue " * (i % 7)), seed=i) for i in numbers]


def answered(engine: QwenEngine, batches: Sequence[list[Request]], sampling: Sampling) -> Answers:
    """The answers to all batches, one after the other, by key."""
    return {made.key: made for batch in batches for made in engine.generate(batch, sampling)}


def ways_of_one_engine(wanted: list[Request]) -> dict[str, list[list[Request]]]:
    """How the same requests are put into batches."""
    rng = np.random.default_rng(0)
    others = requests_of(10_000, 2 * len(wanted))
    mixed = [(wanted + others)[i] for i in rng.permutation(3 * len(wanted))]
    shuffled = [wanted[i] for i in rng.permutation(len(wanted))]
    return {
        "again": [wanted],
        "in reverse": [wanted[::-1]],
        "among twice as many others": [mixed],
        "in eights": [shuffled[i : i + EIGHT] for i in range(0, len(shuffled), EIGHT)],
        "alone": [[request] for request in wanted],
    }


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first position at which two rows of ids differ."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)


def compared(found: Answers, expected: Answers) -> list[str]:
    """The cells of a row."""
    positions: list[int] = []
    same_bits, largest = 0, 0.0
    for key, b in expected.items():
        a = found[key]
        position = first_difference(a.token_ids, b.token_ids)
        seen = len(b.token_ids) if position is None else position + 1
        x, y = (made.features[:seen].astype(np.float32) for made in (a, b))
        largest = max(largest, float(np.abs(x - y).max()))
        same_bits += position is None and np.array_equal(x, y)
        positions += [] if position is None else [position]
    count = len(expected)
    where = f"{min(positions)}, {np.median(positions):g}" if positions else "–"
    return [f"{count - len(positions)} of {count}", where, f"{same_bits} of {count}", f"{largest:.2g}"]


def rows(model: str, args: argparse.Namespace) -> Iterator[list[str]]:
    """The table, way by way."""
    samplings = [Sampling(temperature, top_p, args.tokens, "run_on") for temperature, top_p in ((0.0, 1.0), (0.6, 0.9))]
    common: dict[str, Any] = {
        "dtype": args.dtype, "sampling": samplings[0], "max_num_seqs": 512, "max_model_len": 256, "threads": 1,
        "log": lambda _: None,
    }  # fmt: skip
    whole = {"max_num_batched_tokens": 1 << 15}
    wanted = requests_of(0, args.requests)
    expected: dict[float, Answers] = {}
    with QwenEngine(model, **common, vllm=whole) as engine:
        for sampling in samplings:
            expected[sampling.temperature] = answered(engine, [wanted], sampling)
            for way, batches in ways_of_one_engine(wanted).items():
                found = answered(engine, batches, sampling)
                yield [f"{sampling.temperature:g}", way, *compared(found, expected[sampling.temperature]), "0"]
    others: dict[str, dict[str, Any]] = {
        "in a second process": whole,
        "prompts in chunks of 64": {"block_size": 32, "max_num_batched_tokens": 64},
        "starved of cache": {
            "block_size": 32, "max_num_batched_tokens": 64, "num_gpu_blocks_override": args.requests // 2
        },
    }  # fmt: skip
    for way, vllm in others.items():
        common["max_num_seqs"] = min(512, vllm["max_num_batched_tokens"])
        with QwenEngine(model, **common, vllm=vllm) as engine:
            for sampling in samplings:
                before = engine.statistics()["preempted"]
                found = answered(engine, [wanted], sampling)
                preempted = engine.statistics()["preempted"] - before
                cells = compared(found, expected[sampling.temperature])
                yield [f"{sampling.temperature:g}", way, *cells, f"{preempted:.0f}"]
    spread = np.concatenate([made.features.astype(np.float32) for made in expected[0.0].values()]).std()
    yield ["", "standard deviation of the features", "", "", "", f"{spread:.2g}", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or random-20m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=48)
    args = parser.parse_args()
    prepare_torchvision()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model == "random-20m":
            from tiny_models import make_tiny_qwen_vl

            model = str(make_tiny_qwen_vl(Path(folder), hidden=512, layers=16))
        for row in [HEAD, ["---"] * len(HEAD), *rows(model, args)]:
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"{args.model}, {args.dtype}, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
