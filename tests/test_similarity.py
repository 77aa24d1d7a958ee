"""Embeddings of pictures and words: DINO's class token of either kind of model, and models that are neither.

The cosines themselves are held to transformers in test_gallery.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_media import png
from tiny_judges import make_tiny_clip, make_tiny_dino

from thinkdiff.schemas.errors import ModelError
from thinkdiff.tasks.similarity import Clip, Dino, embedded


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_dino_is_the_class_token_of_either_kind(tmp_path: Path, kind: str):
    model = Dino(str(make_tiny_dino(tmp_path / kind, kind)))
    with torch.no_grad():
        pixels = model.processor(images=[Image.open(io.BytesIO(png("a")))], return_tensors="pt")["pixel_values"]
        states = model.model(pixel_values=pixels).last_hidden_state[0, 0]
    np.testing.assert_allclose(model.images([png("a")])[0], states / states.norm(), atol=1e-6)


def test_text_longer_than_clip_reads_is_cut(tmp_path: Path):
    clip = Clip(str(make_tiny_clip(tmp_path / "clip")))
    long, cut = clip.texts(["x" * 500, "x" * 75])
    np.testing.assert_allclose(long, cut, atol=1e-6)


def test_embedding_a_few_at_a_time_is_that_of_all():
    asked: list[int] = []

    def embed(values: list[float]) -> np.ndarray:
        asked.append(len(values))
        return np.array([[value] for value in values], np.float32)

    found = embedded(embed, ((str(n), n) for n in range(5)), 2)
    assert {name: float(row[0]) for name, row in found.items()} == {str(n): n for n in range(5)}
    assert asked == [2, 2, 1]


def test_models_of_other_kinds_are_refused(tmp_path: Path):
    clip, dino, other = (tmp_path / name for name in ("clip", "dino", "other"))
    make_tiny_clip(clip)
    shutil.copytree(make_tiny_dino(dino), other)
    (other / "config.json").write_text((clip / "config.json").read_text())
    with pytest.raises(ModelError, match="found a model of type 'clip', expected a ViT of DINO or DINOv2"):
        Dino(str(other))
    with pytest.raises(ModelError, match="found no file tokenizer_config"):
        Clip(str(dino))
