"""Draws a gallery's prompts with one diffusion model: pictures and words in, PNG and MP4 bytes out.

In: a MediaSpec, the vision tower and the trained aligner (none where words alone are drawn), prompts and what reads
their pictures. Each model is loaded when it is first needed. A picture's noise depends on (seed, prompt) alone. It
knows no store. The pooled text embedding that some decoders read is that of the empty text.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.gallery import GalleryPrompt, GallerySpec
from thinkdiff.schemas.media import MediaSpec
from thinkdiff.tasks.models import compute_device, model_path

if TYPE_CHECKING:
    from thinkdiff.schemas.aligner import AlignerCheckpoint
    from thinkdiff.tasks.alignment import TrainedAligner
    from thinkdiff.tasks.diffusion import Decoder
    from thinkdiff.tasks.picture_prompts import PicturePrompts
    from thinkdiff.tasks.t5_encoder import T5Encoder
    from thinkdiff.tasks.vision_tower import VisionTower

DRAWN, FILMED = "drawn", "filmed"
Named = list[tuple[str, bytes]]


class Eyes:
    """The tower and the aligner of a gallery, shared by its pictures and its videos."""

    def __init__(self, spec: GallerySpec, aligner: AlignerCheckpoint | None, run: Execution) -> None:
        self.spec, self.trained, self.run, self.device = spec, aligner, run, compute_device(run)

    @cached_property
    def tower(self) -> VisionTower:
        """The vision tower."""
        from thinkdiff.tasks.vision_tower import VisionTower

        return VisionTower(model_path(self.spec.tower, self.run), self.device, self.spec.tower_precision)

    @cached_property
    def aligner(self) -> TrainedAligner:
        """The trained aligner."""
        from thinkdiff.tasks.alignment import TrainedAligner

        assert self.trained is not None, "draw_gallery has looked"
        return TrainedAligner(self.trained, self.device)


class GalleryPainter:
    """One diffusion model and all that makes its prompt embeddings."""

    def __init__(self, spec: MediaSpec, eyes: Eyes | None, read: Callable[[str], bytes], run: Execution) -> None:
        """`eyes`: None where the words alone are drawn. `read`: a picture's bytes by its name."""
        self.spec, self.eyes, self.read, self.run, self.device = spec, eyes, read, run, compute_device(run)

    @cached_property
    def decoder(self) -> Decoder:
        """The diffusion model."""
        from thinkdiff.tasks.decoders import decoder_of

        found = decoder_of(self.spec, self.run, self.device)
        if self.eyes is not None:
            found.check_width("aligner", self.eyes.aligner.width)
        return found

    @cached_property
    def encoder(self) -> T5Encoder:
        """The T5 of the words and of the empty text."""
        from thinkdiff.tasks.t5_encoder import T5Encoder

        found = T5Encoder(model_path(self.spec.t5, self.run), self.device, self.spec.precision)
        self.decoder.check_width(f"T5 {self.spec.t5.name}", found.width)
        return found

    @cached_property
    def prompts(self) -> PicturePrompts:
        """What makes the rows."""
        from thinkdiff.tasks.picture_prompts import PicturePrompts

        tower, aligner = (self.eyes.tower, self.eyes.aligner) if self.eyes is not None else (None, None)
        reads = self.decoder.text
        return PicturePrompts(tower, aligner, lambda: self.encoder, reads, self.spec.words, self.spec.keep_eos)

    @cached_property
    def empty(self) -> npt.NDArray[np.float32]:
        """(N, D) of the empty text; zeros where nobody reads it."""
        from thinkdiff.tasks.diffusion import Settings

        reads = self.decoder.text
        if not self.decoder.reads_empty(Settings.of(self.spec)):
            return np.zeros((reads.null, self.decoder.width), np.float32)
        return self.encoder.empty(reads.null, reads.t5_mask)

    def ordered(self, prompts: Sequence[GalleryPrompt]) -> list[GalleryPrompt]:
        """By the number of rows, since some decoders draw only equal lengths together."""
        lengths = [self.prompts.length(len(prompt.images), prompt.text) for prompt in prompts]
        return [prompts[i] for i in sorted(range(len(prompts)), key=lambda i: (lengths[i], i))]

    def rows(self, prompt: GalleryPrompt) -> npt.NDArray[np.float32]:
        """(L, D) of a prompt."""
        from PIL import Image

        if self.eyes is None:
            return self.prompts([], prompt.text)
        pictures = [Image.open(io.BytesIO(self.read(name))).convert("RGB") for name in prompt.images]
        return self.prompts(pictures, prompt.text)

    def paint(self, prompts: Sequence[GalleryPrompt]) -> tuple[Named, Named]:
        """(name, PNG bytes) of each, in order, and (name, MP4 bytes) where the model draws videos."""
        from thinkdiff.storage.pixels import mp4, png
        from thinkdiff.tasks.diffusion import Settings, noise_seed

        spec, video = self.spec, self.decoder.video
        rows, seeds = [self.rows(p) for p in prompts], [noise_seed(spec.seed, p.name) for p in prompts]
        batch = max(self.run.batch // (spec.frames if video else 1), 1)
        pictures, videos = dict[int, bytes](), dict[int, bytes]()
        told = [p.text for p in prompts] if spec.words == "padded" else None
        for i, pixels in self.decoder.generate(rows, seeds, self.empty, Settings.of(spec), batch, told):
            if video:
                videos[i] = mp4(pixels, spec.fps)
            pictures[i] = png(pixels[len(pixels) // 2] if video else pixels)
        stills, films = ([(p.name, made[i]) for i, p in enumerate(prompts) if i in made] for made in (pictures, videos))
        return stills, films


def draws_video(decoder: Model, run: Execution) -> bool:
    """Whether a diffusion model draws videos; tells without loading it."""
    from thinkdiff.tasks.decoders import family

    return family(model_path(decoder, run)).video
