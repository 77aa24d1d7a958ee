"""What extraction costs above vLLM's own generation: by direct accounting, and against plain `LLM.generate`.

    python tests/bench/bench_extraction.py deploy/mini/weights/mini-qwen2-vl [--pairs 7] [--requests 256] [--tokens 48]
    python tests/bench/bench_extraction.py random-20m

First as the stage runs it, the engine in its child: thread seconds of the tap, of moving rows between processes and of
writing shards, over the processor time of both processes; "bare" is what the system takes to write the same bytes to
one file and flush it, measured after each shard and in no total. Then in one process, in interleaved pairs: the engine
with the tap and a writer against plain `LLM.generate` of the same prompts, with the same seed for each request, and
once more without seeds; ratios are medians with a bootstrap 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from medians import median

from thinkdiff.storage.feature_store import FeatureRow, FeatureWriter
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.qwen_chat import Generation, Request, Sampling
from thinkdiff.tasks.qwen_engine import EngineOptions, QwenEngine, prepare_torchvision


def row_of(made: Generation) -> FeatureRow:
    return FeatureRow(made.key, "prompt", tuple(made.token_ids), -1, made.text, made.features)


def writer_of(folder: str, batches: int, args: argparse.Namespace, width: int) -> FeatureWriter:
    writer = FeatureWriter(
        Folder(folder), rows=batches * args.requests, tokens=args.tokens, width=width, dtype=args.dtype,
        shard_size=args.requests,
    )  # fmt: skip
    writer.prepare()
    return writer


def requests_of(args: argparse.Namespace, batch: int) -> list[Request]:
    from tiny_models import random_image

    numbers = range(batch * args.requests, (batch + 1) * args.requests)
    return [Request(f"{i:08}", (random_image(i), "Describe the image."), seed=i) for i in numbers]


def accounted(model: str, sampling: Sampling, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of our own code over all processor time, as the stage runs."""
    batches = [requests_of(args, batch) for batch in range(args.pairs + 1)]
    with (
        tempfile.TemporaryDirectory() as folder,
        QwenEngine(
            model,
            dtype=args.dtype,
            sampling=sampling,
            max_model_len=512,
            threads=1,
            device=args.device,
            log=lambda _: None,
        ) as engine,
    ):
        writer, writing, bare = writer_of(folder, args.pairs, args, engine.hidden_size), 0.0, 0.0
        engine.generate(batches[0])
        before, parent = engine.statistics(), time.process_time()
        for shard, answers in enumerate(engine.stream(batches[1:])):
            began = time.thread_time()
            part = writer.commit(shard, [row_of(made) for made in answers])
            writing += time.thread_time() - began
            bare += write_bare(f"{folder}/bare", bytes(sum(entry.size for entry in part.files)))
        after, parent = engine.statistics(), time.process_time() - parent
    used = {name: after[name] - before[name] for name in after if name.endswith("_seconds")}
    total = used["cpu_seconds"] + parent - bare
    shares = {
        "tap": used["tap_seconds"] / total,
        "moving": (used["moving_seconds"] + used["received_seconds"]) / total,
        "writing": writing / total,
    }
    return {"cpu_seconds": total, **shares, "all": sum(shares.values()), "bare": bare / total}


def write_bare(path: str, data: bytes) -> float:
    """Thread seconds of the file system for a new file of these bytes."""
    with open(path, "wb", buffering=0) as file:
        began = time.thread_time()
        file.write(data)
        os.fsync(file.fileno())
        seconds = time.thread_time() - began
    os.unlink(path)
    return seconds


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def pairs(model: str, sampling: Sampling, args: argparse.Namespace) -> dict[str, str]:
    """Ratios to plain generation in this process."""
    from thinkdiff.tasks.vllm_engine import VllmEngine, llm_arguments

    whole = {"max_num_batched_tokens": 1 << 16}  # prompts in pieces with seeds stop plain vLLM 0.32 on a CPU
    options = EngineOptions(
        model, None, args.dtype, sampling, False, frozenset({"generated"}), 1, args.device, 256, 512, None, False,
        False, "template", whole,
    )  # fmt: skip
    ours = VllmEngine(options)
    from vllm import LLM

    plain = LLM(**llm_arguments(options, ours.config, True, {}))

    def extract(batch: int, writer: FeatureWriter) -> None:
        writer.commit(batch, [row_of(made) for made in ours.generate(requests_of(args, batch), sampling)])

    def generate(batch: int, seeded: bool) -> None:
        requests = requests_of(args, batch)
        parameters = [ours.parameters(request, sampling) for request in requests]
        for one in parameters:
            one.extra_args = None
            one.seed = one.seed if seeded else None
        plain.generate([ours.prompt(request) for request in requests], parameters, use_tqdm=False)

    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        writer = writer_of(folder, args.pairs + 1, args, ours.hidden_size)
        for batch in range(args.pairs + 1):
            mine = cost(lambda batch=batch: extract(batch, writer))
            for name, seeded in (("seeded", True), ("unseeded", False)):
                theirs = cost(lambda batch=batch, seeded=seeded: generate(batch, seeded))
                if batch:  # the first one warms up
                    found.setdefault(f"wall, {name}", []).append(mine[0] / theirs[0])
                    found.setdefault(f"cpu, {name}", []).append(mine[1] / theirs[1])
    return {name: median(ratios, 3) for name, ratios in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or random-20m")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--requests", type=int, default=256, help="of a batch, which is a shard")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    args = parser.parse_args()
    sampling = Sampling(0.6, 0.9, args.tokens, "run_on")
    prepare_torchvision()
    with tempfile.TemporaryDirectory() as folder:
        model: Any = args.model
        if model == "random-20m":
            from tiny_models import make_tiny_qwen_vl

            model = str(make_tiny_qwen_vl(Path(folder), hidden=512, layers=16))
        print(
            json.dumps({name: round(value, 4) for name, value in accounted(model, sampling, args).items()}), flush=True
        )
        print(json.dumps(pairs(model, sampling, args) | {"load": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
