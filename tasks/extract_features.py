"""Stage 3. Pictures (or benchmark prompts) -> the VLM's tokens and their final-norm states, in a Zarr store.

Requests are in the order of their keys and cut into shards; a shard is one call of an engine and one commit, so that a
killed run loses at most the shards in hand and the batch that a request ran in does not depend on where a run resumed.
Several engines work side by side on ranges of shards: as many as `run.engines`, by default one for each GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.features import STATISTICS, FeatureSet, FeatureSpec, PictureTokens
from thinkdiff.schemas.images import ImageSet
from thinkdiff.tasks.engines import close_engines, gpus
from thinkdiff.tasks.extraction_meter import merged, sentence
from thinkdiff.tasks.feature_questions import Plan, planned
from thinkdiff.tasks.feature_work import Extraction, extract_shards
from thinkdiff.tasks.models import hidden_size, model_path
from thinkdiff.tasks.progress import Progress
from thinkdiff.tasks.step import Made, Work, step
from thinkdiff.tasks.vision_tower import tower_width
from thinkdiff.tasks.vlm_context import context

RANGE = 16  # shards that a worker is given together: what a slow or dead one costs
LOOK_SECONDS = 5.0
LOOK_SHARE = 50  # of the time, one part goes into looking at most
SHOWN = 5


@step(FeatureSet, gpu=True)
def extract_features(work: Work, spec: FeatureSpec, images: ImageSet | None) -> Made:
    """Asks the VLM shard by shard; shards that are committed already are kept."""
    from thinkdiff.tasks.feature_statistics import markdown, measure

    plan, path = planned(spec, images, work.run), model_path(spec.vlm, work.run)
    common = Extraction(
        work.folder, spec, work.run, path, plan.pictures, plan.rows, width(spec, path), plan.max_images,
        room(spec, path, plan, images),
    )  # fmt: skip
    writer = common.writer()
    kept = set(writer.prepare())
    missing = [shard for shard in range(writer.shards) if shard not in kept]
    figures: dict[str, float] = {}
    if missing:
        figures = extract(work, common, plan, missing, len(kept))
        work.log.info("extract_features: %s", sentence(figures))
    if kept and missing:
        work.log.info(
            "extract_features: kept %d committed shards, made %d; children of another content are rebuilt.",
            len(kept), len(missing),
        )  # fmt: skip
    parts = writer.committed()
    files, infos = writer.files(parts), [part.info for part in parts.values()]
    tokens, ended, characters = (sum(info[name] for info in infos) for name in ("tokens", "ended", "characters"))
    reader = writer.reader(files)
    found = measure(reader, ended, tokens)
    written = work.folder.write(STATISTICS, found.model_dump_json().encode())
    return Made(
        files=(*files, written.model_copy(update={"content": False})),
        counts={"rows": plan.rows, "shards": writer.shards, "tokens": tokens},
        stats={
            "hidden_size": common.width,
            "shape": [plan.rows, spec.max_tokens, common.width],
            "shard_size": spec.shard_size,
            "ended": ended / plan.rows,
            "tokens_per_row": tokens / plan.rows,
            "characters_per_row": characters / plan.rows,
            "run": figures,
            **({"images_digest": plan.images_digest} if plan.images_digest else {}),
        },
        note=f"kept {len(kept)} shards of an earlier run" if kept else "",
        page=markdown(found, reader.rows(range(min(SHOWN, len(reader))), inputs=False)),
    )


def extract(work: Work, common: Extraction, plan: Plan, missing: Sequence[int], kept: int) -> dict[str, float]:
    """Makes the missing shards on the flow's task runner; returns figures of all workers together."""
    size, span, (engines, devices) = common.spec.shard_size, common.writer().span, side_by_side(work.run)
    length = len(missing) if engines == 1 else min(RANGE, -(-len(missing) // engines))
    ranges = (missing[first : first + length] for first in range(0, len(missing), length))
    calls = ((common, some, [plan.place(span(shard)) for shard in some]) for some in ranges)
    began = time.perf_counter()
    with work.progress(plan.rows, "requests") as progress:
        look = Look(progress, lambda: min(size * common.writer().done(), plan.rows))
        progress.resume(min(size * kept, plan.rows))
        try:
            found = list(work.map(extract_shards, calls, look, engines, devices))
        finally:
            close_engines()
        progress.advance(plan.rows - progress.done)
    return merged(found, time.perf_counter() - began)


def width(spec: FeatureSpec, path: str) -> int:
    """D."""
    return tower_width(path) if isinstance(spec.prompts, PictureTokens) else hidden_size(path)


def room(spec: FeatureSpec, path: str, plan: Plan, images: ImageSet | None) -> int:
    """Tokens of a question and its answer at most."""
    return context(path, plan.max_images, plan.words, spec.max_tokens, images.spec if images else {})


def side_by_side(run: Execution) -> tuple[int, int]:
    """How many engines work at a time, and how many GPUs a cluster has to give each; on this machine they share out."""
    if run.runner != "threads":
        return run.engines or 1, int(run.device == "cuda")
    found = 1 if run.engine == "transformers" else len(gpus(run))
    return run.engines or max(found, 1), 0


class Look:
    """Moves a progress bar to where the work is, now and then, as looking costs requests, and many in a large store."""

    def __init__(self, progress: Progress, done: Callable[[], int]) -> None:
        self.progress, self.done = progress, done
        self._next = time.monotonic() + LOOK_SECONDS

    def __call__(self) -> None:
        if (began := time.monotonic()) >= self._next:
            self.progress.advance(max(self.done() - self.progress.done, 0))
            ended = time.monotonic()
            self._next = ended + max(LOOK_SECONDS, LOOK_SHARE * (ended - began))
