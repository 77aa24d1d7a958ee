"""Stage 4. Features -> an aligner whose outputs a frozen T5 decoder reads (paper, section 3; authors' training code).

A prefix of a sample's token features goes through the aligner to the decoder's cross-attention; the loss is that of
the text that follows. Single process. Data order, splits and start depend on (seed, step) alone, so a run killed at
any point ends in the same bytes as one left in peace. Shapes: B batch, L prompt rows, Q VLM width, D T5 width.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from thinkdiff.schemas.aligner import AlignerCheckpoint, AlignerSpec
from thinkdiff.schemas.artifact import Model
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    import torch

    from thinkdiff.tasks.feature_batches import Batch, FeatureBatches
    from thinkdiff.tasks.t5_decoder import T5Decoder


def learning_rate(spec: AlignerSpec, step: int) -> float:
    """Linear warm-up, then cosine or line to `min_lr` over `schedule_steps`, counted from step 0 as the authors do."""
    if step < spec.warmup_steps:
        return spec.warmup_lr + (spec.lr - spec.warmup_lr) * step / spec.warmup_steps
    share = min(step / spec.schedule_steps, 1.0)
    fall = 0.5 * (1 + math.cos(math.pi * share)) if spec.schedule == "cosine" else 1 - share
    return spec.min_lr + (spec.lr - spec.min_lr) * fall


@step(AlignerCheckpoint)
def train_aligner(work: Work, spec: AlignerSpec, features: FeatureSet) -> Made:
    """Trains one aligner; resumes at the step after the last checkpoint."""
    import torch

    from thinkdiff.storage.checkpoints import CheckpointWriter, save_aligner
    from thinkdiff.storage.feature_store import FeatureReader
    from thinkdiff.tasks.aligner import Aligner, AlignerConfig
    from thinkdiff.tasks.feature_batches import FeatureBatches
    from thinkdiff.tasks.models import compute_device, loading, model_path
    from thinkdiff.tasks.t5_decoder import T5Decoder

    device = compute_device(work.run)
    if work.run.threads:
        torch.set_num_threads(work.run.threads)
    torch.manual_seed(spec.seed)
    # On a CPU the frozen weights stay float32 under autocast; on a GPU they are held in the type they compute in.
    held = torch.bfloat16 if device == "cuda" and spec.precision == "bfloat16" else torch.float32
    t5 = T5Decoder(model_path(spec.t5, work.run), device, held)
    vlm = model_path(Model(**features.spec["vlm"]), work.run)
    with loading(vlm):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(vlm)
    data = FeatureBatches(spec, FeatureReader(features).load(spec.features), tokenizer)
    if spec.steps and not len(data.training_rows):
        raise InputError(
            f"train_aligner: found {len(data.validation_rows)} trainable rows, expected more than the "
            f"{spec.validation_rows} held out for validation. Lower validation_rows or extract more."
        )
    config = AlignerConfig(features.stats["hidden_size"], spec.hidden or t5.width, t5.width, spec.norm)
    aligner = Aligner(config, t5.norm_D.cpu()).to(device)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in aligner.parameters() if p.ndim >= 2], "weight_decay": spec.weight_decay},
            {"params": [p for p in aligner.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=spec.lr,
        betas=(spec.beta1, spec.beta2),
    )
    checkpoints = CheckpointWriter(work.folder)
    begin, training, validation = restore(checkpoints.latest(), aligner, optimizer)

    with work.progress(spec.steps, "steps") as progress:
        progress.resume(begin)
        for now in range(begin, spec.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(spec, now)
            loss, tokens = batch_loss(aligner, t5, data.training(now), spec, device)
            optimizer.zero_grad(set_to_none=True)
            (loss / tokens).backward()
            if spec.clip_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(aligner.parameters(), spec.clip_grad_norm)
            optimizer.step()
            training.append(round(loss.item() / tokens, 6))
            if not math.isfinite(training[-1]):
                raise InputError(
                    f"train_aligner: found the loss {training[-1]} at step {now}, expected a finite one. "
                    "The training diverged; lower the learning rate."
                )
            done = now + 1
            if done % spec.validation_every == 0 or done == spec.steps:
                validation.append([done, validation_loss(aligner, t5, data, spec, device)])
                work.log.info("train_aligner: step %d, validation loss %.4f", done, validation[-1][1])
            if done % spec.checkpoint_every == 0 and done < spec.steps:
                checkpoints.save(done, snapshot(aligner, optimizer), {"training": training, "validation": validation})
                checkpoints.keep(2)
            progress.advance()

    weights = {name: value.detach().cpu().numpy() for name, value in aligner.state_dict().items()}
    files = save_aligner(work.folder, weights, config.as_dict())
    losses = json.dumps({"training": training, "validation": validation}).encode()
    files = (*files, work.folder.write("losses.json", losses))
    checkpoints.clear()
    return Made(
        files=files,
        counts={
            "steps": spec.steps,
            "parameters": sum(p.numel() for p in aligner.parameters()),
            "training_rows": len(data.training_rows),
            "validation_rows": len(data.validation_rows),
            "skipped_rows": data.skipped,
        },
        stats={
            "hidden_size": features.stats["hidden_size"],
            "final_training_loss": round(sum(training[-100:]) / len(training[-100:]), 4) if training else None,
            "final_validation_loss": round(validation[-1][1], 4) if validation else None,
        },
        note=f"resumed at step {begin}" if begin else "",
    )


def batch_loss(
    aligner: torch.nn.Module, t5: T5Decoder, batch: Batch, spec: AlignerSpec, device: str
) -> tuple[torch.Tensor, int]:
    """Summed loss of a batch and its number of target tokens."""
    import torch

    x_BLQ = torch.from_numpy(batch.x_BLQ).to(device)
    mask_BL = torch.from_numpy(batch.mask_BL).to(device)
    labels_BU = t5.labels(batch.texts, spec.max_target_tokens)
    with torch.autocast(device, torch.bfloat16, enabled=spec.precision == "bfloat16"):
        return t5.loss_sum(aligner(x_BLQ), mask_BL, labels_BU)


def validation_loss(
    aligner: torch.nn.Module, t5: T5Decoder, data: FeatureBatches, spec: AlignerSpec, device: str
) -> float:
    """Token mean over the held-out rows; NaN-free, 0.0 when no row is held out."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for batch in data.validation():
            loss, tokens = batch_loss(aligner, t5, batch, spec, device)
            total, count = total + loss.item(), count + tokens
    return round(total / max(count, 1), 6)


def snapshot(aligner: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights and Adam's moments by name, as arrays on the host."""
    tensors = {f"weights/{name}": value.detach().cpu().numpy() for name, value in aligner.state_dict().items()}
    for name, parameter in aligner.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value.detach().cpu().numpy()
    return tensors


def restore(
    found: tuple[int, dict[str, Any], dict[str, Any]] | None, aligner: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[float], list[list[Any]]]:
    """Puts a snapshot back. Returns the next step and the loss curves so far; step 0 when there is no snapshot."""
    import torch

    if found is None:
        return 0, [], []
    step, tensors, state = found
    split = [(name.partition("/"), torch.from_numpy(value.copy())) for name, value in tensors.items()]
    aligner.load_state_dict({name: value for (kind, _, name), value in split if kind == "weights"})
    parameters = dict(aligner.named_parameters())
    for (kind, _, name), value in split:
        if kind != "weights":
            parameter = parameters[name]
            optimizer.state[parameter][kind] = value if kind == "step" else value.to(parameter.device)
    return step, list(state["training"]), [list(pair) for pair in state["validation"]]
