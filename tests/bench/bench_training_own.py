"""Our own share of the training loop: all processor time of the process that is not arithmetic.

    python tests/bench/bench_training_own.py --mini --steps 300 --warm 20    the miniature's recipe
    python tests/bench/bench_training_own.py                                 a larger T5, features of the paper's width

Arithmetic is what is inside the aligner, the decoder, its head, the cross entropy, backward, clipping and the
optimizer, by the clock of the thread. Building indices, events, curves, checkpoints and the data threads are ours. Then
the whole loop against a bare one in PyTorch, whose batches and indices are all made before. Rows are those of
`bench_training_data.py`.
"""

from __future__ import annotations

import argparse
import functools
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from bench_training_data import Bench, Block, in_turn, prepared, settings, told, trained

from thinkdiff.storage.feature_store import FeatureStore
from thinkdiff.tasks import aligner_training
from thinkdiff.tasks.aligner import Aligner
from thinkdiff.tasks.aligner_training import adamw, tensor
from thinkdiff.tasks.feature_batches import FeatureBatches, Held, source
from thinkdiff.tasks.t5_decoder import Packing, T5Decoder
from thinkdiff.tasks.training_watch import TrainingWatch


class Ledger:
    """Processor seconds of each thread by piece. What the pieces call is theirs, unless it is a piece of its own."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._own = threading.local()

    def _to(self, change: Callable[[list[str]], Any]) -> None:
        """Books the time since the last change, then changes what is on top."""
        now = time.thread_time()
        stack, since = getattr(self._own, "state", ([], now))
        if stack:
            self.spent[stack[-1]] += now - since
        change(stack)
        self._own.state = stack, now

    @contextmanager
    def watching(self, owner: Any, name: str, piece: str) -> Iterator[None]:
        """Books what is inside `owner`'s function."""
        plain, held = getattr(owner, name), vars(owner).get(name)

        @functools.wraps(plain)
        def booked(*args: Any, **named: Any) -> Any:
            self._to(lambda stack: stack.append(piece))
            try:
                return plain(*args, **named)
            finally:
                self._to(lambda stack: stack.pop())

        setattr(owner, name, booked)
        try:
            yield
        finally:
            setattr(owner, name, held) if held is not None else delattr(owner, name)


def own(bench: Bench) -> None:
    """Our share of the processor time of the whole loop, and its time over that of a bare one."""
    account(bench)
    found = in_turn(bench.options.pairs, {
        "whole loop": lambda seed: trained(bench, bench.job(source(bench.store, "generated"), seed)),
        "bare loop": functools.partial(bare, bench),
    })  # fmt: skip
    told(found, "bare loop", "whole loop")


def account(bench: Bench) -> None:
    """A block of the whole loop with every piece booked."""
    job, ledger, marks = bench.job(source(bench.store, "generated"), 0), Ledger(), list[tuple[float, float]]()
    head, booked = bench.t5.model.lm_head, dict[str, float]()

    def heard(step: int) -> None:
        if step == bench.options.warm:
            ledger.spent.clear()
        if step in (bench.options.warm, job.spec.steps):
            marks.append((time.process_time(), time.thread_time()))
            booked.update(ledger.spent)

    arithmetic = (
        (Aligner, "forward"), (T5Decoder, "_decoded"), (head, "forward"), (F, "cross_entropy"),
        (torch.Tensor, "backward"), (torch.nn.utils, "clip_grad_norm_"), (torch.optim.AdamW, "step"),
        (torch.optim.Optimizer, "zero_grad"),
    )  # fmt: skip
    ours = {
        "indices": (Packing, "of"), "events and curves": (TrainingWatch, "hear"),
        "checkpoints": (aligner_training, "save"), "drawing, tokenising": (FeatureBatches, "draw"),
        "reading": (FeatureStore, "states"), "reading, held": (Held, "states"), "packing": (FeatureBatches, "_share"),
        "batches on the device": (aligner_training, "ready"),
    }  # fmt: skip
    adamw(job.spec, job.aligner)  # PyTorch puts its own hooks around an optimizer's step when the first one is made
    with ExitStack() as stack:
        for owner, name in arithmetic:
            stack.enter_context(ledger.watching(owner, name, "arithmetic"))
        for piece, (owner, name) in ours.items():
            stack.enter_context(ledger.watching(owner, name, piece))
        block = trained(bench, job, heard)
    (process, thread), (process_end, thread_end) = marks
    total, main_thread, steps = process_end - process, thread_end - thread, bench.options.steps
    spent_on = {name: booked.get(name, 0.0) for name in ours}
    on_main = ("events and curves", "checkpoints")
    spent_on["else in the loop"] = main_thread - booked["arithmetic"] - sum(spent_on[name] for name in on_main)
    spent_on["else in other threads"] = total - booked["arithmetic"] - sum(spent_on.values())
    print(f"a step: {total / steps * 1e3:.2f} ms of processor, {block.wall / steps * 1e3:.2f} ms of clock")
    print(f"arithmetic {booked['arithmetic'] / total:.2%}")
    for name, spent in spent_on.items():
        print(f"  {name:24} {spent / steps * 1e3:8.3f} ms {spent / total:7.2%}")
    print(f"ours on the thread that computes: {1 - booked['arithmetic'] / main_thread:.2%} of its time")
    print(f"ours with the data threads: {1 - booked['arithmetic'] / total:.2%} of all")
    print(f"waiting for data: {block.waited / block.wall:.2%} of the clock")


def bare(bench: Bench, seed: int) -> Block:
    """PyTorch alone on batches that are all made before."""
    job, steps, warm = (
        bench.job(source(bench.store, "generated"), seed),
        bench.options.warm + bench.options.steps,
        bench.options.warm,
    )
    start, ready = job.t5.model.config.decoder_start_token_id, list[Any]()
    for batch in job.data.training(0, steps):
        (share,) = batch.shares
        targets = Packing.of([len(target) for target in share.targets], "cpu")
        inputs = torch.tensor([token for target in share.targets for token in (start, *target[:-1])])
        labels = torch.tensor([token for target in share.targets for token in target])
        ready.append((tensor(share.x_PQ), Packing.of(share.prompts, "cpu"), inputs, targets, labels))
    optimizer, parameters, wall, cpu = adamw(job.spec, job.aligner), list(job.aligner.parameters()), 0.0, 0.0
    mixed = job.spec.precision == "bfloat16"
    for number, (x_PQ, prompts, inputs, targets, labels) in enumerate(ready):
        if number == warm:
            wall, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            x_PD = job.aligner(x_PQ if mixed else x_PQ.float())
        y_ND = job.t5._decoded(inputs, targets, x_PD, prompts)
        logits_NV = job.t5.model.lm_head(y_ND * job.t5._scale)
        loss = F.cross_entropy(logits_NV.float(), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, job.spec.clip_grad_norm or float("inf"))
        optimizer.step()
        loss.item()
    samples = job.spec.batch * bench.options.steps
    return Block(samples, time.perf_counter() - wall, time.process_time() - cpu, 0.0)


def main() -> int:
    """Prints the accounts and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    with prepared(settings(parser)) as bench:
        own(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
