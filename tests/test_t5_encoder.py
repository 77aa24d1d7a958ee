"""The T5 encoder against the whole T5 run by hand, one text at a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_diffusion import WIDTH, make_tiny_t5

from thinkdiff.schemas.errors import ModelError
from thinkdiff.tasks.t5_encoder import T5Encoder

TEXTS = ("a red star", "", "create an image of a blue circle at night . the circle is blue .", "a moon")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("t5"))


def by_hand(folder: Path, text: str) -> np.ndarray:
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return model.encoder(input_ids=ids).last_hidden_state[0].numpy()


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_embeddings_are_the_encoders_states_without_padding(folder, batch):
    found = T5Encoder(str(folder)).encode(TEXTS, batch=batch)
    for text, x_LD in zip(TEXTS, found, strict=True):
        expected = by_hand(folder, text)
        assert x_LD.dtype == np.float32
        assert x_LD.shape == expected.shape == (len(text.split()) + 1, WIDTH)
        np.testing.assert_allclose(x_LD, expected, atol=2e-5)


def test_end_row_is_dropped_on_request_but_never_the_only_row(folder):
    encoder = T5Encoder(str(folder))
    for with_end, without in zip(encoder.encode(TEXTS), encoder.encode(TEXTS, eos=False), strict=True):
        assert len(without) == max(len(with_end) - 1, 1)
        np.testing.assert_array_equal(without, with_end[: len(without)])
    for eos in (True, False):
        assert encoder.lengths(TEXTS, eos) == [len(x_LD) for x_LD in encoder.encode(TEXTS, eos)]
    np.testing.assert_allclose(encoder.empty(), by_hand(folder, ""), atol=2e-5)


def test_long_text_is_cut_to_the_pipelines_512_tokens_with_its_end(folder):
    (x_LD,) = T5Encoder(str(folder)).encode(["star " * 700])
    np.testing.assert_allclose(x_LD, by_hand(folder, "star " * 511), atol=2e-5)


def test_padded_text_has_all_rows_and_sees_its_padding_only_without_a_mask(folder):
    encoder = T5Encoder(str(folder))
    for mask in (True, False):
        padded = encoder.padded(TEXTS, 6, mask, batch=3)
        assert [x_LD.shape for x_LD in padded] == [(6, WIDTH)] * len(TEXTS)
        np.testing.assert_array_equal(encoder.empty(6, mask), encoder.padded([""], 6, mask)[0])
        np.testing.assert_allclose(padded[2], by_hand(folder, "create an image of a"), atol=2e-5)  # cut, with its end
        assert np.allclose(padded[0][:4], by_hand(folder, TEXTS[0]), atol=2e-5) == mask


def test_bfloat16_is_near_float32(folder):
    low, high = (T5Encoder(str(folder), precision=p).encode(TEXTS)[2] for p in ("bfloat16", "float32"))
    assert low.dtype == np.float32
    assert 0 < np.abs(low - high).max() < 0.1 * np.abs(high).max()


def test_folder_without_encoder_weights_is_a_model_error(folder, tmp_path):
    copy = make_tiny_t5(tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    with pytest.raises(ModelError, match=r"found no weights for encoder\.block\.2"):
        T5Encoder(str(copy))
