"""Stable Diffusion 3 and 3.5 behind prompt embeddings, through diffusers' StableDiffusion3Pipeline.

The model reads the states of two CLIPs, side by side and zeros up to the T5's width, and behind them the T5's rows. The
CLIPs never saw the aligner's rows: where no texts are given they say the empty text, as does the pooled embedding.
There is no text mask, so only prompts of one length share a batch. Guidance reads the empty text as the pipeline's T5
does, 256 tokens with padding as words like others, cut to the length of a prompt.

Shapes: B batch, C rows of the CLIPs, L rows of a prompt, D width of a row, P pooled width of both CLIPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from thinkdiff.tasks.clip_text import ClipText
from thinkdiff.tasks.diffusion import Decoder, Settings, TextRows, drawn_latents

if TYPE_CHECKING:
    import torch

ROWS = 256  # of the pipeline's own T5 texts
CLIPS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


class StableDiffusion3Decoder(Decoder):
    """A StableDiffusion3Pipeline that is given prompt embeddings."""

    pipelines = ("StableDiffusion3Pipeline",)
    denoiser = ("transformer", "SD3Transformer2DModel")
    left_out = (*CLIPS, "text_encoder_3", "tokenizer_3")
    files = (*Decoder.files, "text_encoder/*.safetensors", "text_encoder_2/*.safetensors")

    @property
    def width(self) -> int:
        return self.pipeline.transformer.config.joint_attention_dim

    @property
    def text(self) -> TextRows:
        return TextRows(longest=ROWS, null=ROWS, t5_mask=False)

    @property
    def multiple(self) -> int:
        return self.pipeline.vae_scale_factor * self.pipeline.transformer.config.patch_size

    @property
    def largest(self) -> int:
        return self.pipeline.transformer.config.pos_embed_max_size * self.multiple

    @cached_property
    def _clips(self) -> list[ClipText]:
        """Stay once a text was given."""
        return [
            ClipText(self.path, number, self.part_class(f"text_encoder{number}"), self.device, self.held)
            for number in ("", "_2")
        ]

    def _said(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of both CLIPs the states side by side (B, C, D) and the pooled embeddings (B, P)."""
        import torch

        states, pooled = zip(*(clip(texts) for clip in self._clips), strict=True)
        both = torch.cat(states, -1)
        return torch.nn.functional.pad(both, (0, self.width - both.shape[-1])), torch.cat(pooled, -1)

    def _prepare(self) -> None:
        """What the CLIPs say to the empty text."""
        self.clips_1CD, self.pooled_1P = self._said([""])
        del self._clips

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
        import torch

        empty_BCD, empty_BP = self.clips_1CD.expand(len(x_BLD), -1, -1), self.pooled_1P.expand(len(x_BLD), -1)
        clips_BCD, pooled_BP = self._said(texts) if any(texts) else (empty_BCD, empty_BP)
        return {
            "prompt_embeds": torch.cat([clips_BCD, x_BLD], 1),
            "pooled_prompt_embeds": pooled_BP,
            "negative_prompt_embeds": torch.cat([empty_BCD, null_BLD], 1),
            "negative_pooled_prompt_embeds": empty_BP,
        }
