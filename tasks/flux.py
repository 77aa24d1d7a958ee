"""FLUX behind prompt embeddings: rows in, pixels out, through diffusers' own FluxPipeline.

In: the local folder of a FluxPipeline, perhaps another transformer for it, prompt embeddings and a seed for
each picture. Out: uint8 (H, W, 3) pictures. The folder's T5 is never loaded. FLUX also reads one pooled text
embedding: that of the empty text, as in the authors' scripts, where the folder has a CLIP. A folder without
one (the miniature's) was trained with zeros in its place.

Shapes: B batch, L rows of a prompt, D width of a row, P pooled width, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.tasks.models import complete, loading, require_files

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]
FILES = ("model_index.json", "scheduler/*.json", "transformer/config.json", "vae/*.safetensors")


class FluxDecoder:
    """A FluxPipeline that is given prompt embeddings. Raises ModelError when a folder is no whole model."""

    def __init__(
        self,
        path: str,
        transformer_path: str | None = None,
        device: str = "cpu",
        precision: Literal["bfloat16", "float32"] = "bfloat16",
    ) -> None:
        require_files(path, FILES)
        self.device, self.precision = device, precision
        with loading(path, "diffusers"):
            import torch

            # On a GPU the weights are held as they compute; on a CPU autocast does the same to small models.
            self.held = torch.bfloat16 if precision == "bfloat16" and device != "cpu" else torch.float32
            self.pipeline = _load(path, transformer_path or f"{path}/transformer", self.held).to(device)
        self.pooled_1P = self._empty_text().detach()
        self.pipeline.register_modules(text_encoder=None, tokenizer=None)

    @property
    def width(self) -> int:
        """D, the width of the prompt embeddings that the model reads."""
        return self.pipeline.transformer.config.joint_attention_dim

    def generate(
        self,
        prompt_embeds: Sequence[Rows],
        seeds: Sequence[int],
        null_embeds: Rows,
        height: int,
        width: int,
        steps: int,
        guidance_scale: float,
        true_cfg_scale: float,
        batch: int = 64,
    ) -> Iterator[tuple[int, Pixels]]:
        """Yields (index of the prompt, picture) as pictures get done, not in the order of the prompts.

        prompt_embeds: one (L, D) each; FLUX takes no text mask, so only those of one length share a batch.
        seeds: one each; noise is drawn from a generator per picture, so no picture depends on its batch.
        null_embeds: (1, D) of the empty prompt, repeated to a prompt's length, since FluxPipeline wants both
        alike; read only when `true_cfg_scale` is above 1.
        Raises SpecError for a size or width that the model does not take, InputError for rows that are not
        finite.
        """
        self._check(prompt_embeds, null_embeds, height, width)
        lengths = [len(x_LD) for x_LD in prompt_embeds]
        for length in sorted(set(lengths)):
            same = [i for i, found in enumerate(lengths) if found == length]
            for at in (same[start : start + batch] for start in range(0, len(same), batch)):
                x_BLD = np.stack([prompt_embeds[i] for i in at]).astype(np.float32)
                made = self._pictures(
                    x_BLD,
                    [seeds[i] for i in at],
                    null_embeds,
                    {
                        "height": height,
                        "width": width,
                        "num_inference_steps": steps,
                        "guidance_scale": guidance_scale,
                        "true_cfg_scale": true_cfg_scale,
                    },
                )
                yield from zip(at, made, strict=True)

    def _pictures(
        self, rows_BLD: Rows, seeds: list[int], null_embeds: Rows, settings: dict[str, Any]
    ) -> npt.NDArray[np.uint8]:
        import torch

        size, pipeline = len(seeds), self.pipeline
        channels = pipeline.transformer.config.in_channels // 4
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            latents, _ = pipeline.prepare_latents(
                size, channels, settings["height"], settings["width"], torch.float32, self.device, noise
            )
            x_BLD = torch.from_numpy(rows_BLD).to(self.device, self.held)
            null_BLD = torch.from_numpy(np.asarray(null_embeds, np.float32)).to(x_BLD).expand_as(x_BLD)
            pooled_BP = self.pooled_1P.expand(size, -1)
            made = pipeline(
                prompt_embeds=x_BLD,
                pooled_prompt_embeds=pooled_BP,
                negative_prompt_embeds=null_BLD,
                negative_pooled_prompt_embeds=pooled_BP,
                latents=latents,
                output_type="np",
                **settings,
            )
        return np.rint(made.images * 255).astype(np.uint8)

    def _empty_text(self) -> torch.Tensor:
        """The pooled embedding (1, P) of the empty text, or zeros where the folder has no CLIP."""
        import torch

        encoder, tokenizer = self.pipeline.text_encoder, self.pipeline.tokenizer
        if encoder is None:
            pooled = self.pipeline.transformer.config.pooled_projection_dim
            return torch.zeros(1, pooled, device=self.device, dtype=self.held)
        ids = tokenizer(
            [""], padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        with torch.inference_mode():
            return encoder(ids.input_ids.to(self.device)).pooler_output.to(self.held)

    def _check(self, prompt_embeds: Sequence[Rows], null_embeds: Rows, height: int, width: int) -> None:
        multiple = self.pipeline.vae_scale_factor * 2
        if height % multiple or width % multiple:
            raise SpecError(f"height, width: found {height}, {width}, expected multiples of {multiple}.")
        if len(null_embeds) != 1:
            raise SpecError(f"null embeddings: found {len(null_embeds)} rows, expected the one of the empty prompt.")
        for x_LD in (*prompt_embeds, null_embeds):
            if x_LD.ndim != 2 or x_LD.shape[1] != self.width or not len(x_LD):
                raise SpecError(
                    f"prompt embeddings: found shape {x_LD.shape}, expected rows of width {self.width}. The "
                    "aligner or the T5 belongs to another diffusion model; name those that were made for "
                    "this one."
                )
            if not np.isfinite(x_LD).all():
                raise InputError(
                    "prompt embeddings: found rows with NaN or infinity, expected finite ones. They are "
                    "padding, or the aligner's training diverged."
                )


def _load(path: str, transformer_path: str, held: torch.dtype) -> Any:
    """The pipeline without a T5. Raises ModelError when the transformer lacks weights."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    loaded = FluxTransformer2DModel.from_pretrained(transformer_path, dtype=held, output_loading_info=True)
    parts: Any = FluxPipeline.load_config(path)
    absent = [part for part in ("text_encoder", "tokenizer") if (parts.get(part) or [None])[0] is None]
    given = dict.fromkeys([*absent, "text_encoder_2", "tokenizer_2"])
    pipeline = FluxPipeline.from_pretrained(path, dtype=held, transformer=complete(transformer_path, loaded), **given)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
