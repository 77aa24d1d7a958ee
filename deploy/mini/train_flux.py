"""Trains `mini-flux`, a FLUX transformer of 1.2 M parameters, on the T5 encoder's outputs for captions of the world.

Three runs: a clean start; from it the released model, whose prompt embeddings are disturbed while it trains; and, also
from the clean start, `mini-flux-less-robust`, which meets mild noise only, at the end. The noise is a stand-in for the
robustness that a FLUX trained on the world's captions has by itself: without it the aligner's features, which are near
T5's but not equal to them, make no picture here.

It learns on unfolded T5 outputs and `context_embedder` is folded at release. FLUX takes no text mask, so a batch holds
captions of one length; the empty prompt is T5's `</s>` repeated to any length, since FluxPipeline wants the negative
prompt as long as the prompt. Legend: B batch, L words, D prompt width, T latent tokens, K channels of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import nn
from transformers import ResNetForImageClassification, T5EncoderModel

from thinkdiff.mini import renderer, train_autoencoder, train_judge, train_t5, training, words, world

NAME, LESS_ROBUST_NAME, START_NAME = "mini-flux", "mini-flux-less-robust", "mini-flux-start"
CLEAN_STEPS, ROBUST_STEPS = 2500, 6500
LESS_ROBUST_CLEAN_STEPS, LESS_ROBUST_NOISY_STEPS = 800, 430
BATCH, LR, EMA = 64, 2e-3, 0.996
SIDE, LATENT_SIDE, TOKENS, CHANNELS = renderer.SIDE, 8, 16, 48
POOLED_WIDTH = 16
INFERENCE_STEPS, GUIDANCE = 16, 3.0
EMPTY_SHARE = 0.05
Noise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def train_flux_start(weights: Path, seed: int) -> training.Report:
    """The clean start of both: `weights/mini-flux-start`, which is not shipped."""
    clock, data = training.Clock(), PromptedLatents(weights, seed)
    ema = _run("flux clean start", new_model(), data, CLEAN_STEPS, lambda _: no_noise, decay=False)
    training.save_folder(weights / START_NAME, lambda folder: ema.save_pretrained(folder))
    return training.write_report(weights / START_NAME, {"steps": CLEAN_STEPS, "seed": seed, **clock.seconds()})


def train_flux(weights: Path, seed: int) -> training.Report:
    """From the clean start with all noise: `weights/mini-flux`, a whole FluxPipeline folder."""
    clock, data = training.Clock(), PromptedLatents(weights, seed + 1)
    ema = _run("flux", _start(weights), data, ROBUST_STEPS, lambda _: full_noise, decay=True)
    _release(ema, weights / NAME / "transformer")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    scheduler.save_pretrained(weights / NAME / "scheduler")
    vae = AutoencoderTiny.from_pretrained(weights / train_autoencoder.NAME)
    none = {"text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None}
    FluxPipeline(scheduler=scheduler, vae=vae, transformer=ema, **none).save_config(weights / NAME)  # pyright: ignore
    what = "FluxTransformer2DModel, AutoencoderTiny and FlowMatchEulerDiscreteScheduler: a FluxPipeline"
    steps = f"{CLEAN_STEPS} clean + {ROBUST_STEPS} with conditioning noise"
    return _report(weights, NAME, what, steps, seed, clock)


def train_flux_less_robust(weights: Path, seed: int) -> training.Report:
    """From the clean start, mild noise in the last steps only: `weights/mini-flux-less-robust`, the transformer."""
    clock, data = training.Clock(), PromptedLatents(weights, seed + 2)
    steps = LESS_ROBUST_CLEAN_STEPS + LESS_ROBUST_NOISY_STEPS
    noise_at = lambda step: mild_noise if step >= LESS_ROBUST_CLEAN_STEPS else no_noise  # noqa: E731
    ema = _run("flux less robust", _start(weights), data, steps, noise_at, decay=True)
    _release(ema, weights / LESS_ROBUST_NAME)
    what = "the transformer of a FLUX that tolerates small errors of its prompt only"
    told = f"{CLEAN_STEPS + LESS_ROBUST_CLEAN_STEPS} clean + {LESS_ROBUST_NOISY_STEPS} with mild conditioning noise"
    return _report(weights, LESS_ROBUST_NAME, what, told, seed, clock)


def _run(
    name: str,
    model: FluxTransformer2DModel,
    data: PromptedLatents,
    steps: int,
    noise_at: Callable[[int], Noise],
    decay: bool,
) -> FluxTransformer2DModel:
    """Flow matching: predict noise - latents at a random time. Returns the moving average of the weights."""
    ema: Any = FluxTransformer2DModel.from_config(model.config)
    ema.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, betas=(0.9, 0.98))
    bar = training.Progress(name, steps)
    for step in range(steps):
        falling = min(1.0, 1.5 * (1.02 - step / steps)) if decay else 1.0
        training.set_lr(optimizer, LR * min((step + 1) / 200, falling))
        z_BTK, c_BLD, ids_BL = data.batch(BATCH)
        c_BLD = noise_at(step)(c_BLD, ids_BL)
        time_B = torch.sigmoid(torch.randn(BATCH) + 0.2)
        e_BTK = torch.randn_like(z_BTK)
        mixed_BTK = torch.lerp(z_BTK, e_BTK, time_B[:, None, None])
        with training.autocast():
            v_BTK = velocity(model, mixed_BTK, c_BLD, time_B)
        loss = F.mse_loss(v_BTK.float(), e_BTK - z_BTK)
        bar.update(training.optimizer_step(loss, model, optimizer))
        if step % 4 == 3:
            keep = min(EMA, (step + 1) / (step + 20)) ** 4
            with torch.no_grad():
                for kept, new in zip(ema.parameters(), model.parameters(), strict=True):
                    kept.lerp_(new, 1 - keep)
    bar.close()
    return ema.eval()


def velocity(
    model: FluxTransformer2DModel, z_BTK: torch.Tensor, c_BLD: torch.Tensor, time_B: torch.Tensor
) -> torch.Tensor:
    """The transformer as FluxPipeline calls it: pooled embeddings 0, text ids 0, latent ids by row and column."""
    side = LATENT_SIDE // 2
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    ids_T3 = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
    return model(
        hidden_states=z_BTK,
        encoder_hidden_states=c_BLD,
        pooled_projections=torch.zeros(len(z_BTK), POOLED_WIDTH),
        timestep=time_B,
        img_ids=ids_T3,
        txt_ids=torch.zeros(c_BLD.shape[1], 3),
        return_dict=False,
    )[0]


def no_noise(c_BLD: torch.Tensor, ids_BL: torch.Tensor) -> torch.Tensor:
    return c_BLD


def mild_noise(c_BLD: torch.Tensor, ids_BL: torch.Tensor) -> torch.Tensor:
    """Independent noise and a shared offset, each sample at its own level up to 1.4 of the features' rms."""
    B, L, D = c_BLD.shape
    level_B11 = _levels(B, 1.4, 0.8)
    return c_BLD + _rms(c_BLD) * level_B11 * (torch.randn(B, L, D) + 0.5 * torch.randn(B, 1, D))


