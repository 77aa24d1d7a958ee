"""Random tiny checkpoints of the diffusion models beside FLUX: the real architectures, no training, no text encoders
but the CLIPs of Stable Diffusion 3.

All read prompt embeddings of width 32. Pictures have 32x32 pixels and videos 9 frames, 16x16 in DeepFloyd IF.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_diffusion import SIDE, WIDTH, make_tiny_flux, tiny_clip

from thinkdiff.tasks.qwen_engine import prepare_torchvision

VIDEO_ROWS, FRAMES, CLIP_ROWS = 14, 9, 77
IF_SIDE = 16


def autoencoder() -> Any:
    """3 x 32 x 32 pixels to 4 x 8 x 8 latents."""
    from diffusers import AutoencoderKL

    blocks: dict[str, Any] = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    vae = AutoencoderKL(
        latent_channels=4, norm_num_groups=2, layers_per_block=1, sample_size=SIDE,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5, shift_factor=0.06,
        mid_block_add_attention=False, **blocks,
    )  # fmt: skip
    return vae.eval()


def make_tiny_sd3(folder: Path) -> Path:
    """A StableDiffusion3Pipeline with both CLIPs, as 3.5 is: normed queries and keys, one block of dual attention."""
    prepare_torchvision()
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 4, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, caption_projection_dim=WIDTH, pooled_projection_dim=24,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    one, two = (tiny_clip(rows=CLIP_ROWS, projection=width, hidden=width) for width in (8, 16))
    nothing: dict[str, Any] = dict.fromkeys(("text_encoder_3", "tokenizer_3"))
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=autoencoder(),
        text_encoder=one["text_encoder"], tokenizer=one["tokenizer"], text_encoder_2=two["text_encoder"],
        tokenizer_2=two["tokenizer"], **nothing,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def make_tiny_pixart(folder: Path, *, sigma: bool = False) -> Path:
    """PixArt-Sigma, or PixArt-alpha with the sizes of pictures among its conditions, as its 1024 model has them."""
    prepare_torchvision()
    import torch
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    torch.manual_seed(1)
    transformer = PixArtTransformer2DModel(
        sample_size=SIDE // 4 if sigma else 128, patch_size=2, in_channels=4, out_channels=8, num_layers=1,
        attention_head_dim=12, num_attention_heads=2, cross_attention_dim=24, caption_channels=WIDTH,
        norm_type="ada_norm_single",
    )  # fmt: skip
    kind: Any = PixArtSigmaPipeline if sigma else PixArtAlphaPipeline
    kind(
        transformer=transformer, scheduler=DPMSolverMultistepScheduler(), vae=autoencoder(), text_encoder=None,
        tokenizer=None,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_tiny_sigma(folder: Path) -> Path:
    return make_tiny_pixart(folder, sigma=True)


def make_tiny_if(folder: Path) -> Path:
    """A stage I IFPipeline: noise at each step, a learned variance, dynamic thresholds, text among the time's terms."""
    prepare_torchvision()
    import torch
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel

    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=IF_SIDE, in_channels=3, out_channels=6, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), cross_attention_dim=32,
        encoder_hid_dim=WIDTH, attention_head_dim=4, addition_embed_type="text", addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift", act_fn="gelu", norm_num_groups=4,
    )  # fmt: skip
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.5,
        variance_type="learned_range",
    )  # fmt: skip
    nothing: dict[str, Any] = dict.fromkeys(
        ("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker")
    )
    IFPipeline(unet=unet, scheduler=scheduler, requires_safety_checker=False, **nothing).save_pretrained(folder)
    return folder


def make_tiny_cogvideox(folder: Path, rows: int = VIDEO_ROWS) -> Path:
    """A CogVideoXPipeline as the 5B model is: rotary positions and a sampler that adds noise; of 14 rows, not 226."""
    prepare_torchvision()
    import torch
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDPMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    torch.manual_seed(3)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=WIDTH, num_layers=1, sample_width=SIDE // 8, sample_height=SIDE // 8, sample_frames=FRAMES,
        patch_size=2, temporal_compression_ratio=4, max_text_seq_length=rows,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    channels: dict[str, Any] = {"block_out_channels": (8, 8, 8, 8)}
    vae = AutoencoderKLCogVideoX(
        **channels, latent_channels=4, layers_per_block=1, norm_num_groups=2,
        sample_height=SIDE, sample_width=SIDE,
    )  # fmt: skip
    with torch.no_grad():
        vae.decoder.conv_out.conv.weight.mul_(0.1)  # else nearly every pixel is black or white
    nothing: dict[str, Any] = dict.fromkeys(("tokenizer", "text_encoder"))
    CogVideoXPipeline(
        transformer=transformer, vae=vae, scheduler=CogVideoXDPMScheduler(timestep_spacing="trailing"), **nothing
    ).save_pretrained(folder)
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "flux": make_tiny_flux,
    "sd3": make_tiny_sd3,
    "alpha": make_tiny_pixart,
    "sigma": make_tiny_sigma,
    "if": make_tiny_if,
    "cogvideox": make_tiny_cogvideox,
}
