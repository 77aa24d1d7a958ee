"""A user's prompt: a text's rows and what CLIPs are told of it, against diffusers' pipelines called with the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_decoders import make_tiny_sd3
from tiny_diffusion import SIDE, make_tiny_flux, make_tiny_t5

from thinkdiff.schemas.artifact import Model
from thinkdiff.schemas.media import MediaSpec, Method
from thinkdiff.tasks.decoders import open_decoder
from thinkdiff.tasks.diffusion import Decoder, Settings, TextRows
from thinkdiff.tasks.prompt_rows import text_source
from thinkdiff.tasks.t5_encoder import T5Encoder

STEPS, GUIDANCE, SEEDS = 3, 4.0, (11, 2**62)
TEXTS = ["red star", "blue circle at night"]
FORMS: tuple[Method, ...] = ("text_prompt", "text_bridge")
SPEC = MediaSpec(decoder=Model(name="x"), t5=Model(name="t5"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("t5"))


def samples(decoder: Decoder, rows, seeds, null, how: Settings, texts=None) -> np.ndarray:
    made = dict(decoder.samples(rows, seeds, null, how, 64, texts))
    return np.stack([made[i] for i in range(len(rows))])


def stock(folder: Path, t5: Path, number: int, how: Settings, **inputs: Any) -> np.ndarray:
    """What diffusers' pipeline of a folder draws of the texts, with its CLIPs and that T5."""
    from diffusers import DiffusionPipeline
    from transformers import AutoTokenizer, T5EncoderModel

    parts: dict[str, Any] = {
        f"text_encoder_{number}": T5EncoderModel.from_pretrained(t5).eval(),
        f"tokenizer_{number}": AutoTokenizer.from_pretrained(t5),
    }
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=TEXTS, height=SIDE, width=SIDE, num_inference_steps=STEPS, guidance_scale=how.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS], output_type="np", **inputs,
    ).images  # fmt: skip


@pytest.mark.parametrize(("family", "rows"), [("flux", 20), ("sd3", 256)])
def test_text_prompt_is_drawn_as_the_stock_pipeline_draws_the_text(family, rows, t5, tmp_path):
    flux = family == "flux"
    folder = make_tiny_flux(tmp_path / "x", clip=True) if flux else make_tiny_sd3(tmp_path / "x")
    how = Settings(SIDE, SIDE, STEPS, 1.0, GUIDANCE) if flux else Settings(SIDE, SIDE, STEPS, GUIDANCE)
    told = {"true_cfg_scale": GUIDANCE, "negative_prompt": ["", ""]} if flux else {}
    decoder, encoder = open_decoder(str(folder), precision="float32"), T5Encoder(str(t5))
    spec = SPEC.but(prompt_rows=20) if flux else SPEC
    source = text_source("text_prompt", TEXTS, encoder, decoder.text, spec)
    assert (list(source.lengths), source.null, source.texts) == ([rows] * 2, rows, TEXTS)
    null, x = encoder.empty(rows, decoder.text.t5_mask), source.embed([0, 1])
    made = samples(decoder, x, SEEDS, null, how, TEXTS)
    expected = stock(folder, t5, 2 if flux else 3, how, max_sequence_length=rows, **told)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    silent = samples(decoder, x, SEEDS, null, how)
    assert min(np.abs(a - b).max() for a, b in zip(made, silent, strict=True)) > 1e-3
    np.testing.assert_allclose(samples(decoder, x[1:], SEEDS[1:], null, how, TEXTS[1:])[0], made[1], atol=1e-5)
    np.testing.assert_array_equal(samples(decoder, x, SEEDS, null, how, ["", ""]), silent)


def test_decoder_that_is_told_of_padding_gets_the_text_alone_with_its_end(t5):
    encoder, reads = T5Encoder(str(t5)), TextRows(longest=120, mask=True)
    prompt, bridge = (text_source(m, TEXTS, encoder, reads, SPEC.but(prompt_rows=4)) for m in FORMS)
    assert (list(prompt.lengths), list(bridge.lengths), prompt.null) == ([3, 4], [2, 4], None)
    for a, b in zip(prompt.embed([1, 0]), encoder.encode(TEXTS[::-1], longest=4), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_decoder_that_always_pads_gets_the_same_rows_in_both_forms(t5):
    encoder, reads = T5Encoder(str(t5)), TextRows(longest=14, fixed=True, null=14, t5_mask=False)
    prompt, bridge = (text_source(m, TEXTS, encoder, reads, SPEC) for m in FORMS)
    assert list(prompt.lengths) == list(bridge.lengths) == [14, 14]
    for a, b in zip(prompt.embed([0, 1]), encoder.padded(TEXTS, 14, mask=False), strict=True):
        np.testing.assert_array_equal(a, b)
