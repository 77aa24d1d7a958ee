"""Diffusion models behind prompt embeddings: what the families have in common. Rows in, pixels out.

In: the local folder of a diffusers pipeline, perhaps another denoiser for it, prompt embeddings and a seed for each
picture. Out: uint8 (H, W, 3) pictures or (F, H, W, 3) videos. The pipeline is diffusers' own; a family (flux, sd3,
pixart, deepfloyd, cogvideox) says how it is called. The folder's T5 is never loaded: that is `t5_encoder`.

Shapes: B batch, L rows of a prompt, D width of a row, N rows of the empty text, F frames, H and W pixels.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.errors import InputError, ModelError, SpecError
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.models import SAFE, complete, loading, require_files
from thinkdiff.tasks.offload import offloaded

if TYPE_CHECKING:
    import torch

    from thinkdiff.schemas.media import MediaSpec

Rows = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Precision = Literal["bfloat16", "float32"]
Padding = Literal["empty", "zeros"]
Offload = Literal["none", "blocks"]


@dataclass(frozen=True, slots=True)
class TextRows:
    """How a family reads the rows of a text.

    longest: rows at most, None for any number. fixed: shorter ones are padded to `longest`, since the model always
    reads that many. mask: it is told which rows are padding, so that several lengths share a batch. null: rows of the
    empty text that guidance needs. t5_mask: whether the pipeline's own T5 is told of padding.
    """

    longest: int | None = None
    fixed: bool = False
    mask: bool = False
    null: int = 1
    t5_mask: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """What changes a picture beside its prompt and its seed; the fields are those of a MediaSpec."""

    height: int
    width: int
    steps: int
    guidance_scale: float
    true_cfg_scale: float = 1.0
    frames: int = 1
    padding: Padding = "empty"

    @staticmethod
    def of(spec: MediaSpec) -> Settings:
        """Those of a spec."""
        return Settings(
            spec.height, spec.width, spec.steps, spec.guidance_scale, spec.true_cfg_scale, spec.frames, spec.padding
        )


class Decoder(ABC):
    """A diffusers pipeline that is given prompt embeddings. Raises ModelError when a folder is no whole model.

    `pipelines` are the classes that the family opens, `denoiser` the name and the class of the part that may be
    replaced, `left_out` the parts that are not loaded, `files` what a folder must have, `scale` the setting that is
    classifier-free guidance, `float32` what is never in bfloat16 on a GPU (a sampler computes as its inputs are).
    """

    pipelines: ClassVar[tuple[str, ...]]
    denoiser: ClassVar[tuple[str, str]]
    left_out: ClassVar[tuple[str, ...]]
    files: ClassVar[tuple[str, ...]] = ("scheduler/*.json", "transformer/config.json", "vae/*.safetensors")
    video: ClassVar[bool] = False
    scale: ClassVar[Literal["guidance_scale", "true_cfg_scale"]] = "guidance_scale"
    float32: ClassVar[Literal["nothing", "inputs", "weights"]] = "nothing"

    def __init__(
        self,
        path: str,
        transformer_path: str | None = None,
        device: str = "cpu",
        precision: Precision = "bfloat16",
        offload: Offload = "none",
        compiled: bool = False,
    ) -> None:
        """`offload` and `compiled` are of a GPU and change no picture but by rounding: see Execution."""
        if offload != "none" and (device == "cpu" or compiled):
            raise SpecError(
                f"offload: found {offload!r} {'with compile_decoder' if compiled else 'on a CPU'}, expected a GPU and "
                "nothing compiled. It brings weights to a GPU while they are read; set offload to none."
            )
        require_files(path, ("model_index.json", *self.files))
        self.path, self.device, self.precision = path, device, precision
        self.step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None
        with loading(path, "diffusers"):
            import torch

            # On a GPU the weights are held as they compute; on a CPU autocast does the same to small models.
            low = torch.bfloat16 if precision == "bfloat16" and device != "cpu" else torch.float32
            self.held = torch.float32 if self.float32 == "weights" else low
            self.read = torch.float32 if self.float32 != "nothing" else low
            self.pipeline = self._load(transformer_path or f"{path}/{self.denoiser[0]}")
            with torch.no_grad():
                self._prepare()
        self._place(offload, compiled)

    @property
    @abstractmethod
    def width(self) -> int:
        """D, the width of the prompt embeddings that the model reads."""

    @property
    @abstractmethod
    def text(self) -> TextRows:
        """How the model reads the rows of a text."""

    @property
    @abstractmethod
    def multiple(self) -> int:
        """What height and width are multiples of, in pixels."""

    @property
    def largest(self) -> int | None:
        """The most pixels of a side; None for no limit."""
        return None

    def guided(self, settings: Settings) -> bool:
        """Whether there is classifier-free guidance, so that the empty text is read."""
        return getattr(settings, self.scale) > 1

    def reads_empty(self, settings: Settings) -> bool:
        """Whether any of the empty text's rows is read, for guidance or as padding."""
        return self.guided(settings) or (self.text.fixed and settings.padding == "empty")

    def check_width(self, what: str, width: int) -> None:
        """Raises SpecError, naming both widths, when such rows are not those that the model reads."""
        if width != self.width:
            raise SpecError(
                f"{what}: found rows of width {width}, expected {self.width}, which {type(self.pipeline).__name__} in "
                f"{self.path} reads. They belong to another diffusion model; name those that were made for this one."
            )

    @final
    def generate(
        self,
        prompt_embeds: Sequence[Rows],
        seeds: Sequence[int],
        null_embeds: Rows,
        settings: Settings,
        batch: int = 64,
        texts: Sequence[str] | None = None,
    ) -> Iterator[tuple[int, Pixels]]:
        """Yields (index of the prompt, picture or video) as they get done, not in the order of the prompts.

        prompt_embeds: one (L, D) each.
        seeds: one each; noise is drawn on the CPU from a generator per picture, so no picture depends on its batch.
        null_embeds: (N, D) of the empty text, N as `text` says or as all prompts have; read only when `reads_empty`.
        texts: one each, what the CLIPs of FLUX and Stable Diffusion 3 are told; by default the empty text.
        Raises SpecError for a size, width or number of rows that the model does not take, InputError for rows that
        are not finite.
        """
        for i, x in self.samples(prompt_embeds, seeds, null_embeds, settings, batch, texts):
            yield i, np.rint(x * 255).astype(np.uint8)

    @final
    def samples(
        self,
        prompt_embeds: Sequence[Rows],
        seeds: Sequence[int],
        null_embeds: Rows,
        settings: Settings,
        batch: int = 64,
        texts: Sequence[str] | None = None,
    ) -> Iterator[tuple[int, Floats]]:
        """As `generate`, before rounding: float32 in [0, 1]."""
        texts = texts or [""] * len(seeds)
        assert len(seeds) == len(prompt_embeds) == len(texts)
        self._check(prompt_embeds, null_embeds, settings)
        mixed = self.text.mask or self.text.fixed
        for at in batches([len(x_LD) for x_LD in prompt_embeds], batch, mixed):
            x_BLD, mask_BL = self._stacked([prompt_embeds[i] for i in at], null_embeds, settings.padding)
            made = self._draw(x_BLD, mask_BL, null_embeds, [seeds[i] for i in at], settings, [texts[i] for i in at])
            yield from zip(at, made, strict=True)

    @abstractmethod
    def _inputs(
        self,
        x_BLD: torch.Tensor,
        mask_BL: torch.Tensor,
        null_BLD: torch.Tensor,
        settings: Settings,
        texts: Sequence[str],
    ) -> dict[str, Any]:
        """What the pipeline is called with beside size, steps, guidance, noise and the kind of output.

        texts: B of them, for the CLIPs of a family that has some.
        """

    @abstractmethod
    def _noise(self, count: int, settings: Settings, generators: list[torch.Generator]) -> torch.Tensor | None:
        """The latents that the pipeline starts from, in float32; None lets the pipeline draw them."""

    @abstractmethod
    def _prepare(self) -> None:
        """What is read once from the parts of the folder, before the pipeline is brought to the device."""

    def part_class(self, name: str) -> str:
        """The class of a part of the pipeline's folder; "" where the folder has no such part."""
        found = read_index(self.path).get(name)
        return str(found[1] or "") if isinstance(found, list) else ""

    def _load(self, denoiser_path: str) -> Any:
        """The pipeline without what is left out. Raises ModelError when the denoiser lacks weights."""
        import diffusers

        index = read_index(self.path)
        assert index.get("_class_name") in self.pipelines, "open_decoder knows the family"
        kind = getattr(diffusers, index["_class_name"])
        name, part = self.denoiser
        loaded = getattr(diffusers, part).from_pretrained(
            denoiser_path, dtype=self.held, output_loading_info=True, use_safetensors=True
        )
        absent = [name for name, found in index.items() if isinstance(found, list) and found[:1] == [None]]
        given = dict.fromkeys((*absent, *self.left_out)) | {name: complete(denoiser_path, loaded)}
        more = {"requires_safety_checker": False} if "requires_safety_checker" in index else {}
        pipeline = kind.from_pretrained(self.path, dtype=self.held, **given, **more, **SAFE)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _place(self, offload: Offload, compiled: bool) -> None:
        model = getattr(self.pipeline, self.denoiser[0])
        if offload == "none":
            self.pipeline.to(self.device)
        else:
            offloaded(model, self.device)
            if (vae := getattr(self.pipeline, "vae", None)) is not None:
                vae.to(self.device)
        if compiled and getattr(model, "_repeated_blocks", None):  # compiled once for all of them: seconds, not minutes
            model.compile_repeated_blocks()
        elif compiled:
            model.compile()

    def _stacked(self, prompts: list[Rows], null_ND: Rows, padding: Padding) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """(B, L, D) of prompts, padded where they are of several lengths, and which rows are theirs."""
        text = self.text
        rows = text.longest if text.fixed and text.longest else max(len(x_LD) for x_LD in prompts)
        x_BLD = np.zeros((len(prompts), rows, self.width), np.float32)
        mask_BL = np.zeros((len(prompts), rows), np.bool_)
        if text.fixed and padding == "empty":
            x_BLD[:] = null_ND
        for i, x_LD in enumerate(prompts):
            x_BLD[i, : len(x_LD)] = x_LD
            mask_BL[i, : len(x_LD)] = True
        return x_BLD, mask_BL

    def _draw(
        self,
        rows: Floats,
        mask: npt.NDArray[np.bool_],
        null_ND: Rows,
        seeds: list[int],
        settings: Settings,
        texts: list[str],
    ) -> Floats:
        """(B, H, W, 3) or (B, F, H, W, 3) in [0, 1]."""
        import torch

        x_BLD = torch.from_numpy(rows).to(self.device, self.read)
        null = torch.from_numpy(np.asarray(null_ND[: x_BLD.shape[1]], np.float32)).to(x_BLD)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            latents = self._noise(len(seeds), settings, generators)
            mask_BL = torch.from_numpy(mask).to(self.device)
            inputs = self._inputs(x_BLD, mask_BL, null.expand_as(x_BLD), settings, texts)
            if latents is not None:
                inputs["latents"] = latents.to(self.device, self.read)
            made = self.pipeline(
                **inputs,
                height=settings.height,
                width=settings.width,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                generator=generators,
                output_type="np",
                **self._told(),
            )
        return made.frames if self.video else made.images

    def _told(self) -> dict[str, Any]:
        """`step_end` as this pipeline takes it; some know only the older form, whose latents cannot be changed."""
        import inspect

        told = self.step_end
        if told is None:
            return {}
        if "callback_on_step_end" in inspect.signature(self.pipeline.__call__).parameters:
            return {"callback_on_step_end": told}
        return {"callback": lambda step, time, latents: told(self.pipeline, step, time, {"latents": latents})}

    def _check(self, prompt_embeds: Sequence[Rows], null_embeds: Rows, settings: Settings) -> None:
        self._check_settings(settings)
        text = self.text
        if len(null_embeds) != text.null and {len(null_embeds)} != {len(x_LD) for x_LD in prompt_embeds}:
            raise SpecError(
                f"null embeddings: found {len(null_embeds)} rows, expected the {text.null} of the empty prompt."
            )
        for x_LD in (*prompt_embeds, null_embeds):
            if x_LD.ndim != 2 or x_LD.shape[1] != self.width or not len(x_LD):
                raise SpecError(
                    f"prompt embeddings: found shape {x_LD.shape}, expected rows of width {self.width}. The "
                    "aligner or the T5 belongs to another diffusion model; name those that were made for "
                    "this one."
                )
            if text.longest is not None and len(x_LD) > text.longest:
                raise SpecError(
                    f"prompt embeddings: found {len(x_LD)} rows, expected at most the {text.longest} that "
                    f"{type(self.pipeline).__name__} reads. Ask the VLM for fewer tokens, or name another decoder."
                )
            if not np.isfinite(x_LD).all():
                raise InputError(
                    "prompt embeddings: found rows with NaN or infinity, expected finite ones. They are "
                    "padding, or the aligner's training diverged."
                )

    def _check_settings(self, settings: Settings) -> None:
        height, width = settings.height, settings.width
        if height % self.multiple or width % self.multiple:
            raise SpecError(f"height, width: found {height}, {width}, expected multiples of {self.multiple}.")
        if self.largest is not None and max(height, width) > self.largest:
            raise SpecError(f"height, width: found {height}, {width}, expected at most {self.largest} for this model.")
        if self.scale != "true_cfg_scale" and settings.true_cfg_scale != 1:
            raise SpecError(
                f"true_cfg_scale: found {settings.true_cfg_scale:g}, expected 1. It is FLUX's; the classifier-free "
                f"guidance of {type(self.pipeline).__name__} is guidance_scale."
            )


