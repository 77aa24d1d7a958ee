"""DeepFloyd IF, stage I, behind prompt embeddings, through diffusers' IFPipeline: small pictures, drawn in pixels.

The model always reads 77 rows and no mask: its T5 is told of padding, its UNet is not. An aligned prompt has no rows
of its own for padding; they are those of the empty text at the same places, or zeros. Neither the safety checker nor
the watermark is loaded, since no picture leaves as the stages above would make it.

The sampler adds noise at each step, from the picture's own generator. It works on the pixels themselves, for which
bfloat16 is too coarse, so the weights and the sampler are in float32 and only the UNet's products are not.

Shapes: B batch, L rows of a prompt, D width of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thinkdiff.tasks.diffusion import Decoder, Settings, TextRows

if TYPE_CHECKING:
    import torch

ROWS = 77


class DeepFloydDecoder(Decoder):
    """An IFPipeline that is given prompt embeddings."""

    pipelines = ("IFPipeline",)
    denoiser = ("unet", "UNet2DConditionModel")
    left_out = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "watermarker")
    files = ("scheduler/*.json", "unet/config.json")
    float32 = "weights"

    @property
    def width(self) -> int:
        config = self.pipeline.unet.config
        return config.encoder_hid_dim or config.cross_attention_dim

    @property
    def text(self) -> TextRows:
        return TextRows(longest=ROWS, fixed=True, null=ROWS)

    @property
    def multiple(self) -> int:
        return 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    def _prepare(self) -> None:
        self.pipeline.unet.register_forward_hook(lambda module, given, made: (made[0].float(), *made[1:]))

    def _noise(self, count: int, settings: Settings, generators: list[torch.Generator]) -> None:
        """The pipeline takes no latents; it draws them first of all from the generators, in float32."""

    def _inputs(
        self,
        x_BLD: torch.Tensor,
        mask_BL: torch.Tensor,
        null_BLD: torch.Tensor,
        settings: Settings,
        texts: Sequence[str],
    ) -> dict[str, Any]:
        return {"prompt_embeds": x_BLD, "negative_prompt_embeds": null_BLD, "clean_caption": False}
