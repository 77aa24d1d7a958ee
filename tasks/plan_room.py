"""The room that a run needs: bytes of its artifacts beside what is free, weights beside the GPUs' memory.

In: the stages that are to be made, and where models are. Out: findings. Bytes of features are the store's own, of all
rows that are asked for; what a killed run has left already is counted. Weights are counted from the files' heads; what
a model needs beside them is not known before it runs.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.artifact import Artifact, Execution, Model
from thinkdiff.schemas.captions import CaptionSpec
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import ThinkDiffError
from thinkdiff.schemas.features import FeatureSpec
from thinkdiff.schemas.gallery import GallerySpec
from thinkdiff.schemas.images import ImageSpec
from thinkdiff.schemas.media import MediaSpec
from thinkdiff.schemas.plan import Finding, Job, Level
from thinkdiff.storage.root import Folder, matching
from thinkdiff.tasks.plan_known import MODELS, NOT_KNOWN
from thinkdiff.tasks.plan_models import Models, named_models
from thinkdiff.tasks.plan_time import is_the_papers
from thinkdiff.tasks.plan_widths import Widths

SHARDS = 50_000  # of a store, as tests/bench/RESULTS.md has it
LARGE = 1e9  # parameters from which a model is not for a processor
SMALL = 1e8  # bytes of an artifact below which nothing is said of it
MUCH = 1e10  # bytes of artifacts beside which those that are not known may matter
PEAK = {False: int(33.6 * 2**30), True: int(29.7 * 2**30)}  # bytes, of a step of the paper's size, by run.compile
STATES = 3  # of a weight in a checkpoint: itself and AdamW's two moments
GPUS = """
import json, torch
found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps([[gpu.name, gpu.total_memory] for gpu in found]))
"""


class Gpu(NamedTuple):
    """A GPU that torch can use, and its memory in bytes."""

    name: str
    memory: int


@cache
def gpus() -> tuple[Gpu, ...]:
    """What torch sees, asked in a process of its own, so that this one holds no memory of a GPU.

    Nothing is started where there is no NVIDIA driver.
    """
    if not (Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")):
        return ()
    done = subprocess.run([sys.executable, "-c", GPUS], capture_output=True, text=True, timeout=120, check=False)
    try:
        return tuple(Gpu(*found) for found in json.loads(done.stdout))
    except ValueError:
        return ()


def room_findings(jobs: Sequence[Job], run: Execution, models: Models, widths: Widths) -> Iterator[Finding]:
    """Whether the root can be written and has the room, stage by stage and in all; and the same of the hub's cache."""
    ahead = [job for job in jobs if not job.done]
    yield root_finding(run)
    total, open_ones = 0, list[str]()
    for job in ahead:
        asked = bytes_of(job, jobs, run, widths)
        if isinstance(job.spec, FeatureSpec):
            yield from shards_finding(job.spec, rows_of(job, jobs))
        if asked is None:
            if job.spec.stage in ("fetch_images", "extract_features"):
                open_ones.append(job.spec.stage)
            continue
        need, why = asked
        there = sum(Folder(job.uri).sizes().values()) if job.uri and need > SMALL else 0
        total += max(need - there, 0)
        kept = f", {there / 1e9:.1f} GB of it there" if there else ""
        if need > SMALL:
            yield Finding(
                stage=job.spec.stage, what="disk", level="tells", found=f"a need of {size_text(need)} ({why}){kept}"
            )
    yield space_finding("root", run.root, total, open_ones)
    fetched = sum(sum(answer.files.values()) for answer in models.answers() if answer.state == "there")
    if fetched:
        from huggingface_hub import constants

        yield space_finding("the hub's cache", constants.HF_HUB_CACHE, fetched, [])


