"""What an owner of a GPU runs: parity, throughput and the store at the paper's width. Not run on a GPU so far.

    python tests/bench/bench_gpu.py vllm Qwen/Qwen2-VL-2B-Instruct
    python tests/bench/bench_gpu.py store

The first needs the extra `gpu` and prints the lines of `bench_feature_parity.py` (bfloat16: ids may part where logits
nearly tie) and of `bench_extraction.py`. The second needs no vLLM: the transformers engine on a random Qwen2-VL as wide
and deep as the 7B. It prints, for a row of 64 x D features, milliseconds of generating it, of bringing it from the
device, and of encoding, hashing and storing it; the model has narrow MLPs and so generates faster than the real one,
which makes the shares of the others upper bounds. `--device cpu --hidden 256 --layers 2` tries it without a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from thinkdiff.storage.feature_store import FeatureRow, FeatureWriter
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.qwen_chat import Request, Sampling
from thinkdiff.tasks.qwen_engine import prepare_torchvision
from thinkdiff.tasks.transformers_engine import TransformersEngine

TOKENS = 64


def vllm(model: str, device: str) -> int:
    """Parity, then throughput, each in a process of its own; the worse exit code."""
    here, codes = Path(__file__).parent, []
    for script, more in (
        ("bench_feature_parity.py", ["--prompts", "200", "--dtype", "bfloat16"]),
        ("bench_extraction.py", ["--dtype", "bfloat16", "--tokens", str(TOKENS)]),
    ):
        command = [sys.executable, str(here / script), model, "--device", device, *more]
        codes.append(subprocess.run(command).returncode)
    return max(codes)


def store(options: argparse.Namespace) -> int:
    """Milliseconds a row of generating, bringing and storing."""
    prepare_torchvision()
    import torch
    from tiny_models import make_tiny_qwen_vl, random_image

    with tempfile.TemporaryDirectory() as home:
        model = make_tiny_qwen_vl(Path(home, "model"), hidden=options.hidden, layers=options.layers)
        requests = [Request(f"{i:08}", (random_image(i), "Describe the image."), seed=i) for i in range(options.rows)]
        sampling = Sampling(0, 1, TOKENS, "forced")
        with TransformersEngine(model, dtype="bfloat16", sampling=sampling, device=options.device) as engine:
            engine.generate(requests[:2])
            began = time.perf_counter()
            made = engine.generate(requests)
            generating = time.perf_counter() - began
        states = torch.randn(TOKENS, options.hidden, device=options.device).to(torch.bfloat16)
        states.cpu()
        began = time.perf_counter()
        for _ in requests:
            states.cpu()
        bringing = time.perf_counter() - began
        writer = FeatureWriter(
            Folder(str(Path(home, "store"))), rows=len(requests), tokens=TOKENS, width=options.hidden,
            shard_size=len(requests),
        )  # fmt: skip
        writer.prepare()
        rows = [FeatureRow(g.key, "prompt", tuple(g.token_ids), -1, g.text, g.features) for g in made]
        began = time.perf_counter()
        writer.commit(0, rows)
        storing = time.perf_counter() - began
        spent = {"generating": generating, "bringing": bringing, "storing": storing}
        found = {name: round(seconds / len(requests) * 1e3, 4) for name, seconds in spent.items()}
        name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
        print(json.dumps({"device": name, "row_kib": TOKENS * options.hidden * 2 // 1024, "ms_a_row": found}))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["vllm", "store"])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=3584)
    parser.add_argument("--layers", type=int, default=28)
    options = parser.parse_args()
    if options.what == "store":
        return store(options)
    if options.model is None:
        parser.error("vllm needs a model, for instance Qwen/Qwen2-VL-2B-Instruct")
    return vllm(options.model, options.device)


if __name__ == "__main__":
    sys.exit(main())
