"""The room for a prompt: never less than what the processors of real models make of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thinkdiff.tasks.qwen_engine import prepare_torchvision
from thinkdiff.tasks.vlm_context import CONTEXT, context, picture_tokens

QWEN2 = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2}
QWEN3 = {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "merge_size": 2}
LLAVA = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
FETCHED = {"max_pixels": 50_000_000, "max_aspect": 200.0, "resize": None}


def model(folder: Path, told: Any, name: str = "preprocessor_config.json") -> str:
    """A folder with a processor's file."""
    (folder / name).write_text(json.dumps(told))
    return str(folder)


@pytest.mark.parametrize(
    ("told", "pictures", "expected"),
    [
        (QWEN2, FETCHED, 16384),
        (QWEN2, {}, 16384),
        (QWEN3, FETCHED, 16384),
        ({"image_processor": QWEN3}, FETCHED, 16384),
        (QWEN2, FETCHED | {"resize": {"longest_side": 512}}, 19**2),
        (QWEN2, FETCHED | {"max_pixels": 784 * 10_000, "max_aspect": 1}, 101**2),
        (LLAVA, FETCHED, 1280),
        ({"size": 7, "image_processor": [], "patch_size": {}}, FETCHED, 1280),
    ],
)
def test_picture_has_at_most_the_tokens_of_its_processor_and_of_its_size(
    tmp_path: Path, told: Any, pictures: dict[str, Any], expected: int
):
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / name[:3]).mkdir()
        assert picture_tokens(model(tmp_path / name[:3], told, name), pictures) == expected


@pytest.mark.parametrize("resize", [None, 300, 1500])
@pytest.mark.parametrize("pixels", [10**6, 5 * 10**7])
def test_no_picture_has_more_tokens_than_it_is_taken_to_have(tmp_path: Path, pixels: int, resize: int | None):
    prepare_torchvision()
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rng, most = np.random.default_rng(0), 0
    pictures = {"max_pixels": pixels, "max_aspect": 200.0, "resize": resize and {"longest_side": resize}}
    bound = picture_tokens(model(tmp_path, QWEN2), pictures)
    for _ in range(3000):
        area, aspect = pixels * rng.choice([1, rng.random()]), rng.choice([1, 199 ** rng.random()])
        height, width = max(int((area * aspect) ** 0.5), 16), max(int((area / aspect) ** 0.5), 16)
        scale = min(1, (resize or 10**9) / max(height, width))
        height, width = max(round(height * scale), 1), max(round(width * scale), 1)
        if max(height, width) <= 200 * min(height, width):
            made = smart_resize(height, width, 28, QWEN2["min_pixels"], QWEN2["max_pixels"])
            most = max(most, made[0] * made[1] // 784)
    assert bound // 2 < most <= bound


def test_context_has_room_for_pictures_words_and_answer_and_is_never_smaller_than_usual(tmp_path: Path):
    path = model(tmp_path, QWEN2)
    assert context(path, 1, 100, 64, FETCHED) >= 16384 + 100 + 64
    assert context(path, 4, 100, 64, {}) >= 4 * 16384 + 100 + 64
    assert context(path, 1, 100, 64, FETCHED | {"resize": {"longest_side": 512}}) == CONTEXT
    assert context(path, 1, 9000, 64, FETCHED | {"resize": {"longest_side": 512}}) >= 9000 + 64 + 19**2