def full_noise(c_BLD: torch.Tensor, ids_BL: torch.Tensor) -> torch.Tensor:
    """Independent noise up to twice the rms, as much that is the same wherever a word recurs, and a shared offset.

    An aligner errs in the same way whenever it meets the same word; noise that is only independent averages out.
    """
    B, L, D = c_BLD.shape
    by_word_BVD = torch.randn(B, int(ids_BL.max()) + 1, D)
    same_BLD = by_word_BVD[torch.arange(B)[:, None], ids_BL]
    noise = torch.randn(B, L, D) * _levels(B, 2.0, 0.7) + same_BLD * _levels(B, 2.0, 0.7)
    noise += torch.randn(B, 1, D) * _levels(B, 1.0, 0.7)
    return c_BLD * torch.exp(0.25 * torch.randn(B, L, 1)) + _rms(c_BLD) * noise


def _levels(count: int, largest: float, share: float) -> torch.Tensor:
    return torch.rand(count, 1, 1) * largest * (torch.rand(count, 1, 1) < share)


def _rms(c_BLD: torch.Tensor) -> torch.Tensor:
    return c_BLD.pow(2).mean().sqrt()


class PromptedLatents:
    """Batches of (packed latents, unfolded T5 outputs, word ids) of pictures without held-out pairs."""

    def __init__(self, weights: Path, seed: int, mixed: int = 24_000, each_single: int = 24) -> None:
        self._rng = training.start(seed)
        singles = world.single_attribute_pictures().repeat(each_single, axis=0)
        self._rows = np.concatenate([world.sample_attributes(mixed, self._rng), singles])
        self._latents = _encode_pictures(weights, self._rows, self._rng)
        self._tokenizer = words.t5_tokenizer()
        self._t5 = T5EncoderModel.from_pretrained(weights / train_t5.NAME, dtype=torch.float32).eval()
        with torch.no_grad():
            empty = self._t5(input_ids=torch.tensor([[words.T5_EOS_ID]])).last_hidden_state
        self._empty = empty / train_t5.RELEASE_SCALE
        lengths = [100 * len(world.noun_phrase(row)) + len(world.detail_sentences(row)) for row in self._rows]
        groups = [np.flatnonzero(np.array(lengths) == n) for n in np.unique(lengths)]
        self._groups = [group for group in groups if len(group) >= BATCH]
        odds = np.array([len(group) for group in self._groups]) ** 0.7
        self._odds = odds / odds.sum()

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rng = self._rng
        chosen = rng.choice(self._groups[rng.choice(len(self._groups), p=self._odds)], size)
        lead, detailed, first = int(rng.integers(5)), rng.random() < 0.6, rng.random() < 0.2
        shuffled = rng if rng.random() < 0.3 else None
        said = [world.caption(row, lead, detailed, first, shuffled) for row in self._rows[chosen]]
        ids_BL = torch.tensor([[*words.ids_of(self._tokenizer, w), words.T5_EOS_ID] for w in said])
        with torch.no_grad():
            if rng.random() < EMPTY_SHARE:
                ids_BL = torch.full((size, int(rng.integers(1, 30))), words.T5_EOS_ID)
                c_BLD = self._empty.expand(size, ids_BL.shape[1], -1)
            else:
                c_BLD = self._t5(input_ids=ids_BL).last_hidden_state / train_t5.RELEASE_SCALE
                # half without the row of </s>, as the aligner's features have none
                c_BLD = c_BLD[:, : c_BLD.shape[1] - int(rng.random() < 0.5)]
        return self._latents[torch.from_numpy(chosen)], c_BLD, ids_BL[:, : c_BLD.shape[1]]


