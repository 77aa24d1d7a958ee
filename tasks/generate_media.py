"""Stage 5. The VLM's answers to the benchmark -> pictures, by the aligner, by the text bridge, or from true captions.

Prompts of one length are drawn together, since FLUX takes no text mask; parts are cut in that order, and a part is the
unit of commit. A picture's noise depends on (seed, prompt) alone, so the methods draw each prompt from the same noise.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.schemas.media import MediaSet, MediaSpec, Method
from thinkdiff.tasks.models import compute_device, model_path
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    from thinkdiff.storage.score_tables import AskedPrompt
    from thinkdiff.tasks.flux import FluxDecoder
    from thinkdiff.tasks.t5_encoder import T5Encoder

PART = 128
Embeddings = list[npt.NDArray[np.float32]]
Source = tuple[list[int], Callable[[list[int]], Embeddings]]
"""How many rows every prompt's embeddings have, and what makes those of some prompts, by their positions."""


def picture_seed(seed: int, name: str) -> int:
    """The seed of a prompt's noise: 63 bits of a hash of (seed, name)."""
    digest = hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=8, person=b"thinkdiff-noise").digest()
    return int.from_bytes(digest, "little") >> 1


@step(MediaSet)
def generate_media(work: Work, spec: MediaSpec, queries: FeatureSet, aligner: AlignerCheckpoint | None) -> Made:
    """Draws every prompt by every method of the spec; parts that are committed already are kept."""
    from thinkdiff.storage.media_files import MediaWriter
    from thinkdiff.storage.score_tables import PROMPTS, AskedPrompt, write_rows

    prompts = asked_prompts(queries)
    writer, painter = MediaWriter(work.folder), Painter(work, spec)
    parts: dict[Method, int] = {}
    with work.progress(len(prompts) * len(spec.methods), "pictures") as progress:
        for method in spec.methods:
            done = writer.committed(method)
            parts[method] = -(-len(prompts) // PART)
            progress.resume(sum(part.rows for part in done.values()))
            missing = [part for part in range(parts[method]) if part not in done]
            if not missing:
                continue
            lengths, embed = source_of(method, painter, prompts, queries, aligner)
            order = sorted(range(len(prompts)), key=lambda i: (lengths[i], i))
            for part in missing:
                chosen = order[part * PART : (part + 1) * PART]
                pictures = painter.paint([prompts[i].name for i in chosen], embed(chosen))
                writer.commit(method, part, pictures)
                progress.advance(len(pictures))
    files = [write_rows(work.folder, PROMPTS, AskedPrompt, prompts)]
    for method in spec.methods:
        files += writer.files(method, parts[method])
    return Made(
        files=tuple(files),
        counts={"prompts": len(prompts), "pictures": len(prompts) * len(spec.methods)},
        stats={"methods": list(spec.methods)},
        page="\n".join(f"- {prompt.task}, {prompt.shots} shots: {prompt.answer!r:.120}" for prompt in prompts[:10]),
    )


def asked_prompts(queries: FeatureSet) -> list[AskedPrompt]:
    """The benchmark's prompts with the VLM's answers. Raises InputError when the features are of other requests."""
    from thinkdiff.schemas.features import FeatureSpec
    from thinkdiff.storage.feature_reader import FeatureReader
    from thinkdiff.storage.score_tables import AskedPrompt
    from thinkdiff.tasks.cobsat import prompts, true_caption

    spec = FeatureSpec.model_validate(queries.spec).prompts
    if not isinstance(spec, CobsatPrompts):
        raise InputError(
            f"{queries.uri}: found features of captioning prompts, expected those of benchmark prompts. "
            "Extract the benchmark's prompts first."
        )
    reader, asked = FeatureReader(queries), prompts(spec)
    if reader.keys != [prompt.name for prompt in asked]:
        raise InputError(f"{queries.uri}: found the answers to other prompts, expected those of its own spec.")
    return [
        AskedPrompt(
            name=p.name, task=p.task, family=p.family, shots=p.shots, held_out=p.held_out,
            target_value=p.target_value, target_thing=p.target_thing, answer=text, true_caption=true_caption(spec, p),
        )
        for p, text in zip(asked, reader.texts(), strict=True)
    ]  # fmt: skip


def source_of(
    method: Method, painter: Painter, prompts: list[AskedPrompt], queries: FeatureSet, aligner: AlignerCheckpoint | None
) -> Source:
    """The prompt embeddings of one method, made part by part: those of a whole benchmark may not fit in memory."""
    if method == "aligned":
        if aligner is None:
            raise InputError("generate_media: found no aligner, expected one for the method aligned. Train it first.")
        return aligned_source(painter, prompts, queries, aligner)
    texts = [p.answer if method == "text_bridge" else p.true_caption for p in prompts]
    encoder, keep = painter.encoder, painter.spec.keep_eos
    return encoder.lengths(texts, keep), lambda chosen: encoder.encode([texts[i] for i in chosen], keep)


def aligned_source(
    painter: Painter, prompts: list[AskedPrompt], queries: FeatureSet, aligner: AlignerCheckpoint
) -> Source:
    """The rows of an answer, or of its prompt, through the aligner.

    The end token's row and all behind it are left out unless `keep_eos`. An answer that is nothing but its end
    token keeps that row, since no model reads zero rows.
    """
    from thinkdiff.schemas.aligner import AlignerSpec
    from thinkdiff.storage.feature_reader import LENGTHS, FeatureReader
    from thinkdiff.tasks.alignment import TrainedAligner

    kind = AlignerSpec.model_validate(aligner.spec).features
    reader, apply = FeatureReader(queries), TrainedAligner(aligner, painter.device)
    lengths: list[int] = reader.table.column(LENGTHS[kind]).to_pylist()
    if kind == "generated" and not painter.spec.keep_eos:
        ends: list[int] = reader.table.column("eos").to_pylist()
        for i in (i for i, end in enumerate(ends) if end == 0):
            painter.work.log.warning("generate_media: %s has an empty answer, its end is used.", prompts[i].name)
        lengths = [max(end, 1) if end >= 0 else length for length, end in zip(lengths, ends, strict=True)]

    def embed(chosen: list[int]) -> Embeddings:
        rows = reader.rows(chosen)
        states = [row.features if kind == "generated" else row.input_features for row in rows]
        return [apply(x_LQ[: lengths[i]]) for i, x_LQ in zip(chosen, states, strict=True) if x_LQ is not None]

    return lengths, embed


class Painter:
    """The models that make pictures, each loaded when it is first needed."""

    def __init__(self, work: Work, spec: MediaSpec) -> None:
        import torch

        self.work, self.spec = work, spec
        self.device = compute_device(work.run)
        if work.run.threads:
            torch.set_num_threads(work.run.threads)

    @cached_property
    def encoder(self) -> T5Encoder:
        """The T5 of the text methods and of the empty prompt."""
        from thinkdiff.tasks.t5_encoder import T5Encoder

        return T5Encoder(model_path(self.spec.t5, self.work.run), self.device, self.spec.precision)

    @cached_property
    def decoder(self) -> FluxDecoder:
        """The diffusion model."""
        from thinkdiff.tasks.flux import FluxDecoder

        spec, run = self.spec, self.work.run
        transformer = model_path(spec.transformer, run) if spec.transformer else None
        return FluxDecoder(model_path(spec.decoder, run), transformer, self.device, spec.precision)

    @cached_property
    def empty(self) -> npt.NDArray[np.float32]:
        """(1, D) of the empty prompt; zeros, which nobody reads, without classifier-free guidance."""
        if self.spec.true_cfg_scale == 1:
            return np.zeros((1, self.decoder.width), np.float32)
        return self.encoder.empty()

    def paint(self, names: list[str], embeddings: Embeddings) -> list[tuple[str, bytes]]:
        """(name, PNG bytes) of each, in order."""
        from PIL import Image

        spec, seeds = self.spec, [picture_seed(self.spec.seed, name) for name in names]
        made: dict[int, Any] = dict(
            self.decoder.generate(
                embeddings, seeds, self.empty, spec.height, spec.width, spec.steps, spec.guidance_scale,
                spec.true_cfg_scale, batch=self.work.run.batch,
            )
        )  # fmt: skip
        pictures = []
        for i, name in enumerate(names):
            data = io.BytesIO()
            Image.fromarray(made[i]).save(data, "PNG")
            pictures.append((name, data.getvalue()))
        return pictures
