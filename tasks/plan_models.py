"""The models that a run needs: where each is, whether it is whole, and what it may be used for.

In: the stages that are to be made. Out: findings. Models are looked for as `models.model_path` does, in the run's
folders, then in the hub's cache, then on the hub; nothing is fetched or loaded.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.errors import ModelError
from thinkdiff.schemas.features import FeatureSpec, PictureTokens
from thinkdiff.schemas.plan import Finding, Job, Level
from thinkdiff.tasks.models import local_folder, require_own_weights
from thinkdiff.tasks.plan_hub import Answer, Hub, cached_snapshot
from thinkdiff.tasks.plan_known import HUB, MODELS, licence_of

VLM = ("config.json", "*.safetensors", "tokenizer_config.json", "tokenizer.json|vocab.json", "*processor_config.json")
CLIP = ("config.json", "*processor_config.json", "tokenizer_config.json", "*.safetensors")
TOWER = ("*.safetensors",)
NEEDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("FeatureSpec", "vlm"): VLM,
    ("VlmJudge", "model"): VLM,
    ("AlignerSpec", "t5"): ("config.json", "tokenizer_config.json", "*.safetensors"),
    ("AlignerSpec", "norm_from"): ("*.safetensors",),
    ("MediaSpec", "t5"): ("config.json", "tokenizer_config.json", "*.safetensors"),
    ("MediaSpec", "decoder"): ("model_index.json",),
    ("ClipJudge", "model"): CLIP,
    ("ClassifierJudge", "model"): ("config.json", "preprocessor_config.json", "*.safetensors"),
    ("GallerySpec", "tower"): TOWER,
    ("SimilaritySpec", "clip"): CLIP,
    ("SimilaritySpec", "dino"): ("config.json", "preprocessor_config.json", "*.safetensors"),
}
OTHERS = ("config.json",)


@dataclass(frozen=True)
class Use:
    """A model as a stage uses it, with the files that it must have."""

    stage: str
    model: Model
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a model is. folder: None unless on this machine; answer: the hub's, if it had to be asked."""

    folder: Path | None = None
    answer: Answer | None = None
    wrong: str = ""  # the sentence of an error, when the folder is not the one that the revision means


class Models:
    """Where models are, each looked for once."""

    def __init__(self, run: Execution) -> None:
        self.run, self.hub = run, Hub()
        self._places: dict[tuple[str, str | None], Place] = {}

    def place(self, model: Model) -> Place:
        """Where a model is."""
        key = model.name, model.revision
        if key not in self._places:
            self._places[key] = self._look(model)
        return self._places[key]

    def answers(self) -> list[Answer]:
        """What the hub has said so far."""
        return [place.answer for place in self._places.values() if place.answer is not None]

    def _look(self, model: Model) -> Place:
        try:
            folder = local_folder(model, self.run)
            if folder is None and (folder := cached_snapshot(model)):
                require_own_weights(folder)
        except ModelError as error:
            return Place(wrong=str(error))
        return Place(folder) if folder else Place(answer=self.hub.look(model))


def uses(jobs: Sequence[Job]) -> list[Use]:
    """Each model of the stages that are to be made, once for each way of using it."""
    found: dict[tuple[str, str | None, tuple[str, ...]], Use] = {}
    for job in jobs:
        for owner, field, model in named_models(job.spec):
            use = Use(job.spec.stage, model, needs_of(owner, field))
            found.setdefault((model.name, model.revision, use.needs), use)
        features = job.parents.get("features") if job.spec.stage == "train_aligner" else None
        if features is not None and features.spec.get("prompts", {}).get("kind") != "pictures":
            vlm = Model(**features.spec["vlm"])  # its tokenizer cuts answers
            if not any(use.model == vlm for use in found.values()):
                found[vlm.name, vlm.revision, ()] = Use(job.spec.stage, vlm, ("tokenizer_config.json",))
    return list(found.values())


