"""The FLUX decoder against the stock pipeline, against a plain Euler loop, and against itself in other
batches."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_diffusion import POOLED, SIDE, WIDTH, make_tiny_flux, tiny_transformer

from thinkdiff.schemas.errors import InputError, ModelError, SpecError
from thinkdiff.tasks.diffusion import Settings
from thinkdiff.tasks.flux import FluxDecoder

STEPS, GUIDANCE = 3, 2.0


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads only wait for each other on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def decoder(folder: Path) -> FluxDecoder:
    return FluxDecoder(str(folder), precision="float32")


def rows(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((length, WIDTH)).astype(np.float32)


def pictures(
    decoder: FluxDecoder, prompts, seeds, null=None, cfg: float = GUIDANCE, batch: int = 64
) -> list[np.ndarray]:
    null = rows(1, 99) if null is None else null
    made = dict(decoder.generate(prompts, seeds, null, Settings(SIDE, SIDE, STEPS, 1.0, cfg), batch))
    return [made[i] for i in range(len(prompts))]


def levels(a, b) -> int:
    """The largest difference of two pictures, in grey levels."""
    return int(np.abs(np.asarray(a, np.int64) - np.asarray(b, np.int64)).max())


def test_pictures_are_the_stock_pipelines_with_the_empty_prompt_repeated(folder, decoder):
    from diffusers import FluxPipeline

    prompts, seeds, null = [rows(5, 1), rows(5, 2)], [11, 2**62], rows(1, 99)
    parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipeline: Any = FluxPipeline.from_pretrained(folder, **dict.fromkeys(parts))
    pooled = torch.zeros(2, POOLED)
    stock = pipeline(
        prompt_embeds=torch.from_numpy(np.stack(prompts)), pooled_prompt_embeds=pooled,
        negative_prompt_embeds=torch.from_numpy(np.tile(null, (2, 5, 1))), negative_pooled_prompt_embeds=pooled,
        true_cfg_scale=GUIDANCE, guidance_scale=1.0, height=SIDE, width=SIDE, num_inference_steps=STEPS,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="np",
    ).images  # fmt: skip
    made = pictures(decoder, prompts, seeds, null)
    assert made[0].dtype == np.uint8
    assert made[0].shape == (SIDE, SIDE, 3)
    assert made[0].std() > 5
    for picture, expected in zip(made, stock, strict=True):
        assert levels(picture, expected * 255) <= 1


def test_picture_is_that_of_a_plain_guided_euler_loop(decoder):
    prompt, null = torch.from_numpy(rows(6, 3))[None], torch.from_numpy(rows(1, 98)).expand(1, 6, -1)
    noise = torch.randn(1, 12, 8, 8, generator=torch.Generator().manual_seed(7))
    z_1TK = noise.view(1, 12, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 16, 48)
    ids_T3 = torch.tensor([[0, y, x] for y in range(4) for x in range(4)], dtype=torch.float32)

    def velocity(x_1LD: torch.Tensor, z_1TK: torch.Tensor, time: float) -> torch.Tensor:
        with torch.no_grad():
            return decoder.pipeline.transformer(
                hidden_states=z_1TK, encoder_hidden_states=x_1LD, pooled_projections=torch.zeros(1, POOLED),
                timestep=torch.tensor([time]), img_ids=ids_T3, txt_ids=torch.zeros(6, 3), return_dict=False,
            )[0]  # fmt: skip

    for step in range(STEPS):
        time = 1 - step / STEPS
        v, v_null = velocity(prompt, z_1TK, time), velocity(null, z_1TK, time)
        z_1TK = z_1TK - (v_null + GUIDANCE * (v - v_null)) / STEPS
    z = z_1TK.view(1, 4, 4, 12, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 12, 8, 8)
    with torch.no_grad():
        decoded = decoder.pipeline.vae.decode(z / 1.3 + 0.1).sample[0].permute(1, 2, 0)
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).numpy()
    assert levels(pictures(decoder, [prompt[0].numpy()], [7], rows(1, 98))[0], expected) <= 1


def test_picture_does_not_depend_on_what_else_is_in_the_batch(decoder):
    prompts = [rows(length, seed) for seed, length in enumerate((4, 7, 4, 5, 7, 4))]
    seeds = [5, 6, 7, 8, 9, 10]
    together = pictures(decoder, prompts, seeds)
    in_twos = pictures(decoder, prompts[::-1], seeds[::-1], batch=2)[::-1]
    alone = [pictures(decoder, [prompt], [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    for a, b, c in zip(together, in_twos, alone, strict=True):
        assert levels(a, c) <= 1
        assert levels(b, c) <= 1
    assert levels(*pictures(decoder, prompts[:1] * 2, [5, 6])) > 5
    assert levels(*pictures(decoder, [prompts[0], prompts[2]], [5, 5])) > 1


def test_guidance_of_one_never_reads_the_empty_prompt(decoder):
    one, other = (pictures(decoder, [rows(4, 1)], [3], rows(1, seed), cfg=1.0)[0] for seed in (50, 51))
    assert levels(one, other) == 0
    assert levels(one, pictures(decoder, [rows(4, 1)], [3])[0]) > 1


def test_bfloat16_pictures_are_near_the_float32_ones(folder, decoder):
    prompts, seeds = [rows(5, 1), rows(6, 2)], [1, 2]
    low = pictures(FluxDecoder(str(folder)), prompts, seeds)
    for a, b in zip(low, pictures(decoder, prompts, seeds), strict=True):
        assert np.abs(a.astype(float) - b).mean() < 4
        assert b.std() > 5


def test_other_transformer_draws_in_the_same_pipeline(folder, decoder, tmp_path):
    tiny_transformer(5).save_pretrained(tmp_path / "other")
    shutil.copytree(folder, tmp_path / "copy")
    tiny_transformer(5).save_pretrained(tmp_path / "copy/transformer")
    made = pictures(FluxDecoder(str(folder), str(tmp_path / "other"), precision="float32"), [rows(5, 1)], [1])
    whole = pictures(FluxDecoder(str(tmp_path / "copy"), precision="float32"), [rows(5, 1)], [1])
    assert levels(made[0], whole[0]) == 0
    assert levels(made[0], pictures(decoder, [rows(5, 1)], [1])[0]) > 1


def test_pooled_embedding_is_clips_of_the_empty_text_where_there_is_a_clip(tmp_path, decoder):
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = make_tiny_flux(tmp_path / "with_clip", clip=True)
    tokenizer, clip = (kind.from_pretrained(folder / name) for kind, name in (
        (CLIPTokenizer, "tokenizer"), (CLIPTextModel, "text_encoder")))  # fmt: skip
    ids = tokenizer("", padding="max_length", max_length=12, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = clip(ids).pooler_output
    found = FluxDecoder(str(folder), precision="float32")
    torch.testing.assert_close(found.pooled_1P, expected)
    assert expected.abs().max() > 0.1
    assert found.pipeline.text_encoder_2 is None
    assert not decoder.pooled_1P.any()
    assert pictures(found, [rows(5, 1)], [1])[0].shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("prompt", "side", "error", "said"),
    [
        (np.zeros((4, WIDTH + 1), np.float32), SIDE, SpecError, "found shape \\(4, 33\\), expected rows of width 32"),
        (np.zeros((0, WIDTH), np.float32), SIDE, SpecError, "found shape \\(0, 32\\)"),
        (np.full((4, WIDTH), np.nan, np.float32), SIDE, InputError, "found rows with NaN or infinity"),
        (np.zeros((4, WIDTH), np.float32), 30, SpecError, "expected multiples of 8"),
    ],
)
def test_prompt_that_the_model_does_not_take_is_refused(decoder, prompt, side, error, said):
    with pytest.raises(error, match=said):
        list(decoder.generate([prompt], [0], rows(1, 0), Settings(side, SIDE, STEPS, 1.0)))


def test_folder_that_is_not_a_whole_pipeline_is_a_model_error(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"found no file vae/\*\.safetensors"):
        FluxDecoder(str(copy))
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    weights = copy / "transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="found it not loadable"):
        FluxDecoder(str(copy))


def test_transformer_with_more_layers_than_weights_is_a_model_error(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder / "transformer", copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_single_layers": 2}))
    with pytest.raises(ModelError, match="found no weights for single_transformer_blocks"):
        FluxDecoder(str(folder), str(copy))
