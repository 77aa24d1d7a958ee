"""The training loop against its limits: padded and packed, compiled, beside the rate of a product of matrices.

    python tests/bench/bench_training.py                       a small T5 on a CPU
    python tests/bench/bench_training.py --paper               FLAN-T5-XXL's decoder on a GPU: 25,000 steps foretold

Weights and features are random, as neither the time nor the memory of a step depends on them; lengths are those of the
paper: 64 tokens, split at k uniform in 1 ... 63, one T5 token for each token of the VLM (their vocabularies are alike
in size). All arrangements are timed in turn, step by step: a ratio is the median of pairs with a bootstrap 95 %
interval. `padded, Hugging Face` is `T5ForConditionalGeneration` under autocast, as the authors' code calls it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from medians import median

from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.storage.checkpoints import CheckpointWriter
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.aligner import Aligner, AlignerConfig
from thinkdiff.tasks.aligner_training import Job, Ready, adamw, matrix_rate, moved, step_event, summed, train
from thinkdiff.tasks.feature_batches import Batch, FeatureBatches, Share
from thinkdiff.tasks.qwen_engine import prepare_torchvision
from thinkdiff.tasks.ranks import Ranks
from thinkdiff.tasks.t5_decoder import TYPES, T5Decoder

PAPER_STEPS, PAPER_GPU_HOURS, TOKENS = 25_000, 20, 64


class MemorySource:
    """Random features of 64 tokens for each row."""

    def __init__(self, rows: int, width: int) -> None:
        rng = np.random.default_rng(0)
        self.width, ids = width, rng.integers(3, 30_000, (rows, TOKENS)).astype(np.int32)
        lengths = np.full(rows, TOKENS, np.int32)
        self.table = pa.table({
            "key": [f"{row:032x}" for row in range(rows)], "token_ids": list(ids), "length": lengths,
            "input_length": lengths,
        })  # fmt: skip
        self.block = rng.normal(size=(256, TOKENS, width)).astype(np.float32).view(np.uint32)
        self.block = (self.block >> 16).astype(np.uint16).view(np.int16)

    def states(self, rows: Any, kind: Any) -> Any:
        """Of the rows, as bfloat16."""
        import ml_dtypes

        return self.block[np.asarray(rows) % len(self.block)].view(ml_dtypes.bfloat16)


class Words:
    """A tokenizer whose text is the ids themselves."""

    def batch_decode(self, rows: Any, skip_special_tokens: bool) -> list[str]:
        """Ids as text."""
        return [" ".join(map(str, row)) for row in rows]


def t5_tokens(texts: Any, most: int) -> list[list[int]]:
    """Text as ids, and `</s>`."""
    return [[*(int(word) for word in text.split()), 1] for text in texts]


def random_t5(options: argparse.Namespace) -> T5Decoder:
    """The decoder of FLAN-T5-XXL, or a small one, with random weights."""
    prepare_torchvision()
    from transformers import T5Config, T5ForConditionalGeneration

    about: dict[str, Any] = dict(
        d_model=options.width, d_kv=64, num_heads=options.width // 64, d_ff=options.width * 5 // 2, num_layers=0,
        num_decoder_layers=options.layers, vocab_size=32_128, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    config = T5Config(**about)
    torch.set_default_dtype(TYPES[options.precision])
    with torch.device(options.device):
        model = T5ForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    return T5Decoder.holding(model, None, options.device)


def padded(batch: Batch) -> Batch:
    """The same step with every sample as long as the longest, which costs what padding costs."""
    share = batch.shares[0]
    longest, width = max(share.prompts), max(map(len, share.targets))
    ends = np.cumsum(share.prompts)
    rows = np.concatenate(
        [np.minimum(np.arange(end - n, end - n + longest), end - 1) for end, n in zip(ends, share.prompts, strict=True)]
    )
    targets = [[*target, *[1] * (width - len(target))] for target in share.targets]
    return Batch(batch.rows, batch.prompts, batch.tokens, batch.weights_B,
                 [Share(share.x_PQ[rows], [longest] * len(targets), [], targets, share.members)])  # fmt: skip


def hugging_face(job: Job, share: Share, x_PQ: torch.Tensor) -> torch.Tensor:
    """Loss and gradients of a padded share by Hugging Face's model, as the authors' code computes them."""
    from transformers.modeling_outputs import BaseModelOutput

    device, count = x_PQ.device, len(share.targets)
    longest, width = max(share.prompts), max(map(len, share.targets))
    labels = torch.full((count, width), -100)
    mixed, mask = job.spec.precision == "bfloat16", torch.zeros(count, longest, dtype=torch.long)
    x_PQ = x_PQ if mixed else x_PQ.float()
    x_BLQ = x_PQ.new_zeros(count, longest, x_PQ.shape[1])
    for at, (rows, target) in enumerate(zip(x_PQ.split(share.prompts), share.targets, strict=True)):
        x_BLQ[at, : len(rows)], mask[at, : len(rows)] = rows, 1
        labels[at, : len(target)] = torch.tensor(target)
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        states = job.aligner(x_BLQ)
        loss = job.t5.model(encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask.to(device),
                            labels=labels.to(device)).loss  # fmt: skip
    loss.backward()
    return loss.detach()


def step_by(job: Job, compute: Callable[[Batch, list[Ready]], torch.Tensor]) -> Callable[[Batch], float]:
    """Seconds of a whole step: features to the device, forward, backward, optimizer."""
    optimizer, device = adamw(job.spec, job.aligner), str(next(job.aligner.parameters()).device)

    def one(batch: Batch) -> float:
        began = time.perf_counter()
        batch, shares = next(moved(job, (one for one in [batch])))
        optimizer.zero_grad(set_to_none=True)
        told = compute(batch, shares)
        norm = torch.nn.utils.clip_grad_norm_(list(job.aligner.parameters()), 1.0)
        optimizer.step()
        float(told.sum() + norm)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return one


def main() -> int:
    """Prints a line for each arrangement, ratios, and what 25,000 steps take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--features", type=int, default=192)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.paper:
        options.width, options.layers, options.features, options.batch = 4096, 24, 3584, 96
        options.precision = "bfloat16"
    torch.manual_seed(0)
    t5 = random_t5(options)
    spec = AlignerSpec(t5=Model(name="random"), batch=options.batch, precision=options.precision, validation_rows=0)
    data = FeatureBatches(spec, MemorySource(4096, options.features), Words(), t5_tokens)
    aligner = Aligner(AlignerConfig(options.features, options.width, options.width)).to(options.device)
    with tempfile.TemporaryDirectory() as home:
        job = Job(spec, aligner, t5, data, CheckpointWriter(Folder.at(home)), Execution(stop_loss=None))
        compare(job, options)
    return 0