def named_models(value: object) -> Iterator[tuple[BaseModel, str, Model]]:
    """Every model in a spec: the part of the spec that names it, the field, and the model."""
    if isinstance(value, BaseModel):
        for field in type(value).model_fields:
            inner = getattr(value, field)
            if isinstance(inner, Model):
                yield value, field, inner
            else:
                yield from named_models(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from named_models(inner)


def needs_of(owner: BaseModel, field: str) -> tuple[str, ...]:
    """The files that a model must have in that place, as patterns; `a|b` is either."""
    if isinstance(owner, FeatureSpec) and isinstance(owner.prompts, PictureTokens):
        return TOWER
    return NEEDS.get((type(owner).__name__, field), OTHERS)


def model_findings(jobs: Sequence[Job], models: Models) -> Iterator[Finding]:
    """One finding for each model and way of using it, and one for each licence."""
    told = set[str]()
    for use in uses(jobs):
        place = models.place(use.model)
        yield access(use, place)
        if use.model.name not in told:
            told.add(use.model.name)
            licence = licence_of(use.model.name, place.answer.licence if place.answer else None)
            yield Finding(stage=use.stage, what=f"licence of {use.model.name}", level="tells", found=licence)


def access(use: Use, place: Place) -> Finding:
    """Whether a model can be had, and is whole."""
    name, what = use.model.name, f"model {use.model.name}"
    if place.wrong:
        found, _, rest = place.wrong.removeprefix(f"{what}: found ").partition(", expected ")
        expected, _, todo = rest.partition(". ")
        return Finding(stage=use.stage, what=what, level="blocks", found=found, expected=expected, todo=todo)
    if place.folder is not None:
        return whole(use, what, place.folder)
    answer = place.answer
    assert answer is not None
    if answer.state == "there":
        return fetchable(use, what, answer)
    gated = answer.state == "gated" or (name in MODELS and MODELS[name].gated)
    accept = f"Accept its conditions on {HUB}{name} and log in (hf auth login)"
    other = "add the folder above its own to model_dirs"
    todo = {
        "gated": f"{accept}, or {other}.",
        "absent": f"Correct the name or the revision, log in, or {other}.",
        "silent": f"{f'{accept}; then go' if gated else 'Go'} online once, or {other}.",
    }[answer.state]
    found = f"it in no model folder and not in the hub's cache, and {answer.reason}"
    return Finding(
        stage=use.stage,
        what=what,
        level="blocks",
        found=found,
        todo=todo,
        expected=f"a whole model{at(use.model)}{', which is gated there' if gated else ''}",
    )


def at(model: Model) -> str:
    """The revision, if the spec has one."""
    return f" at revision {model.revision[:19]}" if model.revision else ""


def whole(use: Use, what: str, folder: Path) -> Finding:
    """What a folder lacks of the files that a stage reads."""
    lacking = [pattern for pattern in use.needs if not any(filled(folder, one) for one in pattern.split("|"))]
    lacking += unlisted(folder) + (pipeline_lacks(folder) if "model_index.json" in use.needs and not lacking else [])
    if not lacking:
        return Finding(stage=use.stage, what=what, level="tells", found=f"{folder}")
    return Finding(
        stage=use.stage, what=what, level="blocks", found=f"no {', '.join(lacking)} in {folder}",
        expected="a whole model", todo="Copy or fetch it again, tokenizer and processor too.",
    )  # fmt: skip


def filled(folder: Path, pattern: str) -> bool:
    """Whether a file of that name is there and not empty."""
    return any(file.is_file() and file.stat().st_size for file in folder.glob(pattern))


def unlisted(folder: Path) -> list[str]:
    """The weights that an index names and that are not there."""
    index = folder / "model.safetensors.index.json"
    try:
        named = set(json.loads(index.read_bytes())["weight_map"].values()) if index.is_file() else set[str]()
    except (ValueError, LookupError, AttributeError):
        return ["a readable model.safetensors.index.json"]
    return sorted(name for name in named if not (folder / name).is_file())


def pipeline_lacks(folder: Path) -> list[str]:
    """What a diffusers pipeline lacks of the files that its decoder reads, or the decoder itself."""
    from thinkdiff.tasks.decoders import family

    try:
        return [pattern for pattern in family(str(folder)).files if not filled(folder, pattern)]
    except ModelError as error:
        return [str(error)]


def fetchable(use: Use, what: str, answer: Answer) -> Finding:
    """A model that the hub would give."""
    lacking = [
        pattern
        for pattern in use.needs
        if not any(fnmatch.fnmatch(name, one) for one in pattern.split("|") for name in answer.files)
    ]
    level: Level = "blocks" if lacking else "tells"
    size = sum(answer.files.values()) / 1e9
    found = f"no {', '.join(lacking)} of it on the hub" if lacking else f"it on the hub, {size:.1f} GB to fetch"
    todo = "Name another model or revision." if lacking else "It is fetched when its stage begins."
    if not lacking and use.model.revision is None:
        level, todo = (
            "warns",
            f"No revision is pinned, so that another `main` would go unnoticed: it is {answer.commit}.",
        )
    return Finding(stage=use.stage, what=what, level=level, found=found, expected=", ".join(lacking), todo=todo)
