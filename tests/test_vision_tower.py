"""The vision tower against Hugging Face's BLIP-2 and timm's EVA, pooling against bilinear interpolation."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import make_tiny_blip2

from thinkdiff.schemas.errors import InputError, ModelError
from thinkdiff.tasks.qwen_chat import Request
from thinkdiff.tasks.qwen_engine import prepare_torchvision
from thinkdiff.tasks.vision_tower import MEAN, STD, TowerEngine, VisionTower, pooled, tower_width

SIDE, PATCH, WIDTH = 56, 14, 176


def picture(seed: int, size: tuple[int, int] = (70, 45)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def reference_pixels(drawn: Image.Image) -> torch.Tensor:
    """torchvision's resize and normalisation, as BLIP-2's training transforms: no crop."""
    from torchvision.transforms import v2

    transform = v2.Compose([
        v2.Resize((SIDE, SIDE), v2.InterpolationMode.BICUBIC), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN.tolist(), STD.tolist()),
    ])  # fmt: skip
    return transform(drawn)[None]


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    """The folder of a tiny whole BLIP-2, saved in pieces as the large ones are, and the model."""
    path = tmp_path_factory.mktemp("blip2")
    model = make_tiny_blip2(path)
    assert len(list(path.glob("*.safetensors"))) > 1
    return path, model


def test_tower_of_a_blip2_is_hugging_faces(blip2):
    path, model = blip2
    tower, drawn = VisionTower(str(path), "cpu"), picture(1)
    with torch.no_grad():
        states = model.vision_model(reference_pixels(drawn)).last_hidden_state
    found = tower([drawn])
    assert found.shape == (1, 1 + 2 * 2, WIDTH)
    np.testing.assert_allclose(found[0, 0], states[0, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, pooled(states), rtol=1e-4, atol=1e-5)
    assert tower_width(str(path)) == WIDTH


@pytest.mark.parametrize("prefix", ["visual.trunk.", "visual.", ""])
def test_tower_of_an_open_clip_eva_is_timms(tmp_path, prefix):
    """EVA's giant at two layers, with the names that open_clip's and timm's files have; the class token is timm's."""
    prepare_torchvision()
    eva = importlib.import_module("timm.models.eva")
    torch.manual_seed(0)
    model = eva.Eva(
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=2, mlp_ratio=3, global_pool="token",
        num_classes=12,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn_like(value) * 0.1 + ("norm" in name and "weight" in name))
    save_file(
        {f"{prefix}{name}": value.contiguous() for name, value in model.state_dict().items()}
        | {"logit_scale": torch.ones(1)},
        tmp_path / "open_clip_model.safetensors",
    )
    drawn = picture(2)
    with torch.no_grad():
        states = model.forward_features(reference_pixels(drawn))
    found = VisionTower(str(tmp_path), "cpu")([drawn])
    np.testing.assert_allclose(found, pooled(states), rtol=1e-4, atol=1e-4)


def test_pooling_is_the_bilinear_interpolation_of_the_authors_code():
    states = torch.randn(2, 257, 10)
    grid = states[:, 1:].transpose(1, 2).reshape(2, 10, 16, 16)
    halved = torch.nn.functional.interpolate(grid, scale_factor=0.5, mode="bilinear", align_corners=False)
    expected = torch.cat([states[:, :1], halved.flatten(2).transpose(1, 2)], 1)
    found = pooled(states)
    assert found.shape == (2, 65, 10)
    torch.testing.assert_close(found, expected)


def test_engine_answers_with_the_pictures_tokens(blip2):
    path, _ = blip2
    with TowerEngine(str(path), "cpu", "float32") as engine:
        (made,) = engine.generate([Request("a key", (np.asarray(picture(3)),))])
    assert (made.key, made.token_ids, made.text) == ("a key", [], "")
    assert made.features.shape == (0, WIDTH)
    assert made.input_features is not None
    np.testing.assert_allclose(
        made.input_features, VisionTower(str(path), "cpu")([picture(3)])[0], rtol=1e-5, atol=1e-6
    )


def test_engine_refuses_what_is_no_picture(blip2):
    with TowerEngine(str(blip2[0]), "cpu", "float32") as engine, pytest.raises(InputError, match="cannot be read"):
        engine.generate([Request("a key", (b"no picture",))])


def test_folder_without_a_tower_is_refused(tmp_path):
    save_file({"encoder.block.0.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="found no tensors of a vision tower"):
        VisionTower(str(tmp_path), "cpu")


def test_tower_that_lacks_a_tensor_is_refused(blip2, tmp_path):
    from thinkdiff.tasks.vision_tower import tower_tensors

    path, _ = blip2
    tensors = tower_tensors(str(path))
    del tensors["encoder.layers.1.mlp.fc2.bias"]
    save_file(
        {f"vision_model.{name}": value.contiguous() for name, value in tensors.items()}, tmp_path / "model.safetensors"
    )
    config = json.loads((path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="not loadable"):
        VisionTower(str(tmp_path), "cpu")
