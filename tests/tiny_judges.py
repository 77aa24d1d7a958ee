"""Tiny random judges of the real architectures: a LLaVA-1.5 and a CLIP, saved as the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thinkdiff.tasks.qwen_engine import prepare_torchvision

SIDE, PATCH = 28, 14


def make_tokenizer(specials: list[str], whole: str) -> Any:
    """Bytes as tokens, and specials; `whole` is what becomes of a text A."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*specials, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=whole, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        additional_special_tokens=specials[2:],
    )  # fmt: skip


def make_tiny_llava(folder: Path, seed: int = 0) -> Path:
    """A random LLaVA whose words are bytes; most of its replies hold digits now and then."""
    prepare_torchvision()
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(seed)
    tokenizer = make_tokenizer(["<s>", "</s>", "<image>"], "<s> $A")
    vision: Any = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH, projection_dim=32,
    )  # fmt: skip
    text: Any = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        initializer_range=0.4,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=2)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    weights = (
        folder / "model.safetensors"
    )  # transformers 5 drops a level of the tower's names that the hub's files have
    tower = "vision_tower."
    named = {
        key.replace(tower, f"{tower}vision_model.") if key.startswith(tower) else key: value
        for key, value in load_file(weights).items()
    }
    save_file(named, weights, {"format": "pt"})
    image_processor: Any = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        image_processor, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token="<image>",
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """A random CLIP whose words are bytes."""
    prepare_torchvision()
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(seed)
    tokenizer = make_tokenizer(["<s>", "</s>"], "<s> $A </s>")
    sizes: dict[str, Any] = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    text: Any = CLIPTextConfig(**sizes, vocab_size=len(tokenizer), eos_token_id=1, max_position_embeddings=77)
    vision: Any = CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=PATCH)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    image_processor: Any = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def make_tiny_dino(folder: Path, kind: str = "vit", seed: int = 0) -> Path:
    """A random ViT as DINO is published, without a pooler, or a random DINOv2 (`dinov2`)."""
    prepare_torchvision()
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(seed)
    sizes: dict[str, Any] = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE)
    if kind == "vit":
        ViTModel(ViTConfig(**sizes, intermediate_size=48, patch_size=PATCH), add_pooling_layer=False).save_pretrained(
            folder
        )
        ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    else:
        Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2, patch_size=PATCH)).save_pretrained(folder)
        BitImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
            folder
        )
    return folder
