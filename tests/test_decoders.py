"""Every decoder against diffusers' own pipeline: on the text that the pipeline encodes itself, and on rows given by
hand; against itself in other batches; and what is refused. FLUX has a file of its own."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_decoders import CLIP_ROWS, FRAMES, IF_SIDE, MAKERS, VIDEO_ROWS
from tiny_diffusion import SIDE, WIDTH, make_tiny_t5

from thinkdiff.schemas.errors import InputError, ModelError, SpecError
from thinkdiff.tasks.decoders import open_decoder
from thinkdiff.tasks.diffusion import Decoder, Settings, batches
from thinkdiff.tasks.offload import offloaded
from thinkdiff.tasks.t5_encoder import T5Encoder

STEPS, GUIDANCE = 3, 4.0
OTHERS = tuple(name for name in MAKERS if name != "flux")
ROWS = {"flux": None, "sd3": 256, "alpha": 120, "sigma": 300, "if": 77, "cogvideox": VIDEO_ROWS}
FIXED = ("if", "cogvideox")
TEXTS = ["a red star", "a blue circle at night"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads only wait for each other on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def decoders(folders) -> dict[str, Decoder]:
    return {name: open_decoder(str(folder), precision="float32") for name, folder in folders.items()}


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("t5"))


def settings(name: str, guidance: float = GUIDANCE, **changes: Any) -> Settings:
    side = IF_SIDE if name == "if" else SIDE
    scales = (1.0, guidance) if name == "flux" else (guidance, 1.0)
    return replace(Settings(side, side, STEPS, *scales, frames=FRAMES), **changes)


def rows(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((length, WIDTH)).astype(np.float32)


def null_of(decoder: Decoder, seed: int = 99) -> np.ndarray:
    return rows(decoder.text.null, seed)


def samples(decoder: Decoder, prompts, seeds, null, how: Settings, batch: int = 64) -> list[np.ndarray]:
    made = dict(decoder.samples(prompts, seeds, null, how, batch))
    return [made[i] for i in range(len(prompts))]


def generators(seeds) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def stock(folder: Path, **parts: Any) -> Any:
    """diffusers' pipeline of a folder."""
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(folder, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: Any, seeds, how: Settings, **inputs: Any) -> np.ndarray:
    """What a stock pipeline draws."""
    made = pipeline(
        height=how.height, width=how.width, num_inference_steps=how.steps, guidance_scale=how.guidance_scale,
        generator=generators(seeds), output_type="np", **inputs,
    )  # fmt: skip
    return made.frames if hasattr(made, "frames") else made.images


@pytest.mark.parametrize("name", OTHERS)
def test_texts_rows_draw_what_the_stock_pipeline_draws_of_the_text(name, folders, decoders, t5):
    from transformers import AutoTokenizer, T5EncoderModel

    decoder, how, seeds = decoders[name], settings(name), [11, 2**62]
    reads, encoder = decoder.text, T5Encoder(str(t5))
    assert reads.longest == ROWS[name]
    number = "_3" if name == "sd3" else ""
    parts = {
        f"text_encoder{number}": T5EncoderModel.from_pretrained(t5).eval(),
        f"tokenizer{number}": AutoTokenizer.from_pretrained(t5),
    }
    inputs: dict[str, Any] = {
        "sd3": {"prompt": ["", ""], "prompt_3": TEXTS, "max_sequence_length": 256},
        "alpha": {"prompt": TEXTS, "clean_caption": False, "use_resolution_binning": False},
        "sigma": {"prompt": TEXTS, "clean_caption": False, "use_resolution_binning": False},
        "if": {"prompt": TEXTS, "clean_caption": False},
        "cogvideox": {"prompt": TEXTS, "max_sequence_length": VIDEO_ROWS, "num_frames": FRAMES},
    }[name]
    expected = drawn(stock(folders[name], **parts), seeds, how, **inputs)
    rows_of_texts = encoder.encode(TEXTS) if reads.mask else encoder.padded(TEXTS, reads.longest or 0, reads.t5_mask)
    made = samples(decoder, rows_of_texts, seeds, encoder.empty(reads.null, reads.t5_mask), how)
    assert made[0].shape == (*((FRAMES,) if name == "cogvideox" else ()), how.height, how.width, 3)
    assert made[0].dtype == np.float32
    assert min(x.std() for x in made) > 0.05
    np.testing.assert_allclose(np.stack(made), expected, atol=1e-5)


