"""Rows of ThinkDiff-CLIP's prompts against a concatenation written by hand with Hugging Face's models."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import random_image

from thinkdiff.mini.release import weights_folder
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.tasks.aligner import Aligner, AlignerConfig
from thinkdiff.tasks.alignment import TrainedAligner
from thinkdiff.tasks.diffusion import TextRows
from thinkdiff.tasks.picture_prompts import PADDED_ROWS, PicturePrompts, words_of
from thinkdiff.tasks.qwen_engine import prepare_torchvision
from thinkdiff.tasks.t5_encoder import T5Encoder
from thinkdiff.tasks.vision_tower import MEAN, STD, VisionTower

TOWER, T5 = (str(weights_folder() / name) for name in ("mini-eva-clip", "mini-t5"))
TOKENS, WIDTH = 17, 96
FLUX = TextRows(t5_mask=False)
COGVIDEOX = TextRows(longest=226, fixed=True, null=226, t5_mask=False)
PICTURES = [Image.fromarray(random_image(seed)) for seed in (1, 2)]
TEXT = "the star is at night ."


@cache
def parts() -> tuple[VisionTower, TrainedAligner, T5Encoder]:
    torch.manual_seed(0)
    return VisionTower(TOWER, "cpu"), TrainedAligner(Aligner(AlignerConfig(96, 32, WIDTH)), "cpu"), T5Encoder(T5)


def made(reads: TextRows, **options: Any) -> PicturePrompts:
    tower, aligner, t5 = parts()
    return PicturePrompts(tower, aligner, lambda: t5, reads, **options)


def picture_by_hand(picture: Image.Image) -> torch.Tensor:
    """The tower's states, the class token and means of 2x2 patches, through the aligner's layers one by one."""
    from transformers import Blip2VisionModel

    tower: Any = Blip2VisionModel.from_pretrained(TOWER, dtype=torch.float32).eval()
    pixels = (torch.from_numpy(np.array(picture)).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    states = tower(pixel_values=pixels.permute(2, 0, 1)[None]).last_hidden_state[0]
    grid = states[1:].reshape(4, 2, 4, 2, -1).mean((1, 3)).reshape(16, -1)
    x = torch.cat([states[:1], grid])
    first, gelu, second, norm = parts()[1].module.mm_projector
    x = second(gelu(first(x)))
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def words_by_hand(text: str, rows: int | None) -> torch.Tensor:
    """T5's encoder on the words and `</s>`, or on them and padding that it is not told of."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer: Any = AutoTokenizer.from_pretrained(T5)
    encoder: Any = T5EncoderModel.from_pretrained(T5, dtype=torch.float32).eval()
    padding: dict[str, Any] = {"padding": "max_length", "max_length": rows} if rows else {}
    return encoder(input_ids=tokenizer(text, return_tensors="pt", **padding).input_ids).last_hidden_state[0]


@pytest.mark.parametrize(
    ("reads", "options", "pictures", "text", "rows", "words"),
    [
        (FLUX, {}, 1, "", TOKENS, None),
        (FLUX, {}, 2, TEXT, 2 * TOKENS + 6, slice(0, -1)),
        (FLUX, {"keep_eos": True}, 2, TEXT, 2 * TOKENS + 7, slice(None)),
        (FLUX, {"words": "padded"}, 2, TEXT, 2 * TOKENS + 128, slice(None)),
        (FLUX, {"words": "padded"}, 1, "", TOKENS + 128, slice(None)),
        (COGVIDEOX, {"words": "padded"}, 1, TEXT, 226, slice(None)),
        (COGVIDEOX, {}, 1, TEXT, TOKENS + 6, slice(0, -1)),
        (FLUX, {}, 0, TEXT, 6, slice(0, -1)),
    ],
)
def test_rows_are_the_pictures_in_order_and_the_words_behind_them(reads, options, pictures, text, rows, words):
    prepare_torchvision()
    prompts = made(reads, **options)
    found = prompts(PICTURES[:pictures], text)
    padded = rows - pictures * TOKENS if options.get("words") else None
    with torch.no_grad():
        expected = [picture_by_hand(picture) for picture in PICTURES[:pictures]]
        if words is not None:
            expected.append(words_by_hand(text, padded)[words])
    assert found.shape == (rows, WIDTH)
    assert prompts.length(pictures, text) == rows
    np.testing.assert_allclose(found, torch.cat(expected), atol=1e-5)


def test_padded_rows_are_as_many_as_in_the_authors_scripts():
    assert PADDED_ROWS == 128
    assert parts()[0].tokens == TOKENS


def test_words_of_a_turn_are_joined():
    assert words_of(["a star ", b"picture", "", " at night", np.zeros(3)]) == "a star at night"


def test_what_no_model_can_read_is_refused():
    with pytest.raises(InputError, match="found neither a picture nor words"):
        made(FLUX)([], "")
    with pytest.raises(SpecError, match="found 238 rows of pictures, expected fewer than the 226"):
        made(COGVIDEOX)(PICTURES * 7, TEXT)
