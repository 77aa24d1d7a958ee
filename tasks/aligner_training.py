"""The training of an aligner: one loop, the same for one process and for many (paper, section 3; authors' code).

A prefix of a sample's token features goes through the aligner to a frozen T5 decoder; the loss is that of the text that
follows. Data order, splits and start depend on (seed, step) alone, so a run that was killed ends in the same bytes as
one left in peace, and on any number of processes a step sees the same samples. Shapes as in `t5_decoder`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.errors import InputError, SpecError, StoreError, TrainingError
from thinkdiff.storage.checkpoints import CheckpointWriter, Tensors
from thinkdiff.storage.feature_store import FeatureStore
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.ahead import ahead
from thinkdiff.tasks.aligner import Aligner, AlignerConfig
from thinkdiff.tasks.feature_batches import Batch, FeatureBatches, Share, source
from thinkdiff.tasks.models import loading, model_path
from thinkdiff.tasks.ranks import Ranks
from thinkdiff.tasks.t5_decoder import TYPES, Packing, T5Decoder, Targets, encoder_norm

NAMED_KEYS = 3  # samples that an error names
READ_TOKENS = 48
Event = dict[str, Any]


@dataclass
class History:
    """What a training has seen; `validation` pairs a step with a loss. JSON, and part of each checkpoint."""

    training: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    readings: list[Event] = field(default_factory=list)

    def best(self) -> int | None:
        """The first step of the lowest validation loss."""
        return min(self.validation, key=lambda pair: pair[1])[0] if self.validation else None


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and where it is kept."""

    spec: AlignerSpec
    aligner: Aligner
    t5: T5Decoder
    data: FeatureBatches
    checkpoints: CheckpointWriter
    run: Execution


def prepared(spec: AlignerSpec, run: Execution, features: FeatureStore, folder: Folder, ranks: Ranks) -> Job:
    """Loads what a training needs. Raises ModelError or SpecError, or InputError when there are too few rows."""
    torch.manual_seed(spec.seed)
    t5 = T5Decoder(model_path(spec.t5, run), ranks.device, TYPES[spec.precision], encoder=spec.masking == "words")
    if run.compile:
        t5.compile()
    tokenizer, kind = None, "clip" if features.artifact.spec["prompts"]["kind"] == "pictures" else "lvlm"
    if kind == "lvlm":
        vlm = model_path(Model(**features.artifact.spec["vlm"]), run)
        with loading(vlm):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(vlm, trust_remote_code=False)
    held = source(features, spec.features)
    data = FeatureBatches(spec, held, tokenizer, t5.tokens, ranks.rank, ranks.world, run.micro_batch)
    if spec.steps and not len(data.training_rows):
        raise InputError(
            f"train_aligner: found {len(data.validation_rows)} trainable rows, expected more than the "
            f"{spec.validation_rows} held out for validation. Lower validation_rows or extract more."
        )
    norm_D = encoder_norm(model_path(spec.norm_from, run)) if spec.norm_from else t5.norm_D.cpu()
    if len(norm_D) != t5.width:
        raise SpecError(
            f"norm_from: found a norm of width {len(norm_D)}, expected the {t5.width} of {spec.t5.name}. Name a T5 of "
            "that width, or leave norm_from out."
        )
    config = AlignerConfig(features.shape[2], spec.hidden or t5.width, t5.width, spec.norm, kind)
    wide = torch.float64 if spec.precision == "float64" else torch.float32
    aligner = Aligner(config, norm_D).to(ranks.device, wide)
    return Job(spec, aligner, t5, data, CheckpointWriter(folder), run)


@dataclass(frozen=True)
class Ready:
    """A share on the device. members_N and weights_N: of each target token its place in the step and what it counts."""

    share: Share
    x_PQ: torch.Tensor
    prompts: Packing
    targets: Targets
    members_N: torch.Tensor
    weights_N: torch.Tensor


