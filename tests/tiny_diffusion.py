"""Random tiny checkpoints of the models around the aligner: a FluxPipeline, a T5, a judge. Real
architectures, no training.

32x32 pictures become 12 x 8 x 8 latents and 16 tokens of 48 channels; prompt embeddings have width 32. The T5
reads the miniature's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thinkdiff.tasks.qwen_engine import prepare_torchvision

SIDE, WIDTH, POOLED = 32, 32, 16


def make_tiny_flux(folder: Path, *, clip: bool = False, seed: int = 0) -> Path:
    """A whole FluxPipeline folder; `clip` adds a CLIP text encoder, without which the pooled embedding is
    zeros."""
    prepare_torchvision()
    import torch
    from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline

    torch.manual_seed(seed)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), latent_channels=12,
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), scaling_factor=1.3, shift_factor=0.1,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(1.7)  # else every picture is nearly grey
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    parts |= {"scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0), "vae": vae}
    parts |= tiny_clip() if clip else {}
    FluxPipeline(transformer=tiny_transformer(seed), **parts).save_pretrained(folder)
    return folder


def tiny_transformer(seed: int):
    import torch
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(seed)
    return FluxTransformer2DModel(
        patch_size=1, in_channels=48, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=POOLED, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def tiny_clip(rows: int = 12, projection: int | None = None, hidden: int = POOLED) -> dict:
    """A CLIP's text encoder and tokenizer; with a projection it is of the kind that Stable Diffusion 3 has."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=hidden, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=rows, bos_token_id=0, eos_token_id=1,
        projection_dim=projection or 512,
    )  # fmt: skip
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=rows)
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return {"text_encoder": kind(config), "tokenizer": tokenizer}


def make_tiny_t5(folder: Path, *, seed: int = 0) -> Path:
    """A whole T5 (encoder and decoder) of width 32 with the miniature's tokenizer."""
    prepare_torchvision()
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from thinkdiff.mini.words import t5_tokenizer

    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    config.decoder_start_token_id = 0
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_judge(folder: Path, labels: Sequence[str], *, seed: int = 0) -> Path:
    """A ResNet classifier over such labels for pictures of any size, which it brings to 32x32."""
    prepare_torchvision()
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    torch.manual_seed(seed)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    model = ResNetForImageClassification(config).eval()
    with torch.no_grad():  # centred on random pictures, else one label wins them all
        blocks = torch.rand(64, 3, SIDE // 4, SIDE // 4) * 2 - 1
        pictures = blocks.repeat_interleave(4, -1).repeat_interleave(4, -2)
        model.classifier[-1].bias -= model(pictures).logits.mean(0)  # pyright: ignore
    model.save_pretrained(folder)
    ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder
