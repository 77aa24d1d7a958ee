"""Trains `mini-judge`, a stock ResNet classifier that names the object of a picture and its value in every family.

Its labels are `object/star`, `color/red`, `color/none`, ...; a softmax is taken within a prefix. It alone (with the
autoencoder) sees held-out pairs, since it has to recognise them. It trains on slightly moved and noisy pictures, as
generated ones are never quite clean.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from thinkdiff.mini import renderer, training, world

NAME = "mini-judge"
SIDE = 64  # ResNet's stem shrinks by four; at 32 the textures would be gone
STEPS, BATCH, LR = 1500, 128, 2e-3
LABELS = (
    *(f"object/{name}" for name in world.OBJECTS),
    *(f"{family}/{value}" for family, values in world.FAMILIES.items() for value in ("none", *values)),
)
GROUP_SIZES = (len(world.OBJECTS), *(1 + len(values) for values in world.FAMILIES.values()))
GROUP_NAMES = ("object", *world.FAMILY_NAMES)


def train_judge(weights: Path, seed: int) -> training.Report:
    """Train on all pairs, save to `weights/mini-judge`, score on fresh pictures."""
    rng, clock = training.start(seed), training.Clock()
    x_NCHW, y_NG = _examples(rng, mixed=12_000, each_single=24)
    model = _new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    bar = training.Progress("judge", STEPS)
    for step in range(STEPS):
        training.set_lr(optimizer, LR * min((step + 1) / 100, 1.02 - step / STEPS))
        rows = torch.from_numpy(rng.integers(len(x_NCHW), size=BATCH))
        x = x_NCHW[rows] + torch.randn(BATCH, 3, 32, 32) * torch.rand(BATCH, 1, 1, 1) * 0.15
        if step % 2:
            down, right = rng.integers(0, 5, 2)
            x = F.pad(x, (2, 2, 2, 2), mode="replicate")[:, :, down : down + 32, right : right + 32]
        with training.autocast():
            logits = model(pixel_values=_enlarge(x).contiguous(memory_format=torch.channels_last)).logits
        groups = logits.float().split(GROUP_SIZES, dim=1)
        loss = torch.stack([F.cross_entropy(g, y_NG[rows, i]) for i, g in enumerate(groups)]).sum()
        bar.update(training.optimizer_step(loss, model, optimizer))
    bar.close()
    model.eval()
    training.round_to_bfloat16(model)
    training.save_folder(weights / NAME, lambda folder: _write(model, folder))
    spent, test_seed = clock.seconds(), 30_000 + seed
    model = ResNetForImageClassification.from_pretrained(weights / NAME, dtype=torch.float32).eval()
    x_NCHW, y_NG = _examples(np.random.default_rng(test_seed), mixed=1500, each_single=2)
    right = (read(model, x_NCHW) == y_NG).float().mean(0)
    return training.write_report(
        weights / NAME,
        {
            "what": "ResNetForImageClassification: names the object and the value in every family",
            "parameters": training.parameter_count(model),
            "seed": seed,
            "steps": STEPS,
            **spent,
            "scores": {name: round(float(right[i]), 4) for i, name in enumerate(GROUP_NAMES)},
            "test_seed": test_seed,
        },
    )


@torch.no_grad()
def read(model: ResNetForImageClassification, pictures_NCHW: torch.Tensor) -> torch.Tensor:
    """`(N, 6)` attributes the judge sees in `(N, 3, 32, 32)` pictures in [-1, 1]."""
    answers = []
    for chunk in pictures_NCHW.split(256):
        groups = model(pixel_values=_enlarge(chunk)).logits.split(GROUP_SIZES, dim=1)
        answers.append(torch.stack([group.argmax(1) for group in groups], 1))
    return torch.cat(answers)


def to_tensor(pictures_NHWC: renderer.Pictures) -> torch.Tensor:
    """uint8 pictures to float32 `(N, 3, H, W)` in [-1, 1]."""
    return torch.from_numpy(pictures_NHWC).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def _enlarge(x_NCHW: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x_NCHW, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def _examples(rng: np.random.Generator, mixed: int, each_single: int) -> tuple[torch.Tensor, torch.Tensor]:
    singles = world.single_attribute_pictures(all_pairs=True).repeat(each_single, axis=0)
    attributes = np.concatenate([world.sample_attributes(mixed, rng, all_pairs=True), singles])
    pictures = renderer.through_jpeg(renderer.render(attributes, rng))
    return to_tensor(pictures), torch.from_numpy(attributes)


def _new_model() -> ResNetForImageClassification:
    config = ResNetConfig(
        embedding_size=24,
        hidden_sizes=[32, 64, 96],
        depths=[1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    return ResNetForImageClassification(config).to(memory_format=torch.channels_last)  # pyright: ignore


def _write(model: ResNetForImageClassification, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore
    training.store_float32_config(folder)
    ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