def train(job: Job, ranks: Ranks, report: Callable[[Event], None], stopping: Callable[[], bool]) -> History:
    """Goes on from the newest checkpoint to `spec.steps`, or to the end of a step in which `stopping`.

    Leaves a checkpoint at the end in any case but an error, and reports events on the first rank. Raises TrainingError
    when the loss explodes, before the weights or a checkpoint have seen it.
    """
    spec, aligner = job.spec, job.aligner
    every = job.run.checkpoint_every or max(min(spec.steps // 10, 1000), 1)
    optimizer = adamw(spec, aligner)
    begin, history = restore(job, ranks, optimizer)
    parameters, report = list(aligner.parameters()), report if ranks.first else ignore
    report(start_event(job, ranks, begin))
    done, clock = begin, time.perf_counter()
    with closing(ahead(moved(job, ahead(job.data.training(begin, spec.steps))))) as batches:
        for batch, shares in batches:
            waited = time.perf_counter() - clock
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(spec, done)
            optimizer.zero_grad(set_to_none=True)
            sums_B = summed(job, len(batch.rows), shares, backward=True)
            stop = torch.full_like(sums_B[:1], float(stopping()))
            ranks.add([*(gradient(p) for p in parameters), sums_B, stop])
            norm = torch.nn.utils.clip_grad_norm_(parameters, spec.clip_grad_norm or math.inf)
            # the one moment of a step in which a GPU is waited for
            *sums, grad_norm, stopped = torch.cat([sums_B, norm.view(1).to(sums_B.dtype), stop]).tolist()
            loss = mean_loss(job, batch, np.array(sums), grad_norm, done + 1)
            optimizer.step()
            done += 1
            history.training.append(loss)
            history.grad_norm.append(grad_norm)
            seconds = time.perf_counter() - clock
            event = step_event(job, batch, loss, grad_norm, optimizer.param_groups[0]["lr"], done)
            report({**event, "seconds": seconds, "waited": waited})
            clock, last = time.perf_counter(), done == spec.steps or stopped
            if done % spec.validation_every == 0 or done == spec.steps:
                validate(job, ranks, done, history, report)
            if done % every == 0 or last or history.best() == done:
                save(job, ranks, done, optimizer, history)
            if stopped:
                report({"event": "stopped", "step": done})
            if last:
                break
    if not spec.steps and ranks.first and job.checkpoints.latest() is None:
        save(job, ranks, 0, optimizer, history)
    return history


def learning_rate(spec: AlignerSpec, step: int) -> float:
    """Linear warm-up, then cosine or line to `min_lr` over `schedule_steps`, counted from step 0 as the authors do."""
    if step < spec.warmup_steps:
        return spec.warmup_lr + (spec.lr - spec.warmup_lr) * step / spec.warmup_steps
    share = min(step / spec.schedule_steps, 1.0)
    fall = 0.5 * (1 + math.cos(math.pi * share)) if spec.schedule == "cosine" else 1 - share
    return spec.min_lr + (spec.lr - spec.min_lr) * fall


def adamw(spec: AlignerSpec, aligner: Aligner) -> torch.optim.AdamW:
    """Decay on matrices alone: not on biases, and not on the norm."""
    parameters = list(aligner.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), fused=fused)


def prompt(job: Job, ready: Ready) -> torch.Tensor:
    """What the decoder reads of a share: its rows through the aligner, and behind them words through the encoder."""
    share, x_PQ = ready.share, ready.x_PQ
    mixed, first = job.spec.precision == "bfloat16", next(job.aligner.parameters())
    with torch.autocast(x_PQ.device.type, torch.bfloat16, enabled=mixed):
        x_PD = job.aligner(x_PQ if mixed else x_PQ.to(first.dtype))
    if not share.words:
        return x_PD
    words = job.t5.encode(share.words).to(x_PD.dtype).split([len(words) for words in share.words])
    pairs = zip(x_PD.split(share.prompts), words, strict=True)
    return torch.cat([rows for pair in pairs for rows in pair])


def summed(job: Job, samples: int, shares: Sequence[Ready], backward: bool) -> torch.Tensor:
    """The summed loss of each sample of this rank, (B,), zero for those of the others; gradients of the step's mean.

    One share after the other, so that the memory is that of the largest.
    """
    first = next(job.aligner.parameters())
    sums_B = first.new_zeros(samples)
    for one in shares:
        losses_N = job.t5.losses(prompt(job, one), one.prompts, one.targets)
        sums_B.index_add_(0, one.members_N, losses_N.detach().to(sums_B.dtype))
        if backward:
            (losses_N * one.weights_N).sum().backward()
    return sums_B


def gradient(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter's gradient after `backward`."""
    assert parameter.grad is not None
    return parameter.grad


def mean_loss(job: Job, batch: Batch, sums_B: npt.NDArray[Any], grad_norm: float, step: int) -> float:
    """The loss of a step. Raises TrainingError, with the samples that are to blame, when it is none to learn from."""
    loss, limit = float(sums_B @ batch.weights_B), job.run.stop_loss or math.inf
    if math.isfinite(loss) and math.isfinite(grad_norm) and loss <= limit:
        return loss
    means = np.where(np.isfinite(sums_B), sums_B / batch.tokens, math.inf)
    worst = job.data.keys(batch.rows[np.argsort(-means, kind="stable")[:NAMED_KEYS]].tolist())
    found = f"the loss {loss:.6g}" if not loss <= limit else f"a gradient of norm {grad_norm}"
    raise TrainingError(
        f"train_aligner: found {found} at step {step} (of the samples {', '.join(worst)}), "
        f"expected a finite one of at most {limit:g} nats a token. The training has diverged; the checkpoints before "
        "it stand. Look at those samples, or lower the learning rate."
    )


def validate(job: Job, ranks: Ranks, step: int, history: History, report: Callable[[Event], None]) -> None:
    """Token mean over the held-out rows, if there are some; and what the decoder reads in a few of them."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch, shares in moved(job, job.data.validation()):
            sums_B = summed(job, len(batch.rows), shares, backward=False)
            ranks.add([sums_B])
            must_be_finite(job, batch, sums_B, step)
            total, count = total + sums_B.double().sum().item(), count + int(batch.tokens.sum())
        if not count:
            return
        history.validation.append((step, total / count))
        report({"event": "validation", "step": step, "loss": total / count})
        if ranks.first and (found := job.data.readings()) is not None:
            texts, share = found
            one = ready(job, share, np.zeros(len(share.members)), tensor(share.x_PQ).to(ranks.device))
            said = job.t5.read(prompt(job, one), one.prompts, READ_TOKENS)
            rows = [{"expected": text, "read": one} for text, one in zip(texts, said, strict=True)]
            history.readings.append({"step": step, "rows": rows})
            report({"event": "readings", **history.readings[-1]})


def must_be_finite(job: Job, batch: Batch, sums_B: torch.Tensor, step: int) -> None:
    """Raises TrainingError for held-out samples that give no loss."""
    lost = ~torch.isfinite(sums_B).cpu().numpy()
    if lost.any():
        named = ", ".join(job.data.keys(batch.rows[lost][:NAMED_KEYS].tolist()))
        raise TrainingError(
            f"train_aligner: found no finite validation loss at step {step} (of the held-out samples {named}), "
            "expected one. The checkpoints before it stand. Look at those samples, or lower the learning rate."
        )


def moved(job: Job, batches: Generator[Batch, Any, Any]) -> Generator[tuple[Batch, list[Ready]], Any, None]:
    """Batches on the device. A GPU copies the features beside its work."""
    device = next(job.aligner.parameters()).device
    gpu = device.type == "cuda"
    stream, main = (torch.cuda.Stream(device), torch.cuda.current_stream(device)) if gpu else (None, None)
    with closing(batches):
        for batch in batches:
            shares = []
            for share in batch.shares:
                x_PQ = tensor(share.x_PQ)
                if stream and main:
                    with torch.cuda.stream(stream):
                        x_PQ = x_PQ.pin_memory().to(device, non_blocking=True)
                    x_PQ.record_stream(main)
                shares.append(ready(job, share, batch.weights_B[share.members], x_PQ))
            if stream:
                stream.synchronize()
            yield batch, shares


def ready(job: Job, share: Share, weights: npt.NDArray[np.float64], x_PQ: torch.Tensor) -> Ready:
    """A share whose rows are on the device. weights: of its members' tokens."""
    device, wide = x_PQ.device, torch.float64 if job.spec.precision == "float64" else torch.float32
    lengths = [len(target) for target in share.targets]
    prompts = share.prompts
    if share.words:
        prompts = [rows + len(words) for rows, words in zip(prompts, share.words, strict=True)]
    return Ready(
        share, x_PQ, Packing.of(prompts, device), job.t5.targets(share.targets),
        torch.from_numpy(share.members.repeat(lengths)).to(device),
        torch.from_numpy(weights.repeat(lengths)).to(device, wide),
    )  # fmt: skip


def ignore(event: Event) -> None:
    """What other ranks report."""


def start_event(job: Job, ranks: Ranks, step: int) -> Event:
    """A training as it is told at its start. matrix_rate: what products of matrices reach here, flops a second."""
    data = job.data
    return {
        "event": "start", "step": step, "world": ranks.world, "config": job.aligner.config.as_dict(),
        "parameters": sum(p.numel() for p in job.aligner.parameters()), "training_rows": len(data.training_rows),
        "validation_rows": len(data.validation_rows), "skipped_rows": data.skipped,
        "matrix_rate": ranks.world * matrix_rate(ranks.device, TYPES[job.spec.precision]),
    }  # fmt: skip


def step_event(job: Job, batch: Batch, loss: float, grad_norm: float, lr: float, done: int) -> Event:
    """A step as it is told. places: the target tokens and prompt rows if all were padded to the longest."""
    tokens, rows, samples = int(batch.tokens.sum()), int(batch.prompts.sum()), len(batch.rows)
    config = job.aligner.config
    own = rows * config.hidden * (4 * config.in_features + 6 * config.out_features)
    return {
        "event": "step", "step": done, "loss": loss, "grad_norm": grad_norm, "lr": lr,
        "samples": samples, "tokens": tokens, "rows": rows, "flops": job.t5.flops(tokens, rows) + own,
        "places": samples * int(batch.tokens.max() + batch.prompts.max()),
    }  # fmt: skip


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Flops a second of the product of two square matrices, the median of a few."""
    gpu = device.startswith("cuda")
    size, seconds = 8192 if gpu else 256, list[float]()
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(7):
        began = time.perf_counter()
        torch.matmul(a, b)
        if gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / sorted(seconds)[3]


def save(job: Job, ranks: Ranks, step: int, optimizer: torch.optim.Optimizer, history: History) -> None:
    """The first rank writes weights and Adam's moments by name, and removes what is no longer to be kept."""
    if not ranks.first:
        return
    tensors = {f"weights/{name}": array(value) for name, value in job.aligner.state_dict().items()}
    for name, parameter in job.aligner.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = array(value)
    job.checkpoints.save(step, tensors, asdict(history))
    best = history.best()
    job.checkpoints.keep(job.run.keep_checkpoints, also=[best] if best is not None else [])


def tensor(states: npt.NDArray[Any]) -> torch.Tensor:
    """Features as stored; NumPy's bfloat16 is not PyTorch's, though its bytes are."""
    if states.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(states.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(states)


def array(value: torch.Tensor) -> npt.NDArray[Any]:
    """A tensor on the host."""
    return value.detach().cpu().numpy()


def restore(job: Job, ranks: Ranks, optimizer: torch.optim.Optimizer) -> tuple[int, History]:
    """Puts the newest checkpoint back. Returns the next step and what was seen so far; step 0 without a checkpoint."""
    found = job.checkpoints.latest() if ranks.first else None
    begin = ranks.agreed(found[0] if found else -1)
    if begin < 0:
        return 0, History()
    tensors = found[1] if found else job.checkpoints.at(begin)
    parameters = dict(job.aligner.named_parameters())
    for name, value in tensors.items():
        kind, _, name = name.partition("/")
        if kind != "weights":
            on_host = kind == "step" and not optimizer.defaults["fused"]
            held = torch.from_numpy(value.copy())
            optimizer.state[parameters[name]][kind] = held if on_host else held.to(ranks.device)
    job.aligner.load_state_dict(weights(tensors))
    return begin, history_of(found[2] if found else {}, job.checkpoints.folder.uri)


def history_of(state: Mapping[str, Any], where: str) -> History:
    """The history of a checkpoint's state. Raises StoreError when another version of thinkdiff knew more of it."""
    if more := set(state) - {known.name for known in fields(History)}:
        raise StoreError(
            f"{where}: found a checkpoint with {', '.join(sorted(more))}, expected what this version knows. Another "
            "version of thinkdiff wrote it; use that one, or train anew with --refresh train_aligner."
        )
    return History(**{**state, "validation": [(step, loss) for step, loss in state.get("validation", ())]})


def weights(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The aligner's weights of a checkpoint."""
    return {
        name.removeprefix("weights/"): torch.from_numpy(value.copy())
        for name, value in tensors.items()
        if name.startswith("weights/")
    }
