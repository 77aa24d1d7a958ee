"""How far the vLLM engine's token features are from plain transformers', over N prompts of 1 to 4 pictures.

`python tests/bench/bench_feature_parity.py MODEL [--prompts 200] [--tokens 64] [--dtype float32] [--images FOLDER]`
prints one JSON line: largest and median absolute difference of features and of input features, how many prompts have
equal ids, and the standard deviation of the features for scale. Greedy. Exit code 1 unless all ids are equal and
differences stay within --tolerance (float32 only).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from thinkdiff.schemas.features import TokenKind
from thinkdiff.tasks.qwen_chat import Part, Request, Sampling
from thinkdiff.tasks.qwen_engine import QwenEngine
from thinkdiff.tasks.transformers_engine import TransformersEngine

TEXTS = ("Describe the image concisely.", "Word 1: red, ", "What is the next picture?", "Summarize the photo.")


def requests_of(n: int, images: list[Part], texts: list[str]) -> list[Request]:
    """Captioning and in-context prompts in turn."""
    rng = np.random.default_rng(0)
    requests: list[Request] = []
    for i in range(n):
        content: list[Part] = []
        for _ in range(1 + i % 4):
            content += [str(rng.choice(texts)), images[int(rng.integers(len(images)))]]
        requests.append(Request(f"prompt-{i}", (*content, str(rng.choice(texts))), seed=i))
    return requests


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--end-policy", choices=["stop", "run_on", "forced"], default="stop")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--images", type=Path, help="folder of .jpg files; random 32x32 pictures by default")
    parser.add_argument("--text", action="append", help="text to draw from (repeatable)")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--two-pass", action="store_true", help="vLLM's public interface alone, in place of the tap")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    from tiny_models import random_image

    files = sorted(args.images.rglob("*.jpg")) if args.images else []
    images: list[Part] = [path.read_bytes() for path in files] or [random_image(i) for i in range(256)]
    requests = requests_of(args.prompts, images, args.text or list(TEXTS))
    sampling = Sampling(0, 1, args.tokens, args.end_policy)
    kinds: frozenset[TokenKind] = frozenset({"generated", "input"})
    began = time.perf_counter()
    with QwenEngine(
        args.model, dtype=args.dtype, sampling=sampling, features=kinds, max_images=4, threads=args.threads,
        two_pass=args.two_pass, device=args.device, log=print,
    ) as engine:  # fmt: skip
        found = engine.generate(requests)
        versions = engine.versions
    seconds = {"vllm": time.perf_counter() - began}
    began = time.perf_counter()
    with TransformersEngine(
        args.model, dtype=args.dtype, sampling=sampling, features=kinds, max_images=4,
        device=args.device,
    ) as reference:  # fmt: skip
        expected = reference.generate(requests)
    seconds["transformers"] = time.perf_counter() - began

    pairs = list(zip(found, expected, strict=True))
    same = [(a, b) for a, b in pairs if (a.prompt_token_ids, a.token_ids) == (b.prompt_token_ids, b.token_ids)]
    generated = [float(np.abs(a.features.astype("f4") - b.features.astype("f4")).max()) for a, b in same]
    inputs = [
        float(np.abs(a.input_features.astype("f4") - b.input_features.astype("f4")).max())
        for a, b in same
        if a.input_features is not None and b.input_features is not None
    ]
    report = {
        "prompts": len(requests), "equal_ids": len(same), "ended_early": sum(g.end_index is not None for g in found),
        "tokens": sum(len(g.token_ids) for g in found), "max_abs": max(generated, default=None),
        "median_max_abs": float(np.median(generated)) if generated else None,
        "input_max_abs": max(inputs, default=None),
        "feature_std": float(np.concatenate([g.features.astype("f4") for g in found]).std()),
        "seconds": {name: round(value, 1) for name, value in seconds.items()}, "versions": versions,
    }  # fmt: skip
    print(json.dumps(report))
    within = max([*generated, *inputs], default=np.inf) <= args.tolerance or args.dtype != "float32"
    return 0 if len(same) == len(pairs) and within else 1


if __name__ == "__main__":
    sys.exit(main())
