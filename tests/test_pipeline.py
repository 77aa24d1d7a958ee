"""The pipeline of a notebook against its parts called one by one, and its parts in every form."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_decoders import FRAMES, make_tiny_cogvideox
from tiny_diffusion import SIDE, WIDTH, make_tiny_t5
from tiny_models import random_image

from thinkdiff.mini.release import weights_folder
from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.cobsat import PAPER_INSTRUCTION
from thinkdiff.schemas.errors import InputError, ModelError, SpecError
from thinkdiff.tasks.aligner import Aligner, AlignerConfig
from thinkdiff.tasks.aligner_files import Card, save_pretrained
from thinkdiff.tasks.diffusion import Settings
from thinkdiff.tasks.flux import FluxDecoder
from thinkdiff.tasks.pipeline import ThinkDiffPipeline
from thinkdiff.tasks.qwen_chat import Request, Sampling
from thinkdiff.tasks.qwen_engine import QwenEngine
from thinkdiff.tasks.t5_encoder import T5Encoder
from thinkdiff.tasks.vision_tower import VisionTower

VLM, T5, FLUX, TOWER = (
    str(weights_folder() / name) for name in ("mini-qwen2-vl", "mini-t5", "mini-flux", "mini-eva-clip")
)
TOWER_WIDTH = 96
SMALL = {"height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": 1.0, "true_cfg_scale": 3.0}
RUN = Execution(device="cpu", threads=1)


def save_aligner(folder: Path, width: int, out: int, kind: Literal["lvlm", "clip"] = "lvlm") -> Aligner:
    torch.manual_seed(0)
    config = AlignerConfig(width, 32, out, kind=kind)
    aligner = Aligner(config)
    save_pretrained(str(folder), dict(aligner.state_dict()), config, Card())
    return aligner


@pytest.fixture(scope="module")
def widths() -> tuple[int, int]:
    vlm, t5 = (json.loads((Path(path) / "config.json").read_text()) for path in (VLM, T5))
    return vlm.get("text_config", vlm)["hidden_size"], t5["d_model"]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory, widths) -> Iterator[ThinkDiffPipeline]:
    folder = tmp_path_factory.mktemp("hub") / "aligner"
    save_aligner(folder, *widths)
    with ThinkDiffPipeline.from_pretrained(folder, vlm=VLM, decoder=FLUX, t5=T5, precision="float32", run=RUN) as made:
        yield made


def test_picture_is_that_of_the_parts_called_one_by_one(pipe, widths, tmp_path):
    one, two = random_image(1), random_image(2)
    made = pipe(
        [one, "star", two, "ring", "hat"], instruction=PAPER_INSTRUCTION, generator=7, output_type="np", **SMALL
    )
    sampling = Sampling(0.6, 0.9, 128)
    with QwenEngine(VLM, dtype="float32", sampling=sampling, add_vision_id=True, max_images=2, threads=1) as engine:
        content = (f"{PAPER_INSTRUCTION}\n\n", one, " star ", two, " ring ", " hat ")
        (answer,) = engine.generate([Request("x", content, 7)])
    assert made.text == answer.text
    rows = torch.from_numpy(answer.features[: answer.end_index])
    with torch.no_grad():
        x_LD = save_aligner(tmp_path / "aligner", *widths)(rows).numpy()
    np.testing.assert_allclose(made.prompt_embeds, x_LD, atol=1e-5)
    decoder, empty = FluxDecoder(FLUX, precision="float32"), T5Encoder(T5).empty()
    ((_, pixels),) = decoder.generate([x_LD], [7], empty, Settings(32, 32, 3, 1.0, 3.0))
    assert np.abs(made.images[0].astype(int) - pixels).max() <= 1
    assert made.frames == []


def test_picture_in_every_form_is_the_same_picture(pipe, tmp_path):
    pixels, data = random_image(3), io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(data, "PNG")
    (tmp_path / "a.png").write_bytes(data.getvalue())
    forms = (pixels, image, data.getvalue(), tmp_path / "a.png")
    made = [pipe([form, "star"], generator=1, **SMALL) for form in forms]
    assert all(isinstance(one.images[0], Image.Image) for one in made)
    assert len({(one.text, one.images[0].tobytes()) for one in made}) == 1


def test_generators_and_numbers_of_pictures_follow_diffusers(pipe):
    def drawn(generator, count: int = 1) -> list[bytes]:
        made = pipe([random_image(4), "star"], generator=generator, num_images_per_prompt=count, **SMALL)
        return [image.tobytes() for image in made.images]

    both = drawn(5, count=2)
    assert len(both) == len(set(both)) == 2
    assert drawn(5) == both[:1]
    assert drawn(torch.Generator().manual_seed(9)) == drawn(torch.Generator().manual_seed(9)) != both[:1]
    going_on = torch.Generator().manual_seed(9)
    assert drawn(going_on) != drawn(going_on)


def test_callback_hears_every_step_and_may_change_the_latents(pipe):
    steps = []

    def heard(pipeline, step, time, found):
        steps.append(step)
        return found

    def cleared(pipeline, step, time, found):
        return {"latents": torch.zeros_like(found["latents"])}

    turn = [random_image(5), "star"]
    plain, listened, changed = (
        pipe(turn, generator=2, callback_on_step_end=told, **SMALL).images[0].tobytes()
        for told in (None, heard, cleared)
    )
    assert steps == [0, 1, 2]
    assert plain == listened != changed


def test_notebook_of_the_readme_leaves_a_picture(widths, tmp_path, monkeypatch):
    readme = (Path(__file__).parents[1] / "README.md").read_text().split("## Pictures in a notebook")[1]
    code = readme.split("```python\n")[1].split("```")[0]
    folder = tmp_path / "runs" / "data" / "mini-world-1-2" / "cobsat" / "color_star"
    folder.mkdir(parents=True)
    for number, name in enumerate(("red_star", "blue_star")):
        Image.fromarray(random_image(number)).save(folder / f"{name}.jpg")
    save_aligner(tmp_path / "my-aligner", *widths)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert Image.open(tmp_path / "next.png").size == (32, 32)


def test_what_does_not_fit_is_refused_in_one_sentence(pipe, tmp_path, widths):
    (tmp_path / "no.png").write_bytes(b"text")
    with pytest.raises(InputError, match=r"no\.png: found no picture .*, expected a JPEG, PNG or WebP file"):
        pipe([tmp_path / "no.png"], **SMALL)
    with pytest.raises(SpecError, match="num_steps"):
        pipe(["star"], num_steps=3)
    save_aligner(tmp_path / "narrow", widths[0], widths[1] + 8)
    other = ThinkDiffPipeline.from_pretrained(tmp_path / "narrow", vlm=VLM, decoder=FLUX, t5=T5, run=RUN)
    with pytest.raises(SpecError, match=f"aligner: found rows of width {widths[1] + 8}, expected {widths[1]}"):
        _ = other.decoder
    save_aligner(tmp_path / "wide", widths[0] + 8, widths[1])
    with (
        ThinkDiffPipeline.from_pretrained(tmp_path / "wide", vlm=VLM, decoder=FLUX, t5=T5, run=RUN) as other,
        pytest.raises(InputError, match=f"found token features {widths[0]} wide, expected {widths[0] + 8}"),
    ):
        other(["star"], **SMALL)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, widths) -> ThinkDiffPipeline:
    """ThinkDiff-CLIP's, told by the aligner's configuration alone."""
    folder = tmp_path_factory.mktemp("clip") / "aligner"
    save_aligner(folder, TOWER_WIDTH, widths[1], "clip")
    return ThinkDiffPipeline.from_pretrained(folder, vlm=TOWER, decoder=FLUX, t5=T5, precision="float32", run=RUN)


def test_picture_of_thinkdiff_clip_is_that_of_the_parts_called_one_by_one(clip, widths, tmp_path):
    one, two = random_image(1), random_image(2)
    made = clip([one, "a star", two, "at night"], generator=7, output_type="np", **SMALL)
    aligner = save_aligner(tmp_path / "aligner", TOWER_WIDTH, widths[1], "clip")
    states = torch.from_numpy(VisionTower(TOWER, "cpu")([Image.fromarray(one), Image.fromarray(two)]))
    t5 = T5Encoder(T5)
    with torch.no_grad():
        x_LD = np.concatenate([*aligner(states).numpy(), *t5.encode(["a star at night"], eos=False)])
    np.testing.assert_allclose(made.prompt_embeds, x_LD, atol=1e-5)
    decoder = FluxDecoder(FLUX, precision="float32")
    ((_, pixels),) = decoder.generate([x_LD], [7], t5.empty(), Settings(32, 32, 3, 1.0, 3.0))
    assert np.abs(made.images[0].astype(int) - pixels).max() <= 1
    assert (made.text, made.frames) == ("", [])


def test_words_of_thinkdiff_clip_stand_behind_all_pictures_wherever_they_are_said(clip):
    one, two = random_image(1), random_image(2)
    turns = (["a star", one, two, "at night"], [one, "a star at night", two], [one, two, "a star", "at night"])
    made = [clip(turn, generator=3, **SMALL) for turn in turns]
    assert len({each.images[0].tobytes() for each in made}) == 1
    padded = clip([one], words="padded", generator=3, **SMALL)
    assert len(padded.prompt_embeds) == 17 + 128
    assert len(clip([one], generator=3, **SMALL).prompt_embeds) == 17
    with pytest.raises(SpecError, match="instruction: found one, expected none"):
        clip([one], instruction=PAPER_INSTRUCTION, **SMALL)
    with pytest.raises(InputError, match="found neither a picture nor words"):
        clip([], **SMALL)


def test_thinkdiff_clip_draws_videos_of_as_many_rows_as_the_model_reads(tmp_path):
    save_aligner(tmp_path / "aligner", TOWER_WIDTH, WIDTH, "clip")
    make_tiny_cogvideox(tmp_path / "cogvideox", rows=226)
    pipe = ThinkDiffPipeline.from_pretrained(
        tmp_path / "aligner", vlm=TOWER, decoder=tmp_path / "cogvideox", t5=make_tiny_t5(tmp_path / "t5"),
        precision="float32", run=RUN,
    )  # fmt: skip
    settings: dict[str, Any] = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "frames": FRAMES}
    made = pipe([random_image(1), "a star"], words="padded", generator=3, **settings)
    assert made.prompt_embeds.shape == (226, WIDTH)
    assert [frames.shape for frames in made.frames] == [(FRAMES, SIDE, SIDE, 3)]
    assert pipe([random_image(1), "a star"], generator=3, **settings).prompt_embeds.shape == (17 + 2, WIDTH)


def test_aligner_that_says_no_kind_is_thinkdiff_lvlms(pipe, clip, tmp_path):
    assert (pipe.clip, clip.clip) == (False, True)
    save_aligner(tmp_path / "aligner", 8, 8)
    config = json.loads((tmp_path / "aligner" / "config.json").read_text())
    assert "kind" not in config
    (tmp_path / "aligner" / "config.json").write_text(json.dumps({**config, "kind": "other"}))
    with pytest.raises(ModelError, match="expected in_features, hidden, out_features, norm and kind"):
        ThinkDiffPipeline.from_pretrained(tmp_path / "aligner", vlm=TOWER, decoder=FLUX, t5=T5, run=RUN)
