"""FLUX behind prompt embeddings, through diffusers' FluxPipeline: what sets it apart from the other families.

FLUX takes no text mask and any number of rows, so only prompts of one length share a batch. It also reads one pooled
text embedding, where the folder has a CLIP: of the texts that are given, else of the empty text, as in the authors'
scripts. A folder without one (the miniature's) was trained with zeros in its place. The pipeline's T5 is not told of
padding. `guidance_scale` is FLUX's distilled guidance; classifier-free guidance is `true_cfg_scale`.

Shapes: B batch, L rows of a prompt, D width of a row, P pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from thinkdiff.tasks.clip_text import ClipText
from thinkdiff.tasks.diffusion import Decoder, Settings, TextRows

if TYPE_CHECKING:
    import torch


class FluxDecoder(Decoder):
    """A FluxPipeline that is given prompt embeddings."""

    pipelines = ("FluxPipeline",)
    denoiser = ("transformer", "FluxTransformer2DModel")
    left_out = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    scale = "true_cfg_scale"

    @property
    def width(self) -> int:
        return self.pipeline.transformer.config.joint_attention_dim

    @property
    def text(self) -> TextRows:
        return TextRows(t5_mask=False)

    @property
    def multiple(self) -> int:
        return self.pipeline.vae_scale_factor * 2

    @cached_property
    def _clip(self) -> ClipText:
        """Stays once a text was given."""
        return ClipText(self.path, "", self.part_class("text_encoder"), self.device, self.held)

    def _prepare(self) -> None:
        """The pooled embedding (1, P) of the empty text, or zeros where the folder has no CLIP."""
        import torch

        self.has_clip = bool(self.part_class("text_encoder"))
        if not self.has_clip:
            pooled = self.pipeline.transformer.config.pooled_projection_dim
            self.pooled_1P = torch.zeros(1, pooled, device=self.device, dtype=self.held)
        else:
            _, self.pooled_1P = self._clip([""])
            del self._clip

    def _noise(self, count: int, settings: Settings, generators: list[torch.Generator]) -> torch.Tensor:
        import torch

        channels = self.pipeline.transformer.config.in_channels // 4
        size = settings.height, settings.width
        return self.pipeline.prepare_latents(count, channels, *size, torch.float32, self.device, generators)[0]

    def _inputs(
        self,
        x_BLD: torch.Tensor,
        mask_BL: torch.Tensor,
        null_BLD: torch.Tensor,
        settings: Settings,
        texts: Sequence[str],
    ) -> dict[str, Any]:
        empty_BP = self.pooled_1P.expand(len(x_BLD), -1)
        return {
            "prompt_embeds": x_BLD,
            "pooled_prompt_embeds": self._clip(texts)[1] if any(texts) and self.has_clip else empty_BP,
            "negative_prompt_embeds": null_BLD,
            "negative_pooled_prompt_embeds": empty_BP,
            "true_cfg_scale": settings.true_cfg_scale,
        }
