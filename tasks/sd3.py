"""Stable Diffusion 3 and 3.5 behind prompt embeddings, through diffusers' StableDiffusion3Pipeline.

The model reads the states of two CLIPs, side by side and zeros up to the T5's width, and behind them the T5's rows. The
CLIPs never saw the aligner's rows: here they always say the empty text, as does the pooled embedding. There is no text
mask, so only prompts of one length share a batch. Guidance reads the empty text as the pipeline's T5 does, 256 tokens
with padding as words like others, cut to the length of a prompt.

Shapes: B batch, C rows of the CLIPs, L rows of a prompt, D width of a row, P pooled width of both CLIPs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thinkdiff.tasks.diffusion import Decoder, Settings, TextRows, drawn_latents

if TYPE_CHECKING:
    import torch

ROWS = 256  # of the pipeline's own T5 texts
CLIPS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


class StableDiffusion3Decoder(Decoder):
    """A StableDiffusion3Pipeline that is given prompt embeddings."""

    pipelines = ("StableDiffusion3Pipeline",)
    denoiser = ("transformer", "SD3Transformer2DModel")
    left_out = ("text_encoder_3", "tokenizer_3")
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

    def _prepare(self) -> None:
        """The CLIPs' states (1, C, D) and pooled embedding (1, P) of the empty text."""
        pipeline = self.pipeline
        pipeline.text_encoder.to(self.device)
        pipeline.text_encoder_2.to(self.device)
        clips, _, pooled, _ = pipeline.encode_prompt(
            "", None, None, self.device, do_classifier_free_guidance=False, max_sequence_length=0
        )
        self.clips_1CD, self.pooled_1P = clips.to(self.held), pooled.to(self.held)
        pipeline.register_modules(**dict.fromkeys(CLIPS))

    def _noise(self, count: int, settings: Settings, generators: list[torch.Generator]) -> torch.Tensor:
        return drawn_latents(self.pipeline, settings, generators)

    def _inputs(
        self, x_BLD: torch.Tensor, mask_BL: torch.Tensor, null_BLD: torch.Tensor, settings: Settings
    ) -> dict[str, Any]:
        import torch

        clips_BCD = self.clips_1CD.expand(len(x_BLD), -1, -1)
        pooled_BP = self.pooled_1P.expand(len(x_BLD), -1)
        return {
            "prompt_embeds": torch.cat([clips_BCD, x_BLD], 1),
            "pooled_prompt_embeds": pooled_BP,
            "negative_prompt_embeds": torch.cat([clips_BCD, null_BLD], 1),
            "negative_pooled_prompt_embeds": pooled_BP,
        }
