"""Stage 5. The VLM's answers to the benchmark -> pictures, by the aligner, by the VLM's words, or from true captions.

Prompts of one length are drawn together, since some decoders take no text mask; parts are cut in that order, and a part
is the unit of commit. A picture's noise depends on (seed, prompt) alone, so the methods draw each prompt from the same
noise. Of a video the frame in the middle is the picture that is judged and shown. Aligned rows may be read back first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.aligner import AlignerCheckpoint, AlignerSpec
from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.schemas.media import MediaSet, MediaSpec, Method
from thinkdiff.tasks.models import compute_device, model_path
from thinkdiff.tasks.page_pictures import PAGE_ROWS, pictured
from thinkdiff.tasks.report_markup import code
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    from thinkdiff.storage.media_files import MediaReader
    from thinkdiff.storage.score_tables import AskedPrompt
    from thinkdiff.tasks.diffusion import Decoder
    from thinkdiff.tasks.prompt_rows import AlignedRows, Source
    from thinkdiff.tasks.t5_encoder import T5Encoder

PART = 128
VIDEO_PART = 4  # a video takes minutes where a picture takes seconds
Named = list[tuple[str, bytes]]


@step(MediaSet, gpu=True)
def generate_media(work: Work, spec: MediaSpec, queries: FeatureSet, aligner: AlignerCheckpoint | None) -> Made:
    """Draws every prompt by every method of the spec; parts that are committed already are kept."""
    from thinkdiff.storage.media_files import MediaWriter
    from thinkdiff.storage.score_tables import PROMPTS, AskedPrompt, write_rows

    prompts = asked_prompts(queries)
    writer, painter = MediaWriter(work.folder), Painter(work, spec)
    size = VIDEO_PART if painter.video else PART
    parts = -(-len(prompts) // size)
    aligned = aligned_rows(work, spec, queries, aligner) if "aligned" in spec.methods else None
    read = [readings(work, queries, prompts, aligner, aligned)] if spec.read_back and aligner and aligned else []
    with work.progress(len(prompts) * len(spec.methods), "pictures") as progress:
        for method in spec.methods:
            done = {kind: writer.committed(kind) for kind in painter.kinds(method)}
            whole = set.intersection(*(set(found) for found in done.values()))
            progress.resume(sum(done[method][part].rows for part in whole))
            missing = [part for part in range(parts) if part not in whole]
            if not missing:
                continue
            source = source_of(method, painter, prompts, aligned)
            order, null = sorted(range(len(prompts)), key=lambda i: (source.lengths[i], i)), painter.null(source.null)
            for part in missing:
                chosen = order[part * size : (part + 1) * size]
                made = painter.paint([prompts[i].name for i in chosen], source, chosen, null)
                for (kind, found), named in zip(done.items(), made, strict=True):
                    if part not in found:
                        writer.commit(kind, part, named)
                progress.advance(len(chosen))
    files = [write_rows(work.folder, PROMPTS, AskedPrompt, prompts), *read]
    for kind in (kind for method in spec.methods for kind in painter.kinds(method)):
        files += writer.files(kind, parts)
    total = len(prompts) * len(spec.methods)
    return Made(
        files=tuple(files),
        counts={"prompts": len(prompts), "pictures": total} | ({"videos": total} if painter.video else {}),
        stats={"methods": list(spec.methods)},
        page=drawn(writer.reader(tuple(files)), prompts[:PAGE_ROWS], spec.methods),
    )


def drawn(reader: MediaReader, prompts: Sequence[AskedPrompt], methods: Sequence[str]) -> str:
    """Some prompts with the VLM's answers and what every method drew, in markdown."""
    rows = [
        (p.task, str(p.shots), code(p.answer, 120), *(reader.read(method, p.name) for method in methods))
        for p in prompts
    ]
    return pictured(("task", "shots", "answer", *methods), rows)


def asked_prompts(queries: FeatureSet) -> list[AskedPrompt]:
    """The benchmark's prompts with the VLM's answers. Raises InputError when the features are of other requests."""
    from thinkdiff.storage.feature_reader import FeatureReader
    from thinkdiff.storage.score_tables import AskedPrompt
    from thinkdiff.tasks.cobsat import prompts, true_caption

    spec = benchmark(queries)
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


def benchmark(queries: FeatureSet) -> CobsatPrompts:
    """The questions of a feature set. Raises InputError when it is of captioning prompts."""
    from thinkdiff.schemas.features import FeatureSpec
    from thinkdiff.storage.records import spec_of

    spec = spec_of(queries, FeatureSpec).prompts
    if not isinstance(spec, CobsatPrompts):
        raise InputError(
            f"{queries.uri}: found features of captioning prompts, expected those of benchmark prompts. "
            "Extract the benchmark's prompts first."
        )
    return spec