def bare(name: str, folders: dict[str, Path], decoders: dict[str, Decoder]) -> Any:
    """diffusers' pipeline without text encoders."""
    return stock(folders[name], **dict.fromkeys(decoders[name].left_out))


def by_hand(name: str, prompts: list[np.ndarray], null: np.ndarray, folder: Path) -> dict[str, Any]:
    """What diffusers' pipeline of that name is called with for rows of one length, written out."""
    x, n = torch.from_numpy(np.stack(prompts)), torch.from_numpy(null)
    if name in FIXED:
        behind = n[x.shape[1] :].expand(len(x), -1, -1)
        inputs = {"prompt_embeds": torch.cat([x, behind], 1), "negative_prompt_embeds": n.expand(len(x), -1, -1)}
        return inputs | ({"num_frames": FRAMES} if name == "cogvideox" else {})
    if name == "sd3":
        clips, pooled = (y.expand(len(x), *y.shape[1:]) for y in clips_of_nothing(folder))
        negative = n[: x.shape[1]].expand(len(x), -1, -1)
        return {
            "prompt_embeds": torch.cat([clips, x], 1), "pooled_prompt_embeds": pooled,
            "negative_prompt_embeds": torch.cat([clips, negative], 1), "negative_pooled_prompt_embeds": pooled,
        }  # fmt: skip
    negative = torch.cat([n, torch.randn(x.shape[1] - 1, WIDTH)])  # no row but the first is read
    mask = torch.ones(x.shape[:2])
    return {
        "prompt_embeds": x, "prompt_attention_mask": mask, "negative_prompt": None,
        "negative_prompt_embeds": negative.expand(len(x), -1, -1),
        "negative_prompt_attention_mask": torch.eye(x.shape[1])[:1].expand(len(x), -1),
        "use_resolution_binning": False,
    }  # fmt: skip


