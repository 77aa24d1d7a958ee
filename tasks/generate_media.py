"""Stage 5. The VLM's answers to the benchmark -> pictures, by the aligner, by the text bridge, or from true captions.

Prompts of one length are drawn together, since FLUX takes no text mask; parts are cut in that order, and a part is the
unit of commit. A picture's noise depends on (seed, prompt) alone, so the methods draw each prompt from the same noise.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
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

PART = 128
Embeddings = list[npt.NDArray[np.float32]]


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
    writer = MediaWriter(work.folder)
    painter: Callable[..., list[tuple[str, bytes]]] | None = None
    parts: dict[Method, int] = {}
    with work.progress(len(prompts) * len(spec.methods), "pictures") as progress:
        for method in spec.methods:
            done = writer.committed(method)
            parts[method] = -(-len(prompts) // PART)
            progress.resume(sum(part.rows for part in done.values()))
            missing = [part for part in range(parts[method]) if part not in done]
            if not missing:
                continue
            embeddings = prompt_embeddings(work, spec, method, prompts, queries, aligner)
            order = sorted(range(len(prompts)), key=lambda i: (len(embeddings[i]), i))
            painter = painter or load_painter(work, spec)
            for part in missing:
                chosen = order[part * PART : (part + 1) * PART]
                pictures = painter([prompts[i].name for i in chosen], [embeddings[i] for i in chosen])
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


def prompt_embeddings(
    work: Work, spec: MediaSpec, method: Method, prompts: list[AskedPrompt], queries: FeatureSet,
    aligner: AlignerCheckpoint | None,
) -> Embeddings:  # fmt: skip
    """(L, D) of each prompt by one method."""
    device = compute_device(work.run)
    if method != "aligned":
        from thinkdiff.tasks.t5_encoder import T5Encoder

        texts = [p.answer if method == "text_bridge" else p.true_caption for p in prompts]
        return T5Encoder(model_path(spec.t5, work.run), device, spec.precision).encode(texts, eos=spec.keep_eos)
    from thinkdiff.schemas.aligner import AlignerSpec
    from thinkdiff.storage.feature_reader import FeatureReader
    from thinkdiff.tasks.alignment import TrainedAligner

    if aligner is None:
        raise InputError("generate_media: found no aligner, expected one for the method aligned. Train it first.")
    kind = AlignerSpec.model_validate(aligner.spec).features
    loaded, apply = FeatureReader(queries).load(kind), TrainedAligner(aligner, device)
    found = []
    for row, prompt in enumerate(prompts):
        length = int(loaded.lengths[row])
        if kind == "generated" and not spec.keep_eos and loaded.eos[row] >= 0:
            length = int(loaded.eos[row])
        if not length:
            work.log.warning("generate_media: %s has an empty answer; its end token's row is used.", prompt.name)
        found.append(apply(loaded.features[row, : max(length, 1)]))
    return found


def load_painter(work: Work, spec: MediaSpec) -> Callable[[list[str], Embeddings], list[tuple[str, bytes]]]:
    """Loads the diffusion model; the function returned makes (name, PNG bytes) of names and prompt embeddings."""
    import torch
    from PIL import Image

    from thinkdiff.tasks.flux import FluxDecoder
    from thinkdiff.tasks.t5_encoder import T5Encoder

    run = work.run
    if run.threads:
        torch.set_num_threads(run.threads)
    device = compute_device(run)
    empty = T5Encoder(model_path(spec.t5, run), device, spec.precision).empty()
    transformer = model_path(spec.transformer, run) if spec.transformer else None
    decoder = FluxDecoder(model_path(spec.decoder, run), transformer, device, spec.precision)

    def paint(names: list[str], embeddings: Embeddings) -> list[tuple[str, bytes]]:
        seeds = [picture_seed(spec.seed, name) for name in names]
        made: dict[int, Any] = dict(
            decoder.generate(
                embeddings, seeds, empty, spec.height, spec.width, spec.steps, spec.guidance_scale,
                spec.true_cfg_scale, batch=run.batch,
            )
        )  # fmt: skip
        pictures = []
        for i, name in enumerate(names):
            data = io.BytesIO()
            Image.fromarray(made[i]).save(data, "PNG")
            pictures.append((name, data.getvalue()))
        return pictures

    return paint
