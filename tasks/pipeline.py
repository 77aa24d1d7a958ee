"""ThinkDiff in a notebook: pictures and words in any order in, pictures out.

    pipe = ThinkDiffPipeline.from_pretrained(
        "my-lab/aligner", vlm="Qwen/Qwen2-VL-7B-Instruct", t5="./t5-v1_1-xxl",
        decoder="black-forest-labs/FLUX.1-dev",
    )
    made = pipe([image, "monkey", image, "cat", "zebra"], instruction=PAPER_INSTRUCTION, generator=0)
    made.images[0].save("zebra.png")

In: an aligner, the VLM or, for ThinkDiff-CLIP, the vision tower that it was trained on, a diffusion model and the T5
that this reads. Out: pictures, or videos, with the VLM's words and the prompt embeddings. Models stay loaded until
`close`. It stores nothing.

Shapes: L rows, D width of the T5, F frames, H and W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.features import FeatureSpec, PictureTokens
from thinkdiff.schemas.media import MediaSpec
from thinkdiff.tasks.models import compute_device, model_path

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from thinkdiff.tasks.aligner import Aligner
    from thinkdiff.tasks.diffusion import Decoder
    from thinkdiff.tasks.t5_encoder import T5Encoder
    from thinkdiff.tasks.vision_tower import VisionTower

    Part = str | bytes | Path | npt.NDArray[np.uint8] | Image.Image
    """Text; or a picture as an encoded file, a path, uint8 (H, W, 3) or of PIL."""

    StepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]

OutputType = Literal["pil", "np"]
MOST_PICTURES = 8
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ThinkDiffOutput:
    """What was made. images: PIL, or uint8 (H, W, 3); of a video decoder the middle frames, and `frames` (F, H, W, 3).

    text: the VLM's words, "" of ThinkDiff-CLIP. prompt_embeds: float32 (L, D), what the diffusion model read.
    """

    images: list[Any]
    text: str
    prompt_embeds: npt.NDArray[np.float32]
    frames: list[npt.NDArray[np.uint8]]


class ThinkDiffPipeline:
    """Made by `from_pretrained`, or from the specs of a pipeline, whose settings are then the defaults of a call.

    Features that are pictures' own tokens (`PictureTokens`) make it ThinkDiff-CLIP's. Models are loaded at the first
    call. Use as a context manager, or `close` it: the VLM has a process of its own.
    """

    def __init__(
        self, aligner: AlignerCheckpoint | Aligner, asked: FeatureSpec, media: MediaSpec, run: Execution | None = None
    ) -> None:
        from thinkdiff.tasks.alignment import TrainedAligner

        self.asked, self.media, self.run = asked, media, run or Execution()
        self.device = compute_device(self.run)
        self.aligner = TrainedAligner(aligner, self.device)
        self.clip = isinstance(asked.prompts, PictureTokens)
        self._engine: Any = None
        self._several = False

    @classmethod
    def from_pretrained(
        cls, aligner: str | Path, *, vlm: str | Path | Model, decoder: str | Path | Model, t5: str | Path | Model,
        precision: Literal["bfloat16", "float32"] = "bfloat16", run: Execution | None = None,
    ) -> Self:  # fmt: skip
        """aligner: a folder of the hub's form or its name on the hub (`thinkdiff export-aligner`, `import-aligner`).

        Its configuration says whether it is ThinkDiff-LVLM's, whose `vlm` is a Qwen-VL, or ThinkDiff-CLIP's, whose
        `vlm` is a vision tower (a BLIP-2, or open_clip's EVA). A VLM's sampling is the paper's, up to 128 tokens and
        the first end token. A `Model` names a revision, too. Raises ModelError or SpecError for models that are not
        whole or do not fit.
        """
        from thinkdiff.tasks.aligner_files import from_pretrained

        run, tower = run or Execution(), named(vlm)
        loaded = from_pretrained(str(aligner), run=run)
        if loaded.config.kind == "clip":
            asked = FeatureSpec(
                vlm=tower, prompts=PictureTokens(), tokens=("input",), max_input_tokens=1, compute_dtype=precision
            )
        else:
            asked = FeatureSpec(vlm=tower, max_tokens=128, end_policy="stop", compute_dtype=precision)
        media = MediaSpec(decoder=named(decoder), t5=named(t5), precision=precision)
        return cls(loaded, asked, media, run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the VLM's process."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __call__(
        self,
        content: Sequence[Part],
        *,
        instruction: str = "",
        generator: torch.Generator | int | None = None,
        num_images_per_prompt: int = 1,
        output_type: OutputType = "pil",
        callback_on_step_end: StepEnd | None = None,
        **settings: Any,
    ) -> ThinkDiffOutput:
        """Draws what follows from a user's turn; of ThinkDiff-CLIP what its pictures show and its words say together.

        ThinkDiff-CLIP reads all pictures in order and behind them all words, joined; wherever they stand in the turn.
        instruction: said before it to a VLM, as the benchmark's `PAPER_INSTRUCTION`. generator: a seed, or a generator
        from which seeds of the VLM and of the pictures are drawn; none: 0. settings: `height`, `width`,
        `num_inference_steps`, `guidance_scale`, `true_cfg_scale`, `frames`, and of ThinkDiff-CLIP `words`, as a
        MediaSpec has it. callback_on_step_end: as diffusers calls it. Raises InputError for parts that are no pictures,
        and for an answer without words.
        """
        from PIL import Image

        from thinkdiff.tasks.picture_prompts import words_of

        media, parts = self._media(settings), list(map(part_of, content))
        seed, *seeds = seeds_of(generator, num_images_per_prompt)
        text, x_LD = (
            self._shown(parts, instruction, media) if self.clip else self._said(parts, instruction, media, seed)
        )
        told = words_of(parts) if self.clip and media.words == "padded" else ""
        made = self._drawn(media, x_LD, seeds, callback_on_step_end, told)
        frames = made if self.decoder.video else []
        images: list[Any] = [found[len(found) // 2] for found in frames] or made
        if output_type == "pil":
            images = [Image.fromarray(pixels) for pixels in images]
        return ThinkDiffOutput(images, text, x_LD, frames)

    @cached_property
    def decoder(self) -> Decoder:
        """The diffusion model; its `pipeline` is diffusers' own."""
        from thinkdiff.tasks.decoders import decoder_of

        found = decoder_of(self.media, self.run, self.device)
        found.check_width("aligner", self.aligner.width)
        return found

    @cached_property
    def _t5(self) -> T5Encoder:
        from thinkdiff.tasks.t5_encoder import T5Encoder

        found = T5Encoder(model_path(self.media.t5, self.run), self.device, self.media.precision)
        self.decoder.check_width(f"T5 {self.media.t5.name}", found.width)
        return found

    @cached_property
    def _empty(self) -> npt.NDArray[np.float32]:
        reads = self.decoder.text
        return self._t5.empty(reads.null, reads.t5_mask)

    @cached_property
    def _tower(self) -> VisionTower:
        from thinkdiff.tasks.vision_tower import VisionTower

        return VisionTower(model_path(self.asked.vlm, self.run), self.device, self.asked.compute_dtype)

    def _media(self, settings: dict[str, Any]) -> MediaSpec:
        if "num_inference_steps" in settings:
            settings = {**settings, "steps": settings["num_inference_steps"]}
            del settings["num_inference_steps"]
        return self.media.but(**settings) if settings else self.media

    def _said(
        self, parts: list[Any], instruction: str, media: MediaSpec, seed: int
    ) -> tuple[str, npt.NDArray[np.float32]]:
        """The VLM's answer to a turn: its words, and its rows through the aligner."""
        parts = [f" {part} " if isinstance(part, str) and i else part for i, part in enumerate(parts)]
        answer = self._answer([f"{instruction}\n\n", *parts] if instruction else parts, seed)
        rows = answer.features if media.keep_eos else answer.features[: answer.end_index]
        if not len(rows):
            raise InputError("generate: found an empty answer of the VLM, expected words. Ask in another way.")
        return answer.text, self.aligner(rows)

    def _shown(self, parts: list[Any], instruction: str, media: MediaSpec) -> tuple[str, npt.NDArray[np.float32]]:
        """The rows of ThinkDiff-CLIP for a turn's pictures and words."""
        from thinkdiff.tasks.picture_prompts import PicturePrompts, words_of
        from thinkdiff.tasks.qwen_chat import Request, images_of

        if instruction:
            raise SpecError(
                "instruction: found one, expected none. ThinkDiff-CLIP has no model that follows it; say what is to be "
                "drawn among the content."
            )
        reads = self.decoder.text
        pictures = images_of(Request("turn", tuple(parts)))
        tower = self._tower if pictures else None
        made = PicturePrompts(tower, self.aligner, lambda: self._t5, reads, media.words, media.keep_eos)
        return "", made(pictures, words_of(parts))

    def _answer(self, parts: list[Any], seed: int) -> Any:
        from thinkdiff.tasks.engines import open_engine
        from thinkdiff.tasks.qwen_chat import Request
        from thinkdiff.tasks.vlm_context import context

        several = sum(not isinstance(part, str) for part in parts) > 1
        if self._engine is not None and self._several != several:
            self.close()
        if self._engine is None:
            self._several = several
            path = model_path(self.asked.vlm, self.run)
            self._engine = open_engine(
                self.run, self.asked, path, add_vision_id=several, max_images=MOST_PICTURES, log=log.debug,
                max_model_len=context(path, MOST_PICTURES, 0, self.asked.max_tokens, {}),
            ).__enter__()  # fmt: skip
        return self._engine.generate([Request("turn", tuple(parts), seed)])[0]

    def _drawn(
        self, media: MediaSpec, x_LD: npt.NDArray[np.float32], seeds: list[int], step_end: StepEnd | None, told: str
    ) -> list[npt.NDArray[np.uint8]]:
        from thinkdiff.tasks.diffusion import Settings

        decoder, wanted = self.decoder, Settings.of(media)
        empty = self._empty if decoder.reads_empty(wanted) else np.zeros((decoder.text.null, decoder.width), np.float32)
        decoder.step_end = step_end
        try:
            made = dict(
                decoder.generate([x_LD] * len(seeds), seeds, empty, wanted, self.run.batch, [told] * len(seeds))
            )
        finally:
            decoder.step_end = None
        return [made[i] for i in range(len(seeds))]


def part_of(part: Part) -> str | bytes | npt.NDArray[np.uint8]:
    """A part as the engine takes it. Raises InputError for a path that leads to no picture."""
    from PIL import Image

    from thinkdiff.tasks.compose import read_picture

    if isinstance(part, Image.Image):
        return np.asarray(part.convert("RGB"))
    return read_picture(str(part)) if isinstance(part, Path) else part


def seeds_of(generator: torch.Generator | int | None, count: int) -> list[int]:
    """A seed of the VLM and one for each picture. A number is the seed of the VLM and of the first picture."""
    import torch

    if isinstance(generator, torch.Generator):
        return torch.randint(2**62, (count + 1,), generator=generator, device=generator.device).tolist()
    first = generator or 0
    return [first, *range(first, first + count)]


def named(model: str | Path | Model) -> Model:
    """A model by its folder or its name on the hub."""
    return model if isinstance(model, Model) else Model(name=str(model))