def batches(lengths: Sequence[int], size: int, mixed: bool) -> Iterator[list[int]]:
    """The positions of prompts that are drawn together, short ones first; of one length unless `mixed`."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for _, kin in itertools.groupby(order, key=lambda i: None if mixed else lengths[i]):
        at = list(kin)
        yield from (at[start : start + size] for start in range(0, len(at), size))


def noise_seed(seed: int, name: str) -> int:
    """The seed of a prompt's noise: 63 bits of a hash of (seed, name)."""
    digest = hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=8, person=b"thinkdiff-noise").digest()
    return int.from_bytes(digest, "little") >> 1


def read_index(path: str) -> dict[str, Any]:
    """A folder's `model_index.json`. Raises ModelError when it is none."""
    try:
        index = json.loads(Folder.at(path).read("model_index.json"))
    except ValueError:
        index = None
    if not isinstance(index, dict):
        raise ModelError(
            f"model {path}: found no JSON object in model_index.json, expected a diffusers pipeline's. Fetch it again."
        )
    return index


def drawn(shape: Sequence[int], generators: list[torch.Generator]) -> torch.Tensor:
    """Normal noise in float32, (B, *shape), each sample from its own generator.

    Never in bfloat16: on a CPU torch draws that from 256 uniform values.
    """
    import torch

    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def drawn_latents(pipeline: Any, settings: Settings, generators: list[torch.Generator]) -> torch.Tensor:
    """Noise of the size that a picture has for a transformer behind a VAE: (B, channels, height, width)."""
    factor, channels = pipeline.vae_scale_factor, pipeline.transformer.config.in_channels
    return drawn((channels, settings.height // factor, settings.width // factor), generators)
