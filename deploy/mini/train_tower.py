"""Trains `mini-eva-clip`, BLIP-2's vision tower (an EVA-CLIP ViT) at a tiny size, by contrast with captions.

As CLIP does: the mean of the picture's pooled tokens and a bag of the caption's words are drawn together within a
batch. The words' side is thrown away; the tower's last states are what ThinkDiff-CLIP reads. It sees no held-out pair.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import Blip2VisionConfig, Blip2VisionModel

from thinkdiff.mini import renderer, training, world
from thinkdiff.tasks.vision_tower import MEAN, STD, VisionTower, pooled

NAME = "mini-eva-clip"
SIDE, PATCH = 32, 4
WIDTH, LAYERS, HEADS = 96, 4, 4
STEPS, BATCH, LR = 1200, 128, 1.5e-3
PICTURES = 14_000
GROUPS = ("object", *world.FAMILY_NAMES)
PARTS = (len(world.OBJECTS), *(1 + len(values) for values in world.FAMILIES.values()))


def train_tower(weights: Path, seed: int) -> training.Report:
    """Train on all but the held-out pairs, save to `weights/mini-eva-clip`, score on fresh pictures."""
    rng, clock = training.start(seed), training.Clock()
    attributes = world.sample_attributes(PICTURES, rng)
    x_NCHW = pixels(renderer.through_jpeg(renderer.render(attributes, rng)))
    tower, words, scale = new_tower(), nn.Linear(sum(PARTS), WIDTH), nn.Parameter(torch.tensor(2.0))
    said_NW = bags(attributes)
    both = nn.ModuleList([tower, words])
    optimizer = torch.optim.AdamW([*both.parameters(), scale], lr=LR, weight_decay=0.05)
    bar = training.Progress("tower", STEPS)
    for step in range(STEPS):
        training.set_lr(optimizer, LR * min((step + 1) / 150, 1.02 - step / STEPS))
        rows = torch.from_numpy(rng.integers(len(x_NCHW), size=BATCH))
        with training.autocast():
            states = tower(pixel_values=x_NCHW[rows]).last_hidden_state
        seen_BD = F.normalize(pooled(states.float()).mean(1), dim=-1)
        # what a caption names is a random part of what there is to see, as in the collections
        named = said_NW[rows] * named_parts(len(rows), rng)
        meant_BD = F.normalize(words(named), dim=-1)
        logits = scale.exp().clamp(max=50) * seen_BD @ meant_BD.T
        same = (named[:, None] == named[None]).all(-1)  # two captions of one text are no contrast
        logits = logits.masked_fill(same & ~torch.eye(len(rows), dtype=torch.bool), -1e4)
        labels = torch.arange(len(rows))
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        bar.update(training.optimizer_step(loss, both, optimizer))
    bar.close()
    tower.eval()
    training.round_to_bfloat16(tower)
    training.save_folder(weights / NAME, lambda folder: write(tower, folder))
    return report(weights / NAME, seed, clock.seconds())


def new_tower() -> Any:
    """BLIP-2's tower with patches of 4x4: 1 + 8x8 tokens, pooled to 1 + 4x4."""
    config = Blip2VisionConfig(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        image_size=SIDE, patch_size=PATCH, initializer_range=0.02,
    )  # fmt: skip
    return Blip2VisionModel(config)


def pixels(pictures_NHWC: renderer.Pictures) -> torch.Tensor:
    """uint8 pictures as the tower reads them."""
    return torch.from_numpy((pictures_NHWC.astype(np.float32) / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def bags(attributes: world.Attributes) -> torch.Tensor:
    """One place for each object and each value of a family: float32 (N, W)."""
    rows = torch.from_numpy(attributes)
    return torch.cat([F.one_hot(rows[:, i], size).float() for i, size in enumerate(PARTS)], 1)


def named_parts(count: int, rng: np.random.Generator) -> torch.Tensor:
    """The object always, each family three times in five: (count, W) of zeros and ones."""
    chosen = np.concatenate([np.ones((count, 1)), rng.random((count, len(PARTS) - 1)) < 0.6], 1)
    return torch.from_numpy(chosen.repeat(PARTS, axis=1)).float()


def write(tower: Any, folder: Path) -> None:
    """Weights in bfloat16 that compute in float32."""
    tower.to(torch.bfloat16).save_pretrained(folder)
    training.store_float32_config(folder)


def report(folder: Path, seed: int, spent: dict[str, float]) -> training.Report:
    """How well a linear reader finds object and values in the pooled tokens of fresh pictures."""
    test_seed = 70_000 + seed
    rng = np.random.default_rng(test_seed)
    attributes = world.sample_attributes(3000, rng)
    pictures = renderer.through_jpeg(renderer.render(attributes, rng))
    tower = VisionTower(str(folder), "cpu")
    states = np.concatenate([tower([Image.fromarray(p) for p in pictures[i : i + 250]]) for i in range(0, 3000, 250)])
    x_NF = np.concatenate([states.mean(1), np.ones((len(states), 1), np.float32)], 1).astype(np.float64)
    train, test = slice(0, 2000), slice(2000, 3000)
    scores = {}
    for i, name in enumerate(GROUPS):
        y_NC = np.eye(PARTS[i])[attributes[:, i]]
        solved = np.linalg.solve(x_NF[train].T @ x_NF[train] + 0.1 * np.eye(x_NF.shape[1]), x_NF[train].T @ y_NC[train])
        scores[name] = round(float(((x_NF[test] @ solved).argmax(1) == attributes[test, i]).mean()), 4)
    return training.write_report(
        folder,
        {
            "what": "Blip2VisionModel: the EVA-CLIP tower of ThinkDiff-CLIP",
            "parameters": training.parameter_count(tower.model),
            "seed": seed,
            "steps": STEPS,
            **spent,
            "scores": {"read_linearly_from_the_mean_of_the_tokens": scores},
            "test_seed": test_seed,
        },
    )
