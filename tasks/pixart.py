"""PixArt-alpha and PixArt-Sigma behind prompt embeddings, through the diffusers pipelines of their names.

Both are told by a mask which rows are a text's, so prompts of several lengths share a batch. Alpha reads up to 120
rows, Sigma up to 300: the lengths at which their pipelines cut a text. Pictures have the size that is asked for:
nothing is drawn at another and scaled.

Shapes: B batch, L rows of a prompt, D width of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thinkdiff.tasks.diffusion import Decoder, Settings, TextRows, drawn_latents

if TYPE_CHECKING:
    import torch

LONGEST = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


class PixArtDecoder(Decoder):
    """A PixArt pipeline that is given prompt embeddings."""

    pipelines = tuple(LONGEST)
    denoiser = ("transformer", "PixArtTransformer2DModel")
    left_out = ("text_encoder", "tokenizer")

    @property
    def width(self) -> int:
        return self.pipeline.transformer.config.caption_channels

    @property
    def text(self) -> TextRows:
        return TextRows(longest=LONGEST[type(self.pipeline).__name__], mask=True)

    @property
    def multiple(self) -> int:
        return self.pipeline.vae_scale_factor * self.pipeline.transformer.config.patch_size

    def _prepare(self) -> None:
        """Nothing: the T5's rows are all that it reads."""

    def _noise(self, count: int, settings: Settings, generators: list[torch.Generator]) -> torch.Tensor:
        return drawn_latents(self.pipeline, settings, generators)

    def _inputs(
        self,
        x_BLD: torch.Tensor,
        mask_BL: torch.Tensor,
        null_BLD: torch.Tensor,
        settings: Settings,
        texts: Sequence[str],
    ) -> dict[str, Any]:
        first_BL = mask_BL.clone()
        first_BL[:, 1:] = False  # the empty text has one row; what stands behind it is not read
        return {
            "prompt_embeds": x_BLD,
            "prompt_attention_mask": mask_BL,
            "negative_prompt": None,
            "negative_prompt_embeds": null_BLD,
            "negative_prompt_attention_mask": first_BL,
            "use_resolution_binning": False,
            "clean_caption": False,
        }