def clips_of_nothing(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The states before the last layer of both CLIPs for the empty text, side by side, and their pooled embeddings."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    states, pooled = [], []
    for number in ("", "_2"):
        tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{number}")
        clip: Any = CLIPTextModelWithProjection.from_pretrained(folder / f"text_encoder{number}")
        ids = torch.tensor([[tokenizer.bos_token_id, *[tokenizer.eos_token_id] * (CLIP_ROWS - 1)]])
        with torch.no_grad():
            made = clip.eval()(ids, output_hidden_states=True)
        states.append(made.hidden_states[-2])
        pooled.append(made.text_embeds)
    both = torch.cat(states, -1)
    return torch.nn.functional.pad(both, (0, WIDTH - both.shape[-1])), torch.cat(pooled, -1)


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
@pytest.mark.parametrize("name", OTHERS)
def test_rows_draw_what_a_call_of_the_stock_pipeline_by_hand_draws(name, guidance, folders, decoders):
    decoder, how, seeds, null = decoders[name], settings(name, guidance), [3, 4], null_of(decoders[name])
    prompts = [rows(9, 1), rows(9, 2)]
    expected = drawn(bare(name, folders, decoders), seeds, how, **by_hand(name, prompts, null, folders[name]))
    made = samples(decoder, prompts, seeds, null, how)
    np.testing.assert_allclose(np.stack(made), expected, atol=1e-5)
    for i, x in decoder.generate(prompts, seeds, null, how):
        assert x.dtype == np.uint8
        assert np.abs(x / 255 - made[i]).max() <= 0.5 / 255 + 1e-6


def test_stable_diffusions_clips_say_the_empty_text_and_are_not_kept(folders, decoders):
    decoder: Any = decoders["sd3"]
    states, pooled = clips_of_nothing(folders["sd3"])
    assert states.shape == (1, CLIP_ROWS, WIDTH)
    assert (states.std() > 0.1, pooled.std() > 0.1) == (True, True)
    torch.testing.assert_close(decoder.clips_1CD, states)
    torch.testing.assert_close(decoder.pooled_1P, pooled)
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"):
        assert getattr(decoder.pipeline, part) is None


@pytest.mark.parametrize("name", list(MAKERS))
def test_picture_does_not_depend_on_what_else_is_in_the_batch(name, decoders):
    decoder, how = decoders[name], settings(name)
    prompts = [rows(length, seed) for seed, length in enumerate((4, 7, 4, 12, 7, 4, 1, 9))]
    seeds, null = list(range(20, 28)), null_of(decoder)
    together = samples(decoder, prompts, seeds, null, how, batch=8)
    alone = samples(decoder, prompts, seeds, null, how, batch=1)
    backwards = samples(decoder, prompts[::-1], seeds[::-1], null, how, batch=3)[::-1]
    for a, b, c in zip(together, alone, backwards, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
        np.testing.assert_allclose(c, b, atol=1e-3)
    other_seed, other_prompt = (
        samples(decoder, prompts[:1], seeds[1:2], null, how)[0],
        samples(decoder, prompts[2:3], seeds[:1], null, how)[0],
    )
    assert np.abs(other_seed - alone[0]).max() > 0.02
    assert np.abs(other_prompt - alone[0]).max() > 0.005


def test_lengths_share_a_batch_only_where_the_model_is_told_of_padding_or_always_padded(decoders):
    lengths, calls = [3, 5, 3, 4], dict[str, int]()
    for name, decoder in decoders.items():
        transformer = getattr(decoder.pipeline, decoder.denoiser[0])
        seen: list[int] = []
        hook = transformer.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(1))
        samples(decoder, [rows(n, n) for n in lengths], range(4), null_of(decoder), settings(name, guidance=1.0))
        hook.remove()
        calls[name] = len(seen)
    apart = {"flux": 3 * STEPS, "sd3": 3 * STEPS}
    assert {name: calls[name] for name in apart} == apart
    assert max(calls["alpha"], calls["sigma"], calls["if"], calls["cogvideox"]) < 2 * STEPS


@pytest.mark.parametrize("name", list(MAKERS))
def test_empty_text_is_read_for_guidance_and_as_padding_only(name, decoders):
    decoder, prompt, one, other = decoders[name], [rows(5, 1)], null_of(decoders[name], 50), null_of(decoders[name], 51)

    def differ(how: Settings) -> bool:
        a, b = (samples(decoder, prompt, [3], null, how)[0] for null in (one, other))
        return bool(np.abs(a - b).max() > 1e-4)

    assert differ(settings(name))
    assert decoder.reads_empty(settings(name))
    for padding in ("empty", "zeros"):
        unguided = settings(name, 1.0, padding=padding)
        assert differ(unguided) == decoder.reads_empty(unguided) == (name in FIXED and padding == "empty")


@pytest.mark.parametrize("name", FIXED)
def test_zeros_behind_the_rows_on_request(name, folders, decoders):
    decoder, how, null = decoders[name], settings(name, padding="zeros"), null_of(decoders[name])
    padded = np.zeros((1, decoder.text.longest or 0, WIDTH), np.float32)
    padded[0, :5] = rows(5, 1)
    inputs = by_hand(name, [rows(5, 1)], null, folders[name]) | {"prompt_embeds": torch.from_numpy(padded)}
    expected = drawn(bare(name, folders, decoders), [3], how, **inputs)
    np.testing.assert_allclose(samples(decoder, [rows(5, 1)], [3], null, how)[0], expected[0], atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_bfloat16_pictures_are_near_the_float32_ones(name, folders, decoders):
    prompts, seeds, how = [rows(5, 1), rows(6, 2)], [1, 2], settings(name, 2.0)
    null = null_of(decoders[name])
    low = samples(open_decoder(str(folders[name])), prompts, seeds, null, how)
    for a, b in zip(low, samples(decoders[name], prompts, seeds, null, how), strict=True):
        assert 0 < np.abs(a - b).mean() < 0.02


@pytest.mark.parametrize("name", ["sd3", "if"])
def test_other_denoiser_draws_in_the_same_pipeline(name, folders, decoders, tmp_path):
    folder = decoders[name].denoiser[0]
    shutil.copytree(folders[name] / folder, tmp_path / "other")
    weights = tmp_path / "other/diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({key: value * 0.9 for key, value in load_file(weights).items()}, weights)
    shutil.copytree(folders[name], tmp_path / "copy")
    shutil.copytree(tmp_path / "other", tmp_path / "copy" / folder, dirs_exist_ok=True)
    prompt, null, how = [rows(5, 1)], null_of(decoders[name]), settings(name)
    beside = open_decoder(str(folders[name]), str(tmp_path / "other"), precision="float32")
    whole = open_decoder(str(tmp_path / "copy"), precision="float32")
    made = samples(beside, prompt, [1], null, how)[0]
    np.testing.assert_array_equal(made, samples(whole, prompt, [1], null, how)[0])
    assert np.abs(made - samples(decoders[name], prompt, [1], null, how)[0]).max() > 1e-3


def test_pixart_alphas_older_folders_open_too(folders, decoders, tmp_path):
    """The hub's PixArt-alpha was saved before its transformer had a class of its own."""
    shutil.copytree(folders["alpha"], tmp_path / "old")
    for name, key, value in (
        ("model_index.json", "transformer", ["diffusers", "Transformer2DModel"]),
        ("transformer/config.json", "_class_name", "Transformer2DModel"),
    ):
        path = tmp_path / "old" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    old, how, null = open_decoder(str(tmp_path / "old"), precision="float32"), settings("alpha"), rows(1, 9)
    made, expected = (samples(d, [rows(5, 1)], [1], null, how)[0] for d in (old, decoders["alpha"]))
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("name", list(MAKERS))
def test_offloaded_blocks_draw_the_same_pictures(name, folders, decoders):
    decoder = open_decoder(str(folders[name]), precision="float32")
    offloaded(getattr(decoder.pipeline, decoder.denoiser[0]), "cpu")
    prompt, null, asked = [rows(5, 1)], null_of(decoder), settings(name)
    made, expected = (samples(d, prompt, [1], null, asked)[0] for d in (decoder, decoders[name]))
    np.testing.assert_array_equal(made, expected)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_draw_the_same_pictures(folders, decoders):
    compiled = open_decoder(str(folders["alpha"]), precision="float32", compiled=True)
    prompt, null, how = [rows(5, 1)], null_of(compiled), settings("alpha")
    a, b = (samples(d, prompt, [1], null, how)[0] for d in (compiled, decoders["alpha"]))
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "prompt", "error", "said"),
    [
        ("sd3", {}, rows(257, 0), SpecError, "found 257 rows, expected at most the 256"),
        ("alpha", {}, rows(121, 0), SpecError, "found 121 rows, expected at most the 120 that PixArtAlphaPipeline"),
        ("sigma", {}, rows(301, 0), SpecError, "found 301 rows, expected at most the 300 that PixArtSigmaPipeline"),
        ("if", {}, rows(78, 0), SpecError, "found 78 rows, expected at most the 77 that IFPipeline reads"),
        ("cogvideox", {}, rows(15, 0), SpecError, "found 15 rows, expected at most the 14"),
        ("sd3", {"height": 36}, rows(4, 0), SpecError, "found 36, 32, expected multiples of 8"),
        ("sd3", {"width": 72}, rows(4, 0), SpecError, "found 32, 72, expected at most 64"),
        ("alpha", {"width": 36}, rows(4, 0), SpecError, "expected multiples of 8"),
        ("if", {"height": 15}, rows(4, 0), SpecError, "expected multiples of 2"),
        ("cogvideox", {"height": 24}, rows(4, 0), SpecError, "expected multiples of 16"),
        ("cogvideox", {"frames": 13}, rows(4, 0), SpecError, "found 13, expected one more than a multiple of 8.*ke 9"),
        ("sigma", {"true_cfg_scale": 2.0}, rows(4, 0), SpecError, "true_cfg_scale: found 2, expected 1"),
        ("if", {}, np.full((4, WIDTH), np.inf, np.float32), InputError, "found rows with NaN or infinity"),
        ("sd3", {}, np.zeros((4, 40), np.float32), SpecError, "found shape \\(4, 40\\), expected rows of width 32"),
    ],
)  # fmt: skip
def test_what_a_model_does_not_take_is_refused(decoders, name, changes, prompt, error, said):
    decoder = decoders[name]
    with pytest.raises(error, match=said):
        list(decoder.generate([prompt], [0], null_of(decoder), settings(name, **changes)))