def compare(job: Job, options: argparse.Namespace) -> None:
    """The arrangements in turn."""
    rate = matrix_rate(options.device, TYPES[options.precision])
    print(f"a product of matrices: {rate / 1e12:.1f} Tflop/s ({options.precision}, {options.device})")
    eager, fused = job.t5.block, None
    if not options.no_compile:
        job.t5.compile()
        fused = job.t5.block

    def ours(block: Any, arrange: Callable[[Batch], Batch] = lambda batch: batch) -> Any:
        def compute(batch: Batch, shares: Any) -> torch.Tensor:
            job.t5.block = block
            return summed(job, len(batch.rows), shares, backward=True)

        run = step_by(job, compute)
        return lambda batch: run(arrange(batch))

    ways = {
        "padded, Hugging Face": step_by(job, lambda batch, shares: hugging_face(job, shares[0].share, shares[0].x_PQ)),
        "padded": ours(eager, padded),
        "packed": ours(eager),
    }
    if fused is not None:
        ways |= {"padded, compiled": ours(fused, padded), "packed, compiled": ours(fused)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory = dict.fromkeys(ways, 0.0)
    useful = []
    for number, batch in enumerate(job.data.training(0, options.steps + 3)):
        event = step_event(job, batch, 0.0, 0.0, 0.0, 0)
        for name, run in ways.items():
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            spent = run(batch)
            if number >= 3:
                seconds[name].append(spent)
                if options.device == "cuda":
                    memory[name] = max(memory[name], torch.cuda.max_memory_allocated() / 2**30)
        if number >= 3:
            useful.append((event["flops"], event["tokens"], event["rows"], event["places"]))
    flops, tokens, rows, places = np.mean(useful, axis=0)
    print(
        f"a step: {tokens:.0f} target tokens, {rows:.0f} prompt rows, {places:.0f} places if padded, "
        f"{flops / 1e12:.3g} Tflop"
    )
    for name, spent in seconds.items():
        one = float(np.median(spent))
        print(
            f"{name:22} {one * 1e3:8.1f} ms a step, {tokens / one:9.0f} target tokens/s,"
            f" {job.spec.batch / one:7.1f} samples/s,"
            f" {flops / one / rate:6.1%} of the matrix rate on useful tokens, peak {memory[name]:.1f} GiB,"
            f" {PAPER_STEPS:,} steps {one * PAPER_STEPS / 3600:.2f} h"
        )
    for other in (name for name in ways if name != "packed"):
        pairs = [a / b for a, b in zip(seconds[other], seconds["packed"], strict=True)]
        print(f"seconds of {other} over those of packed: {median(pairs)}")
    whole_loop(job, options)
    if options.profile:
        profile(job, ways["packed, compiled" if fused else "packed"])
    print(f"the paper: {PAPER_GPU_HOURS} A100-hours for {PAPER_STEPS:,} steps")


def whole_loop(job: Job, options: argparse.Namespace) -> None:
    """`train` itself, which prefetches, checks each loss and leaves a checkpoint; packed, compiled if it may be."""
    if not options.no_compile:
        job.t5.compile()
    spec, events = job.spec.but(steps=2 * options.steps + 3), list[dict[str, Any]]()
    data = FeatureBatches(spec, job.data.source, Words(), t5_tokens)
    began = time.perf_counter()
    train(
        Job(spec, job.aligner, job.t5, data, job.checkpoints, job.run),
        Ranks(options.device),
        events.append,
        lambda: False,
    )
    steps = [event for event in events if event["event"] == "step"][3:]
    seconds, waited = (sum(event[name] for event in steps) for name in ("seconds", "waited"))
    print(
        f"the whole loop: {seconds / len(steps) * 1e3:.1f} ms a step, waiting for data {waited / seconds:.2%}, "
        f"{time.perf_counter() - began:.1f} s in all with {len(steps) + 3} steps and a checkpoint"
    )


def profile(job: Job, run: Callable[[Batch], float]) -> None:
    """Which kernels a step spends its time in."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    batch = next(job.data.training(0, 1))
    with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run(batch)
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=70))


if __name__ == "__main__":
    sys.exit(main())