def aligned_rows(work: Work, spec: MediaSpec, queries: FeatureSet, aligner: AlignerCheckpoint | None) -> AlignedRows:
    """Those of the method aligned. Raises InputError without an aligner."""
    from thinkdiff.tasks.prompt_rows import AlignedRows

    if aligner is None:
        raise InputError("generate_media: found no aligner, expected one for the method aligned. Train it first.")
    return AlignedRows(queries, aligner, spec.keep_eos, compute_device(work.run), work.log)


def readings(
    work: Work, queries: FeatureSet, prompts: list[AskedPrompt], aligner: AlignerCheckpoint, rows: AlignedRows
) -> FileEntry:
    """What the aligner's T5 finds in the aligned rows, as a file; one that an earlier try has left is kept.

    It comes before the pictures, so that this T5 and the diffusion model are not in memory together.
    """
    from thinkdiff.storage.records import spec_of
    from thinkdiff.storage.score_tables import READINGS, Reading, stored_readings, write_rows
    from thinkdiff.tasks.cobsat import captions
    from thinkdiff.tasks.read_back import read_back
    from thinkdiff.tasks.t5_decoder import TYPES, T5Decoder

    if (left := stored_readings(work.folder, rows.keys)) is not None:
        return left
    spec = spec_of(aligner, AlignerSpec)
    t5 = T5Decoder(model_path(spec.t5, work.run), compute_device(work.run), TYPES[spec.precision])
    of_family = captions(benchmark(queries))
    with work.progress(len(prompts), "readings") as progress:
        choices = [of_family[prompt.family] for prompt in prompts]
        found = read_back(rows, t5, choices, work.run.batch, progress.advance)
    return write_rows(work.folder, READINGS, Reading, list(zip(rows.keys, found, strict=True)))


def source_of(method: Method, painter: Painter, prompts: list[AskedPrompt], aligned: AlignedRows | None) -> Source:
    """The prompt embeddings of one method. Raises SpecError when they are not as wide as the decoder reads them."""
    from thinkdiff.tasks.prompt_rows import Source, text_source

    if method == "aligned":
        assert aligned is not None
        painter.decoder.check_width("aligner", aligned.width)
        return Source(aligned.lengths, aligned)
    texts = [p.true_caption if method == "true_caption" else p.answer for p in prompts]
    return text_source(method, texts, painter.encoder, painter.decoder.text, painter.spec)


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

        encoder = T5Encoder(model_path(self.spec.t5, self.work.run), self.device, self.spec.precision)
        self.decoder.check_width(f"T5 {self.spec.t5.name}", encoder.width)
        return encoder

    @cached_property
    def decoder(self) -> Decoder:
        """The diffusion model."""
        from thinkdiff.tasks.decoders import decoder_of

        return decoder_of(self.spec, self.work.run, self.device)

    @cached_property
    def video(self) -> bool:
        """Whether it draws videos; tells without loading it."""
        from thinkdiff.tasks.decoders import family

        return family(model_path(self.spec.decoder, self.work.run)).video

    def null(self, rows: int | None) -> npt.NDArray[np.float32]:
        """(N, D) of the empty prompt, by default as many as the decoder reads; zeros where nobody reads it."""
        from thinkdiff.tasks.diffusion import Settings

        reads = self.decoder.text
        rows = rows or reads.null
        if not self.decoder.reads_empty(Settings.of(self.spec)):
            return np.zeros((rows, self.decoder.width), np.float32)
        return self.encoder.empty(rows, reads.t5_mask)

    def kinds(self, method: Method) -> tuple[str, ...]:
        """Under which names a method's files are stored: pictures, and videos where there are some."""
        from thinkdiff.storage.media_files import videos_of

        return (method, videos_of(method)) if self.video else (method,)

    def paint(
        self, names: list[str], source: Source, at: Sequence[int], null_ND: npt.NDArray[np.float32]
    ) -> tuple[Named, ...]:
        """(name, PNG bytes) of each, in order, and (name, MP4 bytes) where the decoder draws videos: as `kinds`.

        at: the prompts' positions in the source.
        """
        from thinkdiff.storage.pixels import mp4, png
        from thinkdiff.tasks.diffusion import Settings, noise_seed

        spec, seeds = self.spec, [noise_seed(self.spec.seed, name) for name in names]
        batch = max(self.work.run.batch // (spec.frames if self.video else 1), 1)
        pictures, videos = dict[int, bytes](), dict[int, bytes]()
        texts = [source.texts[i] for i in at] if source.texts else None
        for i, pixels in self.decoder.generate(source.embed(at), seeds, null_ND, Settings.of(spec), batch, texts):
            if self.video:
                videos[i] = mp4(pixels, spec.fps)
            pictures[i] = png(pixels[len(pixels) // 2] if self.video else pixels)
        files = (pictures, videos) if self.video else (pictures,)
        return tuple([(name, made[i]) for i, name in enumerate(names)] for made in files)
