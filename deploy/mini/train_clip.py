"""Trains `mini-openai-clip`, a CLIPModel at a tiny size, by contrast of pictures and captions: a judge of likeness.

It has seen all pairs, as `mini-judge` has, and takes no part in drawing. A caption names a random part of what its
picture shows, so a picture that a caption of the batch also fits is no contrast to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

from thinkdiff.mini import dataset, renderer, training, words, world

NAME = "mini-openai-clip"
SIDE, PATCH = renderer.SIDE, 4
WIDTH, VISION_LAYERS, TEXT_LAYERS, HEADS, SPACE = 64, 3, 2, 4, 48
STEPS, BATCH, LR = 1200, 128, 1.5e-3
PICTURES, LONGEST = 14_000, 40
NAMED_ODDS = 0.6
GROUPS = ("object", *world.FAMILY_NAMES)
LEADS = (*dataset.ALT_TEXTS, *(f"{lead} a {{}}".strip() for lead in world.LEADS))
Named = np.ndarray[Any, np.dtype[np.int64]]


def train_clip(weights: Path, seed: int) -> training.Report:
    """Train on all pairs, save to `weights/mini-openai-clip`, score on fresh pictures."""
    rng, clock = training.start(seed), training.Clock()
    attributes = world.sample_attributes(PICTURES, rng, all_pairs=True)
    x_NCHW = pixels(renderer.through_jpeg(renderer.render(attributes, rng)))
    model, said = new_model(), tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05)
    bar = training.Progress("clip", STEPS)
    for step in range(STEPS):
        training.set_lr(optimizer, LR * min((step + 1) / 150, 1.02 - step / STEPS))
        rows = rng.integers(len(x_NCHW), size=BATCH)
        named = part_of(attributes[rows], rng)
        text = said([caption(row, rng) for row in named], padding=True, return_tensors="pt")
        with training.autocast():
            out = model(pixel_values=x_NCHW[torch.from_numpy(rows)], **text)
        logits = out.logits_per_image.float()
        also = torch.from_numpy(fits(attributes[rows], named)) & ~torch.eye(BATCH, dtype=torch.bool)
        logits, labels = logits.masked_fill(also, -1e4), torch.arange(BATCH)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        bar.update(training.optimizer_step(loss, model, optimizer))
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.0)
    bar.close()
    model.eval()
    training.round_to_bfloat16(model)
    training.save_folder(weights / NAME, lambda folder: write(model, said, folder))
    return report(weights / NAME, seed, clock.seconds())


def new_model() -> Any:
    """Patches of 4x4, 65 tokens; captions of up to 40 words, read at their end token."""
    said = tokenizer()
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": HEADS, "projection_dim": SPACE
    }  # fmt: skip
    text: Any = CLIPTextConfig(
        **sizes, num_hidden_layers=TEXT_LAYERS, vocab_size=len(said), max_position_embeddings=LONGEST,
        eos_token_id=words.T5_EOS_ID, bos_token_id=words.T5_EOS_ID, pad_token_id=words.T5_PAD_ID,
    )  # fmt: skip
    vision: Any = CLIPVisionConfig(**sizes, num_hidden_layers=VISION_LAYERS, image_size=SIDE, patch_size=PATCH)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=SPACE))


def tokenizer() -> PreTrainedTokenizerFast:
    """The miniature T5's words with `</s>` behind; longer texts are cut."""
    made = words.t5_tokenizer()
    assert isinstance(made.backend_tokenizer.post_processor, processors.TemplateProcessing)
    made.model_max_length = LONGEST
    return made


def pixels(pictures_NHWC: renderer.Pictures) -> torch.Tensor:
    """uint8 pictures as the model reads them: float32 (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures_NHWC).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def part_of(attributes_N6: world.Attributes, rng: np.random.Generator) -> world.Attributes:
    """What a caption names of each picture: the object, and of what else there is a random part."""
    named = attributes_N6 * (rng.random(attributes_N6.shape) < NAMED_ODDS)
    named[:, 0] = attributes_N6[:, 0]
    return named


def caption(named: world.Attributes, rng: np.random.Generator) -> str:
    """The noun phrase in a random frame, with the detail sentences behind it every third time."""
    article, *phrase = world.noun_phrase(named)
    frame = LEADS[rng.integers(len(LEADS))].replace("a {}", f"{article} {{}}")
    details = world.detail_sentences(named, rng) if rng.random() < 1 / 3 else []
    return " ".join([frame.format(" ".join(phrase)), *([".", *details] if details else [])])


def fits(attributes_N6: world.Attributes, named_N6: world.Attributes) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(pictures, captions): whether all that a caption names is in a picture."""
    shown, said = attributes_N6[:, None], named_N6[None]
    same = (shown == said) | (said == 0)
    same[..., 0] = shown[..., 0] == said[..., 0]
    return same.all(-1)


def write(model: Any, said: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights in bfloat16 that compute in float32, and the processor."""
    model.to(torch.bfloat16).save_pretrained(folder)
    training.store_float32_config(folder)
    image_processor: Any = CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    CLIPProcessor(image_processor, said).save_pretrained(folder)


def report(folder: Path, seed: int, spent: dict[str, float]) -> training.Report:
    """Of fresh pictures: how often the nearest of a family's captions is the right one, and of 100 whole captions."""
    test_seed = 80_000 + seed
    rng = np.random.default_rng(test_seed)
    attributes = world.sample_attributes(2000, rng, all_pairs=True)
    x_NCHW = pixels(renderer.through_jpeg(renderer.render(attributes, rng)))
    model: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    said = CLIPProcessor.from_pretrained(folder).tokenizer
    with torch.inference_mode():
        seen_ND = F.normalize(features(model.get_image_features(pixel_values=x_NCHW)), dim=-1)

        def nearest(texts: list[str], rows: slice | np.ndarray[Any, Any] = slice(None)) -> Any:
            text = said(texts, padding=True, return_tensors="pt")
            meant = F.normalize(features(model.get_text_features(**text)), dim=-1)
            return (seen_ND[rows] @ meant.T).argmax(1).numpy()

        scores = {"object": float((nearest([f"a {o}" for o in world.OBJECTS]) == attributes[:, 0]).mean())}
        for family, values in enumerate(world.FAMILIES.values(), 1):
            for_rows = np.flatnonzero(attributes[:, family])
            right = []
            for obj in range(len(world.OBJECTS)):
                rows = for_rows[attributes[for_rows, 0] == obj]
                texts = [" ".join(world.noun_phrase(one_value(obj, family, v))) for v in range(1, len(values) + 1)]
                right += (nearest(texts, rows) + 1 == attributes[rows, family]).tolist()
            scores[GROUPS[family]] = float(np.mean(right))
        whole = [" ".join(world.noun_phrase(row)) for row in attributes[:100]]
        scores["one of 100 captions"] = float((nearest(whole, slice(0, 100)) == np.arange(100)).mean())
    return training.write_report(
        folder,
        {
            "what": "CLIPModel: likeness of pictures to pictures and to words, for the gallery's tables",
            "parameters": training.parameter_count(model),
            "seed": seed,
            "steps": STEPS,
            **spent,
            "scores": {"nearest_caption": {name: round(share, 4) for name, share in scores.items()}},
            "test_seed": test_seed,
        },
    )


def one_value(obj: int, family: int, value: int) -> world.Attributes:
    """An object with one named value."""
    row = np.zeros(1 + len(world.FAMILIES), np.int64)
    row[0], row[family] = obj, value
    return row


def features(found: Any) -> torch.Tensor:
    """What `get_image_features` gives out, by itself or in an output."""
    return getattr(found, "pooler_output", found)
