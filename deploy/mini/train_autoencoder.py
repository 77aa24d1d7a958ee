"""Trains the FLUX autoencoder, a stock AutoencoderTiny: 32x32 pictures to 12 x 8 x 8 latents and back.

Noise is added to the latents while it trains and their channels are held at mean 0 and variance 1, so that a small
error of the diffusion model stays a small error of the picture. It sees all pairs: it knows pictures, not words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from transformers import ResNetForImageClassification

from thinkdiff.mini import renderer, train_judge, training, world

NAME = "mini-flux/vae"
STEPS, BATCH, LR = 2500, 32, 3e-3
LATENT_CHANNELS = 12
LATENT_NOISE = 0.10
SPREAD_WEIGHT = 0.05


def train_autoencoder(weights: Path, seed: int) -> training.Report:
    """Train, save to `weights/mini-flux/vae`, score by what the judge reads in reconstructions."""
    rng, clock = training.start(seed), training.Clock()
    x_NCHW, _ = _examples(rng, mixed=12_000, each_single=16)
    model = _new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, betas=(0.9, 0.98))
    bar = training.Progress("autoencoder", STEPS)
    for step in range(STEPS):
        training.set_lr(optimizer, LR * min((step + 1) / 100, 1.02 - step / STEPS))
        x = x_NCHW[torch.from_numpy(rng.integers(len(x_NCHW), size=BATCH))]
        x = x.contiguous(memory_format=torch.channels_last)
        with training.autocast():
            z = model.encode(x).latents.float()
            level_B111 = torch.rand(BATCH, 1, 1, 1) * LATENT_NOISE
            seen = model.decode(z + level_B111 * torch.randn_like(z)).sample.float()
        spread = z.mean((0, 2, 3)).square().mean() + (z.std((0, 2, 3)) - 1).square().mean()
        loss = _difference(seen, x) + SPREAD_WEIGHT * spread
        bar.update(training.optimizer_step(loss, model, optimizer))
    bar.close()
    model.eval()
    training.round_to_bfloat16(model)
    with torch.no_grad():
        z = torch.cat([model.encode(c).latents for c in x_NCHW[:4000].split(500)])
    model.register_to_config(scaling_factor=float(1 / z.std()), shift_factor=float(z.mean()))
    model.to(torch.bfloat16)
    training.save_folder(weights / NAME, lambda folder: model.save_pretrained(folder))
    return training.write_report(weights / NAME, _report(weights, seed, clock))


def _difference(seen: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Errors of the pixels and of their steps to the next pixel; the latter keep dots and grains from fading."""
    error = seen - x
    steps = error.diff(dim=2).square().mean() + error.diff(dim=3).square().mean()
    return error.square().mean() + 0.3 * error.abs().mean() + 0.5 * steps


def _new_model() -> Any:
    widths = (32, 32, 32)  # AutoencoderTiny needs one width for all levels
    model: Any = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=LATENT_CHANNELS,
    )
    return model.to(memory_format=torch.channels_last)


def _examples(rng: np.random.Generator, mixed: int, each_single: int) -> tuple[torch.Tensor, world.Attributes]:
    singles = world.single_attribute_pictures(all_pairs=True).repeat(each_single, axis=0)
    attributes = np.concatenate([world.sample_attributes(mixed, rng, all_pairs=True), singles])
    return train_judge.to_tensor(renderer.through_jpeg(renderer.render(attributes, rng))), attributes


def _report(weights: Path, seed: int, clock: training.Clock) -> training.Report:
    spent, test_seed = clock.seconds(), 40_000 + seed
    model: Any = AutoencoderTiny.from_pretrained(weights / NAME, torch_dtype=torch.float32)
    judge = ResNetForImageClassification.from_pretrained(weights / train_judge.NAME, dtype=torch.float32).eval()
    x_NCHW, attributes = _examples(np.random.default_rng(test_seed), mixed=1000, each_single=2)
    with torch.no_grad():
        z = model.encode(x_NCHW).latents
        seen, blurred = (model.decode(z + s * torch.randn_like(z)).sample.clamp(-1, 1) for s in (0.0, 0.2))
    scores: dict[str, Any] = {"mean_squared_error": round(float(F.mse_loss(seen, x_NCHW)), 5)}
    scores["latent_channel_stds"] = [round(float(s), 2) for s in z.std((0, 2, 3))]
    for prefix, pictures in (("original", x_NCHW), ("rebuilt", seen), ("rebuilt_noise_0.2", blurred)):
        right = (train_judge.read(judge, pictures).numpy() == attributes).mean(0)
        scores |= {f"{prefix}_{n}": round(float(r), 4) for n, r in zip(train_judge.GROUP_NAMES, right, strict=True)}
    return {
        "what": "AutoencoderTiny of mini-flux: 3x32x32 pictures to 12x8x8 latents",
        "parameters": training.parameter_count(model),
        "seed": seed,
        "steps": STEPS,
        **spent,
        "scores": scores,
        "test_seed": test_seed,
    }
