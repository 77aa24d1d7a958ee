"""What the feature tap costs: thread time inside it over the process time of the engine, measured in one run.

`python tests/bench/bench_tap_cost.py [MODEL] [--requests 512] [--batches 3] ...` prints one JSON line with the tap's
share, requests per second (wall and per second of processor time), the start-up time and the child's largest memory.
Without MODEL a random tiny Qwen2-VL is made. One 32x32 picture per request.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from thinkdiff.schemas.features import TokenKind
from thinkdiff.tasks.qwen_chat import Request, Sampling
from thinkdiff.tasks.qwen_engine import QwenEngine, prepare_torchvision


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=30)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv-cache-gib", type=float)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--inputs", action="store_true", help="input features as well")
    return parser.parse_args()


def measure(args: argparse.Namespace, model: str) -> dict[str, float]:
    """Run the batches; the first one warms up and does not count."""
    from tiny_models import random_image

    sampling = Sampling(args.temperature, 0.9, args.tokens, "run_on")
    kinds: frozenset[TokenKind] = frozenset({"generated", "input"} if args.inputs else {"generated"})
    began = time.perf_counter()
    with QwenEngine(
        model, dtype="float32", sampling=sampling, features=kinds, max_num_seqs=args.max_num_seqs,
        threads=args.threads, kv_cache_gib=args.kv_cache_gib, max_model_len=512, log=print,
    ) as engine:  # fmt: skip
        start = time.perf_counter() - began
        before, began = {}, 0.0
        for batch in range(args.batches + 1):
            first = batch * args.requests
            numbers = range(first, first + args.requests)
            requests = [Request(f"{i}", (random_image(i), "Describe the image."), seed=i) for i in numbers]
            if batch == 0:
                engine.generate(requests)
                before, began = engine.statistics(), time.perf_counter()
            else:
                engine.generate(requests)
        wall, after = time.perf_counter() - began, engine.statistics()
    cpu = after["cpu_seconds"] - before["cpu_seconds"]
    tap = after["tap_seconds"] - before["tap_seconds"]
    answered = args.requests * args.batches
    return {
        "start_seconds": round(start, 1), "requests": answered, "requests_per_second": round(answered / wall, 1),
        "requests_per_cpu_second": round(answered / cpu, 1), "cpu_seconds": round(cpu, 2),
        "tap_seconds": round(tap, 4), "tap_share": round(tap / cpu, 4),
        "max_rss_gib": round(after["max_rss"] / 2**30, 2),
        "steps": after["steps"] - before["steps"], "rows": after["rows"] - before["rows"],
    }  # fmt: skip


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model is None:
            prepare_torchvision()
            from tiny_models import make_tiny_qwen_vl

            model = str(make_tiny_qwen_vl(Path(folder)))
        print(json.dumps(vars(args) | {"model": model} | measure(args, model)))


if __name__ == "__main__":
    main()
