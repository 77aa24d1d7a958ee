"""Trains `mini-t5`, a T5 v1.1 of 0.8 M parameters, on captions of the world.

Three phases, all of encoder and decoder together: (1) span corruption, prefix continuation and copying, until the
decoder repeats objects and attributes rightly, which is measured rather than assumed; (2) and (3) noise on the
encoder's output, so that the decoder reads a redundant code, the same that the diffusion model and the aligner meet.
At release the encoder's scale is folded by `RELEASE_SCALE`: the function is the same, the features are small as a real
T5's are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BatchEncoding, T5Config, T5ForConditionalGeneration

from thinkdiff.mini import training, words, world

NAME = "mini-t5"
RELEASE_SCALE = 0.1
BATCH = 40
LEAST_CLEAN_STEPS, MOST_CLEAN_STEPS = 1800, 4500
COPY_GOAL = 0.95
CLEAN_LR, NOISY_LR = 3e-3, 2.5e-3
# (steps, largest noise in units of the features' rms, share of noisy samples, noise shared by all tokens)
NOISY_PHASES = ((1200, 1.5, 0.70, 0.4), (900, 3.0, 0.85, 0.0))


def train_t5(weights: Path, seed: int) -> training.Report:
    """Train, save to `weights/mini-t5`, score on captions of held-out pairs and of fresh seen ones."""
    rng, clock = training.start(seed), training.Clock()
    model, text = new_model(), CaptionTasks(rng)
    optimizer = torch.optim.AdamW(model.parameters(), lr=CLEAN_LR, weight_decay=0.0, betas=(0.9, 0.98))

    bar = training.Progress("t5 clean", None)
    while bar.step < MOST_CLEAN_STEPS:
        training.set_lr(optimizer, CLEAN_LR * min(1.0, (bar.step + 1) / 60))
        inputs = text.batch(BATCH)
        with training.autocast():
            loss = model(**inputs).loss
        bar.update(training.optimizer_step(loss, model, optimizer))
        if bar.step >= LEAST_CLEAN_STEPS and bar.step % 150 == 0:
            copied = continuation_scores(model, _fresh_rows(seed + bar.step, 96))["both"]
            bar.say(f"the decoder continues {copied:.3f} of the captions rightly")
            if copied >= COPY_GOAL:
                break
    bar.close()
    steps = bar.step

    for phase, (count, sigma, share, shared) in enumerate(NOISY_PHASES, start=1):
        bar = training.Progress(f"t5 noise {phase}", count)
        for step in range(count):
            training.set_lr(optimizer, NOISY_LR * min(1.0, (step + 1) / 20) * (1 - step / count))
            inputs = text.batch(BATCH)
            mask = inputs["attention_mask"]
            with training.autocast():
                h_BLD = model.encoder(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state.float()
                h_BLD = _with_noise(h_BLD, mask, sigma, share, shared)
                loss = model(encoder_outputs=(h_BLD,), attention_mask=mask, labels=inputs["labels"]).loss
            bar.update(training.optimizer_step(loss, model, optimizer))
        bar.close()
        steps += count

    model.eval()
    fold_scale(model, RELEASE_SCALE)
    training.round_to_bfloat16(model)
    training.save_folder(weights / NAME, lambda folder: _write(model, folder))
    return training.write_report(weights / NAME, _report(weights / NAME, seed, steps, clock))


def new_model() -> Any:
    """An untrained T5 v1.1 with its own output matrix and an encoder norm that starts small."""
    options: dict[str, Any] = {"tie_word_embeddings": False, "decoder_start_token_id": words.T5_PAD_ID}
    config = T5Config(
        vocab_size=len(words.T5_SPECIALS) + len(words.words()),
        d_model=96,
        d_kv=32,
        num_heads=3,
        d_ff=256,
        num_layers=3,
        num_decoder_layers=3,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        pad_token_id=words.T5_PAD_ID,
        eos_token_id=words.T5_EOS_ID,
        **options,
    )
    model: Any = T5ForConditionalGeneration(config)
    # transformers 5 ties a fresh lm_head whatever the configuration says; tied and unscaled it starts at loss 38.
    model.lm_head.weight = nn.Parameter(torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5)
    with torch.no_grad():
        model.encoder.final_layer_norm.weight.fill_(0.15)
    for module in model.modules():
        if hasattr(module, "wi_0"):
            module.act = nn.GELU(approximate="tanh")  # the same function as gelu_new, in one kernel
    return model


def fold_scale(model: Any, scale: float) -> None:
    """Make the encoder's output `scale` times as large and the decoder's reading of it as much stronger."""
    with torch.no_grad():
        model.encoder.final_layer_norm.weight *= scale
        for block in model.decoder.block:
            attention = block.layer[1].EncDecAttention
            attention.k.weight /= scale
            attention.v.weight /= scale


class CaptionTasks:
    """Batches of (corrupted or cut caption, what is missing) from captions without held-out pairs."""

    def __init__(self, rng: np.random.Generator, captions: int = 30_000) -> None:
        self._rng = rng
        self._rows = world.sample_attributes(captions, rng)
        self._tokenizer = words.t5_tokenizer()
        self._first_extra = words.ids_of(self._tokenizer, words.T5_EXTRA_IDS)[0]

    def batch(self, size: int) -> dict[str, torch.Tensor]:
        pairs = [self._pair() for _ in range(size)]
        x_BL = torch.zeros(size, max(len(x) for x, _ in pairs), dtype=torch.long)
        y_BL = torch.full((size, max(len(y) for _, y in pairs)), -100)
        for i, (x, y) in enumerate(pairs):
            x_BL[i, : len(x)], y_BL[i, : len(y)] = torch.tensor(x), torch.tensor(y)
        return {"input_ids": x_BL, "attention_mask": (x_BL != words.T5_PAD_ID).long(), "labels": y_BL}

    def _pair(self) -> tuple[list[int], list[int]]:
        rng, end = self._rng, words.T5_EOS_ID
        row = self._rows[rng.integers(len(self._rows))]
        shuffled = rng if rng.random() < 0.3 else None
        said = world.caption(row, int(rng.integers(5)), rng.random() < 0.8, rng.random() < 0.25, shuffled)
        ids = words.ids_of(self._tokenizer, said)
        kind = rng.random()
        if kind < 0.30:
            return self._corrupt(ids)
        if kind < 0.85:
            cut = int(rng.integers(1, len(ids)))
            # half without </s>: the aligner's prefixes have none
            return ids[:cut] + [end] * int(rng.random() < 0.5), [*ids[cut:], end]
        return [*ids, end], [*ids, end]

    def _corrupt(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """T5's span corruption: about every tenth word starts a span of one to three that a sentinel replaces."""
        count = max(1, round(0.1 * len(ids)))
        starts = set(self._rng.choice(len(ids), min(count, len(ids), len(words.T5_EXTRA_IDS) - 1), replace=False))
        x, y, at, sentinel = [], [], 0, self._first_extra
        while at < len(ids):
            if at in starts:
                length = int(self._rng.integers(1, 4))
                x.append(sentinel)
                y += [sentinel, *ids[at : at + length]]
                at, sentinel = at + length, sentinel + 1
            else:
                x.append(ids[at])
                at += 1
        return [*x, words.T5_EOS_ID], [*y, words.T5_EOS_ID]


