"""Stage 4. Features -> an aligner whose outputs a frozen T5 decoder reads (paper, section 3; authors' training code).

On several GPUs, or with `ranks`, it starts torchrun and one process for each; alone it trains in this one. The loop is
`aligner_training`, the same for both.
"""

from __future__ import annotations

import json
from typing import Any

from thinkdiff.schemas.aligner import AlignerCheckpoint, AlignerSpec
from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.errors import SpecError, TrainingError
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.tasks.step import Made, Work, step


@step(AlignerCheckpoint, gpu=True)
def train_aligner(work: Work, spec: AlignerSpec, features: FeatureSet) -> Made:
    """Trains one aligner; resumes at the step after the last checkpoint. On SIGTERM it leaves one and stops."""
    from thinkdiff.storage.checkpoints import CheckpointWriter, save_aligner
    from thinkdiff.tasks.trackers import tracked_files, tracker_of
    from thinkdiff.tasks.training_watch import TrainingWatch

    config = spec.model_dump(mode="json")
    watch = TrainingWatch(spec.steps, lambda begin: tracker_of(work.run, work.folder, config, begin))
    with work.progress(spec.steps, "steps") as progress:
        progress.note = watch.line

        def report(event: dict[str, Any]) -> None:
            watch.hear(event)
            if event["event"] == "start":
                progress.resume(event["step"])
                work.log.info("train_aligner: from step %d in %d processes", event["step"], event["world"])
            elif event["event"] == "step":
                if work.lease.lost.is_set():  # who has lost it must not remove another's checkpoints
                    work.lease.check()
                progress.advance()
            elif event["event"] == "validation":
                work.log.info("train_aligner: step %d, validation loss %.4f", event["step"], event["loss"])
            elif event["event"] == "readings":
                first = event["rows"][0]
                work.log.info("train_aligner: reads %r where %r was said", first["read"], first["expected"])
                progress.page("readings", watch.page)
            elif event["event"] == "stopped":
                work.log.warning("train_aligner: stopped at step %d, of which a checkpoint is kept", event["step"])

        try:
            run_training(work, spec, features, report)
        finally:
            watch.close()
    checkpoints = CheckpointWriter(work.folder)
    found = checkpoints.latest()
    if found is None or found[0] < spec.steps:
        raise TrainingError(
            f"train_aligner: found itself asked to stop at step {found[0] if found else 0}, expected to go on to "
            f"{spec.steps}. A checkpoint of that step is written; run it again to go on from there."
        )
    _, tensors, history = found
    best = min(history["validation"], key=lambda pair: pair[1])[0] if history["validation"] else spec.steps
    if spec.weights == "best" and best < spec.steps:
        tensors = checkpoints.at(best)
    weights = {n.removeprefix("weights/"): value for n, value in tensors.items() if n.startswith("weights/")}
    files = save_aligner(work.folder, weights, watch.start["config"])
    files = (*files, work.folder.write("losses.json", json.dumps(history).encode()), *tracked_files(work.folder))
    begin = watch.start["step"]
    return Made(
        files=files,
        counts={
            "steps": spec.steps,
            **{name: watch.start[name] for name in ("parameters", "training_rows", "validation_rows", "skipped_rows")},
        },
        stats={"hidden_size": features.stats["hidden_size"], **results(history, best)},
        note=f"resumed at step {begin}" if begin else "",
        page="\n\n".join(part for part in (watch.line(), watch.page) if part),
        after=checkpoints.clear,
    )


def run_training(work: Work, spec: AlignerSpec, features: FeatureSet, report: Any) -> None:
    """In this process, or in several."""
    from thinkdiff.tasks.models import compute_device

    device = compute_device(work.run)
    world = number_of_ranks(work.run, device, spec.batch)
    if world > 1:
        from thinkdiff.tasks.training_process import Order
        from thinkdiff.tasks.training_ranks import train_together

        order = Order(spec=spec, run=work.run, features=features.uri, folder=work.folder.uri).model_dump_json()
        train_together(order, world, work.run.threads, report, work.log)
        return
    import torch

    from thinkdiff.storage.feature_store import FeatureStore
    from thinkdiff.tasks.aligner_training import prepared, train
    from thinkdiff.tasks.ranks import Ranks, stop_signal

    if work.run.threads:
        torch.set_num_threads(work.run.threads)
    ranks = Ranks(device)
    job = prepared(spec, work.run, FeatureStore(features), work.folder, ranks)
    with stop_signal() as stopping:
        train(job, ranks, report, stopping)


def number_of_ranks(run: Execution, device: str, batch: int) -> int:
    """How many processes train. Raises SpecError when there are more than samples of a step, or than GPUs."""
    import torch

    gpus = torch.cuda.device_count() if device == "cuda" else 0
    if run.ranks > batch or (gpus and run.ranks > gpus):
        raise SpecError(
            f"ranks: found {run.ranks}, expected at most the {batch} samples of a step"
            f"{f' and the {gpus} GPUs that are here' if gpus else ''}. Ask for fewer."
        )
    return run.ranks or min(max(gpus, 1), batch)


def results(history: dict[str, Any], best: int) -> dict[str, Any]:
    """The losses at the end, each nats per token, and the step of the lowest validation loss."""
    training, validation = history["training"][-100:], history["validation"]
    return {
        "final_training_loss": round(sum(training) / len(training), 4) if training else None,
        "final_validation_loss": round(validation[-1][1], 4) if validation else None,
        "best_step": best,
    }
