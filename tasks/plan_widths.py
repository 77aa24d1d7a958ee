"""Whether models fit one another: the VLM's width, the aligner between, the T5's and what the diffusion model reads.

In: all stages of a run, and where models are. Out: findings. Widths come from `config.json`, or of a vision tower from
its tensors' shapes; of a model that is not on this machine from what is known of it publicly, or they are "not known".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.artifact import Model
from thinkdiff.schemas.errors import ModelError
from thinkdiff.schemas.gallery import GallerySpec
from thinkdiff.schemas.media import MediaSpec
from thinkdiff.schemas.plan import Finding, Job
from thinkdiff.tasks.models import hidden_size
from thinkdiff.tasks.plan_known import MODELS, NOT_KNOWN
from thinkdiff.tasks.plan_models import Models

# What a denoiser's configuration calls the width of the rows that it reads, in the order in which decoders ask.
READS = ("joint_attention_dim", "caption_channels", "text_embed_dim", "encoder_hid_dim", "cross_attention_dim")


class Widths:
    """Widths of models, None where they are not known."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def of_features(self, spec: Mapping[str, Any]) -> int | None:
        """That of the features that such a spec asks for."""
        model = Model(**spec["vlm"])
        if (folder := self.models.place(model).folder) is None:
            return known(model)
        try:
            if spec["prompts"]["kind"] == "pictures":
                from thinkdiff.tasks.vision_tower import tower_width

                return tower_width(str(folder))
            return hidden_size(folder)
        except (ModelError, ValueError):
            return None

    def of_t5(self, model: Model) -> int | None:
        """d_model of a T5."""
        return self._told(model, ("config.json",), ("d_model",))

    def of_decoder(self, spec: MediaSpec) -> int | None:
        """The width of the rows that a diffusion model reads."""
        if spec.transformer is not None:
            return self._told(spec.transformer, ("config.json",), READS)
        return self._told(spec.decoder, ("transformer/config.json", "unet/config.json"), READS)

    def _told(self, model: Model, files: Sequence[str], keys: Sequence[str]) -> int | None:
        folder = self.models.place(model).folder
        if folder is None:
            return known(model)
        config = next((found for name in files if (found := read_json(folder / name))), {})
        return next((width for key in keys if isinstance(width := config.get(key), int)), None)


def known(model: Model) -> int | None:
    """What is publicly known of a width."""
    return MODELS[model.name].width if model.name in MODELS else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def width_findings(jobs: Sequence[Job], widths: Widths) -> Iterator[Finding]:
    """A chain of widths for each aligner and each decoder that is to be made; what does not match blocks."""
    told = set[str]()
    for job in (job for job in jobs if not job.done):
        links: dict[str, list[tuple[str, int | None]]] = {}
        if isinstance(job.spec, AlignerSpec):
            links = aligner_links(job, job.spec, widths)
        elif isinstance(job.spec, MediaSpec):
            links = media_links(job, job.spec, jobs, widths)
        elif isinstance(job.spec, GallerySpec):
            both = filter(None, (job.spec.media, job.spec.video))
            links = {
                f"{what} of {m.decoder.name}": c for m in both for what, c in media_links(job, m, jobs, widths).items()
            }
        for what, chain in links.items():
            text = ", ".join(f"{name} {width or NOT_KNOWN}" for name, width in chain)
            if what + text in told:
                continue
            told.add(what + text)
            different = len({width for _, width in chain if width is not None}) > 1
            yield Finding(
                stage=job.spec.stage, what=what, level="blocks" if different else "tells", found=text,
                expected="one width" if different else "",
                todo="They do not fit one another; name models that were made for each other." if different else "",
            )  # fmt: skip


def aligner_links(job: Job, spec: AlignerSpec, widths: Widths) -> dict[str, list[tuple[str, int | None]]]:
    """What must be as wide as what comes out of an aligner, while it is trained."""
    chain = [(spec.t5.name, widths.of_t5(spec.t5))]
    if spec.norm_from is not None:
        chain.append((f"the norm of {spec.norm_from.name}", widths.of_t5(spec.norm_from)))
    seen = job.parents["features"].spec
    width = widths.of_features(seen) or NOT_KNOWN
    return {f"width of the aligner's rows, from features of {seen['vlm']['name']} ({width})": chain}


def media_links(
    job: Job, spec: MediaSpec, jobs: Sequence[Job], widths: Widths
) -> dict[str, list[tuple[str, int | None]]]:
    """What must be as wide as what a diffusion model reads, and what as an aligner reads."""
    chain = [(spec.decoder.name, widths.of_decoder(spec)), (spec.t5.name, widths.of_t5(spec.t5))]
    links = {"width of the prompt embeddings": chain}
    trained = next((other for other in jobs if other.artifact is job.parents.get("aligner")), None)
    if trained is None or not isinstance(trained.spec, AlignerSpec):
        return links
    t5 = trained.spec.t5
    if t5 != spec.t5:
        chain.insert(0, (f"aligner on {t5.name}", widths.of_t5(t5)))
    seen, asked = trained.parents.get("features"), job.parents.get("queries")
    if seen is not None and asked is not None:
        links["width of the features"] = [
            (f"{kind} of {features.spec['vlm']['name']}", widths.of_features(features.spec))
            for kind, features in (("training", seen), ("prompts", asked))
        ]
    return links
