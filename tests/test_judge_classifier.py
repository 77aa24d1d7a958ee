"""The judge against its own classifier called by hand, and the labels and folders that it refuses."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_diffusion import make_tiny_judge
from tiny_models import random_image

from thinkdiff.schemas.errors import ModelError
from thinkdiff.tasks.judge import Wanted
from thinkdiff.tasks.judge_classifier import ClassifyingJudge

LABELS = ("object/star", "color/none", "color/red", "object/ring", "style/neon", "color/blue", "style/old")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_judge(tmp_path_factory.mktemp("judge"), LABELS)


def pngs(images: np.ndarray) -> list[bytes]:
    """Pictures as PNG files."""
    found = []
    for image in images:
        data = io.BytesIO()
        Image.fromarray(image).save(data, "PNG")
        found.append(data.getvalue())
    return found


def test_verdicts_are_the_likeliest_words_within_their_groups(folder):
    from transformers import ResNetForImageClassification

    images = np.stack([random_image(seed) for seed in range(40)])
    families = ["color", "style"] * 20
    found = ClassifyingJudge(str(folder)).see(pngs(images), [Wanted(family, "", "") for family in families])
    x_NCHW = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        logits = ResNetForImageClassification.from_pretrained(folder).eval()(x_NCHW).logits
    for row, family, verdict in zip(logits.tolist(), families, found, strict=True):
        for group, word in ((family, verdict.value), ("object", verdict.thing)):
            scores = {label: x for label, x in zip(LABELS, row, strict=True) if label.startswith(group + "/")}
            assert scores[f"{group}/{word}"] == max(scores.values())
    assert len({(one.value, one.thing) for one in found}) > 2


def test_pictures_of_another_size_are_brought_to_the_judges(folder):
    images = np.stack([random_image(seed, side=64) for seed in range(3)])
    assert len(ClassifyingJudge(str(folder)).see(pngs(images), [Wanted("color", "", "")] * 3)) == 3


def test_family_without_labels_is_refused(folder):
    with pytest.raises(ModelError, match="found labels for object, color, style, expected also action"):
        ClassifyingJudge(str(folder)).see(pngs(np.zeros((1, 32, 32, 3), np.uint8)), [Wanted("action", "", "")])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("cat", "dog"), "found the label 'cat', expected <group>/<word>"),
        (("color/red", "color/blue"), "found the label groups color, expected object"),
        (("object/a", "object/b"), "found the label groups object, expected object and at least one"),
    ],
)
def test_classifier_without_both_kinds_of_labels_is_refused(tmp_path, labels, said):
    with pytest.raises(ModelError, match=said):
        ClassifyingJudge(str(make_tiny_judge(tmp_path / "judge", labels)))


def test_classifier_with_missing_weights_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"depths": [1, 2]}))
    with pytest.raises(ModelError, match="found no weights for"):
        ClassifyingJudge(str(copy))
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"found no file preprocessor_config\.json"):
        ClassifyingJudge(str(copy))