def shards_finding(spec: FeatureSpec, rows: int | None) -> Iterator[Finding]:
    """Whether there are more shards than a record names at ease."""
    shards = -(-(rows or 0) // spec.shard_size)
    if shards > SHARDS:
        size = 2 ** math.ceil(math.log2((rows or 0) / SHARDS))
        yield Finding(
            stage=spec.stage, what="shards", level="warns", found=f"{shards} of {spec.shard_size} rows",
            expected=f"at most {SHARDS}",
            todo=f"The driver's memory and the artifact's record grow with them; set features.shard_size={size}.",
        )  # fmt: skip


def size_text(size: float) -> str:
    """Bytes as GB or TB."""
    return f"{size / 1e12:.2f} TB" if size >= 1e12 / 2 else f"{size / 1e9:.3g} GB"


def nearest(uri: str) -> Path:
    """A local path, or the folder nearest above it that exists."""
    path = Path(Folder.at(uri).uri)
    return next(place for place in (path, *path.parents) if place.exists())


def root_finding(run: Execution) -> Finding:
    """Whether artifacts can be written."""
    expected, todo = "a place to write artifacts", "Name another --root, or have it made writable."
    if not Folder.at(run.root).is_local:
        try:
            Folder.at(run.root).check_writable()
        except (ThinkDiffError, OSError) as error:
            found = f"it not writable ({error!s:.200})"
            return Finding(
                stage="run", what=f"root {run.root}", level="blocks", found=found, expected=expected, todo=todo
            )
        return Finding(stage="run", what=f"root {run.root}", level="tells", found="a bucket that can be written")
    place = nearest(run.root)
    good = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return Finding(
        stage="run", what=f"root {run.root}", level="tells" if good else "blocks", expected="" if good else expected,
        found="a folder that can be written" if good else f"it not writable ({place})", todo="" if good else todo,
    )  # fmt: skip


def space_finding(what: str, uri: str, need: int, open_ones: Sequence[str]) -> Finding:
    """What is free where something is to be written."""
    more = f", and that of {', '.join(dict.fromkeys(open_ones))}, which is {NOT_KNOWN}" if open_ones else ""
    asked = f"{size_text(need)}{more}"
    if not Folder.at(uri).is_local:
        return Finding(
            stage="run",
            what=f"room in {what}",
            level="tells",
            found="a bucket, which tells no free room",
            expected=asked,
        )
    free = shutil.disk_usage(nearest(uri)).free
    level: Level = "blocks" if need > free else "warns" if open_ones and need > MUCH else "tells"
    todo = "Free some, take another disk or a bucket, or store features smaller (features.codec)."
    return Finding(
        stage="run", what=f"room in {what}", level=level, found=f"{size_text(free)} free", expected=asked,
        todo=todo if level != "tells" else "",
    )  # fmt: skip


def bytes_of(job: Job, jobs: Sequence[Job], run: Execution, widths: Widths) -> tuple[int, str] | None:
    """How many bytes an artifact has at most, and of what; None where that is not known, (0, "") for small ones."""
    spec = job.spec
    if isinstance(spec, FeatureSpec):
        rows, width = rows_of(job, jobs), widths.of_features(spec.model_dump(mode="json"))
        return None if rows is None or width is None else features_bytes(spec, rows, width)
    if isinstance(spec, ImageSpec):
        return None if spec.by_url else pictures_bytes(spec, run)
    if isinstance(spec, AlignerSpec):
        seen = job.parents["features"].spec
        width, out = widths.of_features(seen), widths.of_t5(spec.t5)
        if width is None or out is None:
            return None
        hidden = spec.hidden or out
        weights = width * hidden + hidden + hidden * out + out + out
        return weights * 4 * (1 + STATES * (run.keep_checkpoints + 1)), "weights and checkpoints"
    if isinstance(spec, MediaSpec):
        queries = next((other for other in jobs if other.artifact is job.parents.get("queries")), None)
        rows = rows_of(queries, jobs) if queries else None
        if rows is None:
            return None
        count = rows * len(spec.methods)
        return count * spec.height * spec.width * 3, f"{count} pictures, uncompressed"
    return 0, ""


def rows_of(job: Job, jobs: Sequence[Job]) -> int | None:
    """How many requests a FeatureSpec makes at most, its parents being made as they are asked for."""
    assert isinstance(job.spec, FeatureSpec)
    if isinstance(prompts := job.spec.prompts, CobsatPrompts):
        return prompts.per_task * 2 * len(prompts.families) * len(prompts.shots)
    images = job.parents.get("images")
    if images is None:
        return None
    if "images" in images.counts:
        return images.counts["images"]
    captions = parent_of(images, "captions", jobs)
    return CaptionSpec.model_validate(captions.spec).n if captions else None


def parent_of(artifact: Artifact, role: str, jobs: Sequence[Job]) -> Artifact | None:
    """A parent of an artifact that may not be there yet."""
    return next((job.parents.get(role) for job in jobs if job.artifact is artifact), None)


def features_bytes(spec: FeatureSpec, rows: int, width: int) -> tuple[int, str]:
    """The arrays of a feature store, and their indices."""
    from thinkdiff.storage.feature_shards import Layout

    total, kinds = 0, list[str]()
    for tokens in (spec.max_tokens, spec.max_input_tokens):
        if tokens:
            layout = Layout(rows, tokens, width, spec.dtype, spec.shard_size, codec=spec.codec)
            total += layout.rows * layout.chunk_bytes[1] + layout.shards * layout.index_bytes
            kinds.append(f"{rows} x {tokens} x {width}")
    return total, f"{' and '.join(kinds)} in {spec.dtype}, codec {spec.codec}"


def pictures_bytes(spec: ImageSpec, run: Execution) -> tuple[int, str] | None:
    """Not more than the tars that they come from; None while these are not there."""
    try:
        files = [file for source in spec.tars for file in matching(run.data_root, source.glob)]
        return (sum(folder.size(name) for folder, name in files), "at most its tars") if files else None
    except (ThinkDiffError, OSError):
        return None


def gpu_findings(jobs: Sequence[Job], run: Execution, models: Models) -> Iterator[Finding]:
    """Whether the weights of each large model fit into a GPU."""
    told = set[tuple[str, int]]()
    largest = max(gpus(), key=lambda gpu: gpu.memory, default=None)
    for job in (job for job in jobs if not job.done):
        for owner, field, model in named_models(job.spec):
            count = held(owner, field, model, models)
            wide = getattr(owner, "precision", getattr(owner, "compute_dtype", "float32")) != "bfloat16"
            need = int((count or 0) * (4 if wide else 2))
            if (count or 0) >= LARGE and (model.name, need) not in told:
                told.add((model.name, need))
                yield fits(job.spec.stage, model.name, need, run, largest)
        if isinstance(job.spec, AlignerSpec) and is_the_papers(job.spec, job):
            yield fits(job.spec.stage, "training", PEAK[run.compile], run, largest, "as was measured")


def fits(
    stage: str, name: str, need: int, run: Execution, largest: Gpu | None, why: str = "its weights alone"
) -> Finding:
    """So many bytes beside the largest GPU."""
    what, expected = f"GPU for {name}", f"one with more than {size_text(need)}, {why}"
    elsewhere = run.runner != "threads" and run.runner_address is not None
    if run.device == "cpu" or elsewhere:
        found = f"the cluster {run.runner_address} to ask" if elsewhere else "the processor asked for (run.device=cpu)"
        return Finding(stage=stage, what=what, level="warns", found=found, expected=expected)
    if largest is None:
        todo = "Run where there is one, or set run.device=cpu to compute on the processor all the same."
        return Finding(stage=stage, what=what, level="blocks", found="no GPU", expected=expected, todo=todo)
    found = f"{largest.name} of {size_text(largest.memory)}"
    if need < largest.memory:
        return Finding(stage=stage, what=what, level="tells", found=found, expected=expected)
    offloaded = run.offload != "none" and stage == "generate_media"
    return Finding(
        stage=stage, what=what, level="warns" if offloaded else "blocks", found=found, expected=expected,
        todo="Take a larger one, or a smaller model; a diffusion model's blocks can be offloaded (run.offload).",
    )  # fmt: skip


def held(owner: BaseModel, field: str, model: Model, models: Models) -> float | None:
    """How many numbers of a model lie in a GPU at work: from the files' heads, or as is publicly known; None where it
    is not, and where the model is small beside others of its stage."""
    tower = isinstance(owner, GallerySpec) or (isinstance(owner, FeatureSpec) and owner.prompts.kind == "pictures")
    if tower or (isinstance(owner, MediaSpec) and field == "t5"):
        return None
    without = "encoder." if isinstance(owner, AlignerSpec) and owner.masking != "words" else None
    folder = models.place(model).folder
    if folder is None:
        return MODELS[model.name].parameters if model.name in MODELS and not without else None
    part = folder / "transformer" if field == "decoder" else folder
    return float(sum(numbers(file, without) for file in sorted(part.glob("*.safetensors")))) or None


def numbers(file: Path, without: str | None = None) -> int:
    """How many numbers a safetensors file has, by its head, but for some by their prefix; 0 where it is none."""
    try:
        with file.open("rb") as opened:
            head = json.loads(opened.read(min(int.from_bytes(opened.read(8), "little"), 1 << 26)))
        names = [name for name in head if name != "__metadata__" and not (without and name.startswith(without))]
        return sum(prod(head[name]["shape"]) for name in names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return 0