def continuation_scores(model: Any, rows: world.Attributes) -> dict[str, float]:
    """Give the decoder `create an image of ... .`, let it go on; shares of right objects, attributes and both."""
    tokenizer, objects, attributes = words.t5_tokenizer(), [], []
    prompts = [[*world.caption(row, world.LEAD_CREATE, detailed=False), "."] for row in rows]
    encoded: BatchEncoding = tokenizer(
        [" ".join(p) for p in prompts], add_special_tokens=False, padding=True, return_tensors="pt"
    )
    was_training = model.training
    model.eval()
    with torch.no_grad():
        tokens = model.generate(**encoded, max_new_tokens=32, do_sample=False)
    model.train(was_training)
    for row, text in zip(rows, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
        said, wanted = text.split(), world.detail_sentences(row)
        nouns = [word for word in said if word in world.OBJECTS]
        objects.append(bool(nouns) and set(nouns) == {world.OBJECTS[int(row[0])]})
        attributes.append(set(said) - set(world.OBJECTS) == set(wanted) - set(world.OBJECTS))
    both = np.array(objects) & np.array(attributes)
    return {"object": float(np.mean(objects)), "attributes": float(np.mean(attributes)), "both": float(both.mean())}


def _with_noise(h_BLD: torch.Tensor, mask_BL: torch.Tensor, sigma: float, share: float, shared: float) -> torch.Tensor:
    B, L, D = h_BLD.shape
    rms = h_BLD.detach()[mask_BL.bool()].pow(2).mean().sqrt()
    level_B11 = torch.rand(B, 1, 1) * sigma * (torch.rand(B, 1, 1) < share)
    return h_BLD + rms * level_B11 * (torch.randn(B, L, D) + shared * torch.randn(B, 1, D))


def _fresh_rows(seed: int, count: int, held_out: bool = False) -> world.Attributes:
    rows = world.sample_attributes(count * 8 if held_out else count, np.random.default_rng(seed), all_pairs=held_out)
    return rows[world.has_held_out(rows)][:count] if held_out else rows


def _write(model: Any, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    training.store_float32_config(folder)
    words.t5_tokenizer().save_pretrained(folder)


def _report(folder: Path, seed: int, steps: int, clock: training.Clock) -> training.Report:
    spent, test_seed = clock.seconds(), 20_000 + seed
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([words.t5_tokenizer()(" ".join(world.caption(row, 3))).input_ids for row in _fresh_rows(1, 1)])
    with torch.no_grad():
        rms = float(model.encoder(input_ids=ids).last_hidden_state.pow(2).mean().sqrt())
    return {
        "what": "T5ForConditionalGeneration, v1.1 style: the prompt encoder and the aligner's frozen reader",
        "parameters": training.parameter_count(model),
        "seed": seed,
        "steps": steps,
        **spent,
        "scale_factor": RELEASE_SCALE,
        "scores": {
            "feature_rms": round(rms, 4),
            "continuation_seen": continuation_scores(model, _fresh_rows(test_seed, 256)),
            "continuation_held_out": continuation_scores(model, _fresh_rows(test_seed, 256, held_out=True)),
        },
        "test_seed": test_seed,
    }