@pytest.mark.parametrize("name", list(MAKERS))
def test_empty_text_of_another_number_of_rows_is_refused(decoders, name):
    decoder = decoders[name]
    wrong = rows(decoder.text.null + 1, 0)
    with pytest.raises(SpecError, match=rf"found {len(wrong)} rows, expected the {decoder.text.null} of the empty"):
        list(decoder.generate([rows(4, 0)], [0], wrong, settings(name)))


def test_models_of_another_width_are_told_with_both_widths(decoders):
    decoders["sigma"].check_width("aligner", WIDTH)
    with pytest.raises(SpecError, match=r"aligner: found rows of width 40, expected 32, which PixArtSigmaPipeline in"):
        decoders["sigma"].check_width("aligner", 40)


@pytest.mark.parametrize("index", ['{"_class_name": "StableDiffusionPipeline"}', "{}", '{"_class_name": ["x"]}'])
def test_pipeline_of_an_unknown_class_is_refused_with_the_known_ones(tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    known = "FluxPipeline, StableDiffusion3Pipeline, PixArtAlphaPipeline, PixArtSigmaPipeline, IFPipeline, CogVideoX"
    with pytest.raises(ModelError, match=f"expected one of {known}"):
        open_decoder(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_index_that_is_none_is_a_model_error(tmp_path, text):
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model_index\.json"):
        open_decoder(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("sd3", "text_encoder_2/model.safetensors"),
        ("sd3", "vae/diffusion_pytorch_model.safetensors"),
        ("sigma", "scheduler/scheduler_config.json"),
        ("if", "unet/config.json"),
        ("cogvideox", "transformer/config.json"),
        ("alpha", "transformer/diffusion_pytorch_model.safetensors"),
    ],
)
def test_folder_that_lacks_a_file_is_a_model_error(folders, tmp_path, name, lost):
    shutil.copytree(folders[name], tmp_path / "copy")
    (tmp_path / "copy" / lost).unlink()
    with pytest.raises(ModelError, match=re.escape(str(tmp_path / "copy"))):
        open_decoder(str(tmp_path / "copy"))


def test_offload_is_refused_without_a_gpu_and_with_compiled_blocks(folders):
    for device, compiled, said in (("cpu", False, "on a CPU"), ("cuda", True, "with compile_decoder")):
        with pytest.raises(SpecError, match=f"offload: found 'blocks' {said}, expected a GPU"):
            open_decoder(str(folders["sigma"]), device=device, offload="blocks", compiled=compiled)


def test_batches_hold_every_prompt_once_and_one_length_unless_mixed():
    lengths = [3, 1, 3, 2, 3, 1]
    assert list(batches(lengths, 2, mixed=False)) == [[1, 5], [3], [0, 2], [4]]
    assert list(batches(lengths, 4, mixed=True)) == [[1, 5, 3, 0], [2, 4]]
