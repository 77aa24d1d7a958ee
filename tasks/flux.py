"""FLUX behind prompt embeddings, through diffusers' FluxPipeline: what sets it apart from the other families.

FLUX takes no text mask and any number of rows, so only prompts of one length share a batch. It also reads one pooled
text embedding: that of the empty text, as in the authors' scripts, where the folder has a CLIP. A folder without one
(the miniature's) was trained with zeros in its place. `guidance_scale` is FLUX's distilled guidance; classifier-free
guidance is `true_cfg_scale`.

Shapes: B batch, L rows of a prompt, D width of a row, P pooled width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thinkdiff.tasks.diffusion import Decoder, Settings, TextRows

if TYPE_CHECKING:
    import torch


class FluxDecoder(Decoder):
    """A FluxPipeline that is given prompt embeddings."""

    pipelines = ("FluxPipeline",)
    denoiser = ("transformer", "FluxTransformer2DModel")
    left_out = ("text_encoder_2", "tokenizer_2")
    scale = "true_cfg_scale"

    @property
    def width(self) -> int:
        return self.pipeline.transformer.config.joint_attention_dim

    @property
    def text(self) -> TextRows:
        return TextRows()

    @property
    def multiple(self) -> int:
        return self.pipeline.vae_scale_factor * 2

    def _prepare(self) -> None:
        """The pooled embedding (1, P) of the empty text, or zeros where the folder has no CLIP."""
        import torch

        encoder, tokenizer = self.pipeline.text_encoder, self.pipeline.tokenizer
        if encoder is None:
            pooled = self.pipeline.transformer.config.pooled_projection_dim
            self.pooled_1P = torch.zeros(1, pooled, device=self.device, dtype=self.held)
        else:
            ids = tokenizer(
                [""], padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            self.pooled_1P = encoder.to(self.device)(ids.to(self.device)).pooler_output.to(self.held)
        self.pipeline.register_modules(text_encoder=None, tokenizer=None)

    def _noise(self, count: int, settings: Settings, generators: list[torch.Generator]) -> torch.Tensor:
        import torch

        channels = self.pipeline.transformer.config.in_channels // 4
        size = settings.height, settings.width
        return self.pipeline.prepare_latents(count, channels, *size, torch.float32, self.device, generators)[0]

    def _inputs(
        self, x_BLD: torch.Tensor, mask_BL: torch.Tensor, null_BLD: torch.Tensor, settings: Settings
    ) -> dict[str, Any]:
        pooled_BP = self.pooled_1P.expand(len(x_BLD), -1)
        return {
            "prompt_embeds": x_BLD,
            "pooled_prompt_embeds": pooled_BP,
            "negative_prompt_embeds": null_BLD,
            "negative_pooled_prompt_embeds": pooled_BP,
            "true_cfg_scale": settings.true_cfg_scale,
        }