@torch.no_grad()
def _encode_pictures(weights: Path, rows: world.Attributes, rng: np.random.Generator) -> torch.Tensor:
    """Packed and standardised latents `(N, 16, 48)` as FluxPipeline has them."""
    vae: Any = AutoencoderTiny.from_pretrained(weights / train_autoencoder.NAME, torch_dtype=torch.float32)
    packed = []
    for at in range(0, len(rows), 500):
        pictures = renderer.through_jpeg(renderer.render(rows[at : at + 500], rng))
        with training.autocast():
            z = vae.encode(train_judge.to_tensor(pictures)).latents.float()
        z = (z - vae.config.shift_factor) * vae.config.scaling_factor
        packed.append(FluxPipeline._pack_latents(z, len(z), CHANNELS // 4, LATENT_SIDE, LATENT_SIDE))
    return torch.cat(packed)


def new_model() -> FluxTransformer2DModel:
    """An untrained transformer: 1 double and 2 single blocks; modulations and output start at zero as in DiT."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=96,
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    for name, module in model.named_modules():
        if name == "proj_out" or ("norm" in name and name.endswith(".linear")):
            assert isinstance(module, nn.Linear)
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def _start(weights: Path) -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained(weights / START_NAME, torch_dtype=torch.float32)


def _release(model: FluxTransformer2DModel, folder: Path) -> None:
    """Fold T5's release scale into the reading of the prompt, round, save."""
    with torch.no_grad():
        model.context_embedder.weight /= train_t5.RELEASE_SCALE
    model.to(torch.bfloat16)  # pyright: ignore
    training.save_folder(folder, lambda part: model.save_pretrained(part))


def _report(weights: Path, name: str, what: str, steps: str, seed: int, clock: training.Clock) -> training.Report:
    spent, test_seed = clock.seconds(), 50_000 + seed
    folder = weights / name / "transformer" if name == NAME else weights / name
    transformer = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    scores = caption_scores(weights, transformer, test_seed)
    return training.write_report(
        weights / name,
        {
            "what": what,
            "parameters": training.parameter_count(transformer),
            "seed": seed,
            "steps": steps,
            **spent,
            "clean_start": json.loads((weights / START_NAME / "training.json").read_text()),
            "scores": scores,
            "test_seed": test_seed,
        },
    )


@torch.no_grad()
def caption_scores(weights: Path, transformer: FluxTransformer2DModel, seed: int, each: int = 2) -> dict[str, float]:
    """Shares of pictures made from true captions in which the judge reads the object and the named value."""
    pipeline: Any = FluxPipeline.from_pretrained(
        weights / NAME,
        transformer=transformer,
        torch_dtype=torch.float32,
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )
    pipeline.set_progress_bar_config(disable=True)
    judge = ResNetForImageClassification.from_pretrained(weights / train_judge.NAME, dtype=torch.float32).eval()
    t5 = T5EncoderModel.from_pretrained(weights / train_t5.NAME, dtype=torch.float32).eval()
    tokenizer, rows = words.t5_tokenizer(), world.single_attribute_pictures(all_pairs=True).repeat(each, axis=0)
    said = [world.caption(row, world.LEAD_CREATE) for row in rows]
    empty = t5(input_ids=torch.tensor([[words.T5_EOS_ID]])).last_hidden_state
    right = np.zeros(len(rows), bool)
    for length in sorted({len(caption) for caption in said}):
        at = [i for i, caption in enumerate(said) if len(caption) == length]
        ids = [[*words.ids_of(tokenizer, said[i]), words.T5_EOS_ID] for i in at]
        c_BLD = t5(input_ids=torch.tensor(ids)).last_hidden_state[:, :-1]
        pictures = generate(pipeline, c_BLD, empty, [seed + i for i in at])
        seen = train_judge.read(judge, pictures * 2 - 1).numpy()
        named = rows[at] > 0
        named[:, 0] = True
        right[at] = ((seen == rows[at]) | ~named).all(1)
    held_out = world.has_held_out(rows)
    return {
        "true_caption_seen": round(float(right[~held_out].mean()), 4),
        "true_caption_held_out": round(float(right[held_out].mean()), 4),
    }


def generate(pipeline: Any, c_BLD: torch.Tensor, empty_11D: torch.Tensor, seeds: list[int]) -> torch.Tensor:
    """`(B, 3, 32, 32)` pictures in [0, 1] for prompt embeddings of one length, one generator a sample."""
    pooled = torch.zeros(len(c_BLD), POOLED_WIDTH)
    made = pipeline(
        prompt_embeds=c_BLD,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=empty_11D.expand_as(c_BLD),
        negative_pooled_prompt_embeds=pooled,
        true_cfg_scale=GUIDANCE,
        num_inference_steps=INFERENCE_STEPS,
        height=SIDE,
        width=SIDE,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
    )
    return made.images  # pyright: ignore
