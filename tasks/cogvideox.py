"""CogVideoX behind prompt embeddings, through diffusers' CogVideoXPipeline: a video of F frames for each prompt.

The model always reads the same number of rows (226) and no mask. Its pipeline's T5 is not told of padding either, so
that the rows behind a text are states of padding tokens that the model knows. An aligned prompt has none: they are
those of the empty text at the same places, or zeros. Guidance reads the empty text in all rows.

Shapes: B batch, L rows of a prompt, D width of a row, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thinkdiff.schemas.errors import SpecError
from thinkdiff.tasks.diffusion import Decoder, Settings, TextRows, drawn

if TYPE_CHECKING:
    import torch


class CogVideoXDecoder(Decoder):
    """A CogVideoXPipeline that is given prompt embeddings."""

    pipelines = ("CogVideoXPipeline",)
    denoiser = ("transformer", "CogVideoXTransformer3DModel")
    left_out = ("text_encoder", "tokenizer")
    video = True
    float32 = "inputs"  # the sampler adds noise in their precision

    @property
    def width(self) -> int:
        return self.pipeline.transformer.config.text_embed_dim

    @property
    def text(self) -> TextRows:
        rows = self.pipeline.transformer.config.max_text_seq_length
        return TextRows(longest=rows, fixed=True, null=rows, t5_mask=False)

    @property
    def multiple(self) -> int:
        return self.pipeline.vae_scale_factor_spatial * self.pipeline.transformer.config.patch_size

    def _prepare(self) -> None:
        self.pipeline.vae.enable_slicing()  # decodes one video at a time: the same pixels in less memory

    def _noise(self, count: int, settings: Settings, generators: list[torch.Generator]) -> torch.Tensor:
        pipeline, config = self.pipeline, self.pipeline.transformer.config
        frames = (settings.frames - 1) // pipeline.vae_scale_factor_temporal + 1
        frames += -frames % (config.patch_size_t or 1)  # CogVideoX 1.5 draws more and drops them
        factor = pipeline.vae_scale_factor_spatial
        return drawn((frames, config.in_channels, settings.height // factor, settings.width // factor), generators)

    def _inputs(
        self,
        x_BLD: torch.Tensor,
        mask_BL: torch.Tensor,
        null_BLD: torch.Tensor,
        settings: Settings,
        texts: Sequence[str],
    ) -> dict[str, Any]:
        return {"prompt_embeds": x_BLD, "negative_prompt_embeds": null_BLD, "num_frames": settings.frames}

    def _check_settings(self, settings: Settings) -> None:
        super()._check_settings(settings)
        vae = self.pipeline.vae
        together = self.pipeline.vae_scale_factor_temporal * vae.num_latent_frames_batch_size
        if over := (settings.frames - 1) % together:
            raise SpecError(
                f"frames: found {settings.frames}, expected one more than a multiple of {together}. The first stands "
                f"alone and the autoencoder makes {together} at a time; take {settings.frames - over}."
            )
