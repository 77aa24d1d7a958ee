"""Random tiny Qwen-VL checkpoints for tests: the real architectures, a real tokenizer and image processor, no training.

32x32 images become 16 patches of 8x8 and, merged 2x2, 4 image tokens. Hidden states have a standard deviation near 1
and the logits enough spread for greedy decoding to be stable, so that two engines can be compared number by number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from thinkdiff.tasks.qwen_engine import prepare_torchvision

Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
SIDE = 32
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
WORDS = "system user assistant You are a helpful Describe the image What is here Word red blue next picture Picture"
TEMPLATE = """\
{% set image_count = namespace(value=0) %}{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}\
{% set image_count.value = image_count.value + 1 %}\
{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def random_image(seed: int, side: int = SIDE) -> np.ndarray:
    """A blocky random picture, uint8 (side, side, 3)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    return blocks.repeat(4, 0).repeat(4, 1)


def _byte_pairs() -> tuple[dict[str, int], Any]:
    """Vocabulary and merges of a byte-level BPE in which the frequent words of the prompts are single tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocab = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in WORDS.split():
        for spelling in (word, "Ġ" + word):
            for end in range(2, len(spelling) + 1):
                if spelling[:end] not in vocab:
                    merges.append((spelling[: end - 1], spelling[end - 1]))
                    vocab[spelling[:end]] = len(vocab)
    for token in SPECIAL:
        vocab[token] = len(vocab)
    return vocab, merges


def make_tiny_qwen_vl(
    folder: Path, family: Family = "qwen2_vl", *, hidden: int = 128, layers: int = 3, seed: int = 0
) -> Path:
    """Write a random checkpoint (float32, about 0.9M parameters) with tokenizer and processor to `folder`."""
    prepare_torchvision()
    import transformers

    vocab, merges = _byte_pairs()
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocab, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>",
        extra_special_tokens=SPECIAL[1:], model_max_length=2048,
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    text: dict[str, Any] = dict(
        vocab_size=len(vocab), hidden_size=hidden, intermediate_size=320, num_hidden_layers=layers,
        num_attention_heads=hidden // 32, num_key_value_heads=hidden // 64, max_position_embeddings=2048,
        rms_norm_eps=1e-6, bos_token_id=vocab["<|endoftext|>"], eos_token_id=vocab["<|im_end|>"],
        pad_token_id=vocab["<|endoftext|>"], tie_word_embeddings=False, rope_parameters=rope,
    )  # fmt: skip
    vision: dict[str, Any] = dict(
        depth=3, num_heads=2, patch_size=8, spatial_merge_size=2, temporal_patch_size=2, in_channels=3
    )
    if family == "qwen2_vl":
        vision |= dict(embed_dim=64, hidden_size=hidden, mlp_ratio=4)
    else:
        vision |= dict(hidden_size=64, out_hidden_size=hidden, intermediate_size=128)
    if family == "qwen2_5_vl":  # windows of 2x2 image tokens, but for the last layer
        vision |= dict(window_size=32, fullatt_block_indexes=[2])
    if family == "qwen3_vl":
        vision |= dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
        text |= dict(head_dim=32, rope_parameters=rope | {"mrope_section": [6, 5, 5], "mrope_interleaved": True})
    config = transformers.AutoConfig.for_model(
        family, text_config=text, vision_config=vision, tie_word_embeddings=False,
        image_token_id=vocab["<|image_pad|>"], video_token_id=vocab["<|video_pad|>"],
        vision_start_token_id=vocab["<|vision_start|>"], vision_end_token_id=vocab["<|vision_end|>"],
    )  # fmt: skip
    model: Any = transformers.AutoModelForImageTextToText.from_config(config)
    _draw_weights(model, seed)
    model.lm_head.weight.data[vocab["<|im_end|>"]] *= 1.25  # so that some answers end early
    ends = [vocab["<|im_end|>"], vocab["<|endoftext|>"]]
    model.generation_config = transformers.GenerationConfig(eos_token_id=ends, pad_token_id=ends[1])
    model.save_pretrained(folder)
    pixels: dict[str, Any] = {"min_pixels": SIDE * SIDE, "max_pixels": 4 * SIDE * SIDE, "patch_size": 8}
    images = transformers.Qwen2VLImageProcessor(**pixels)
    sizes: dict[str, Any] = {"size": {"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}, "patch_size": 8}
    new = family == "qwen3_vl"
    videos = transformers.Qwen3VLVideoProcessor(**sizes) if new else transformers.Qwen2VLVideoProcessor(**pixels)
    processor = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family] + "Processor"
    getattr(transformers, processor)(images, tokenizer, videos, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


def make_tiny_blip2(folder: Path, *, side: int = 56, seed: int = 0) -> Any:
    """Write a random BLIP-2 with patches of 14 pixels and a T5 of width 32, in pieces of 300 kB; returns the model."""
    prepare_torchvision()
    import torch
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    torch.manual_seed(seed)
    config = Blip2Config(
        vision_config=dict(
            hidden_size=176, intermediate_size=200, num_hidden_layers=3, num_attention_heads=4, image_size=side,
            patch_size=14, initializer_range=0.05,
        ),
        qformer_config=dict(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40, vocab_size=30,
            encoder_hidden_size=176,
        ),
        text_config=dict(model_type="t5", d_model=32, d_kv=8, num_heads=4, d_ff=40, num_layers=1, vocab_size=60),
    )  # fmt: skip
    model: Any = Blip2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for block in model.vision_model.encoder.layers:
            block.self_attn.qkv.bias.normal_()
        for norm in (m for m in model.vision_model.modules() if isinstance(m, torch.nn.LayerNorm)):
            norm.weight.normal_(1, 0.2)
            norm.bias.normal_(0, 0.2)
    model.save_pretrained(folder, max_shard_size="300KB")
    return model


def _draw_weights(model, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):  # norms
                parameter.copy_(1 + 0.25 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(1.5 * noise / parameter[0].numel() ** 0.5)
