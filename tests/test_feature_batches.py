"""Splits, order and shares of training batches against plain references: each law written out once more here."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from small_training import ROWS, features, make_captions, spec

from thinkdiff.mini.release import weights_folder
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage.feature_store import FeatureStore
from thinkdiff.tasks.feature_batches import FeatureBatches, cleaned, token_weights

__all__ = ["features"]


@pytest.fixture(scope="module")
def tokenizers():
    """The VLM's and the T5's."""
    from thinkdiff.tasks.qwen_engine import prepare_torchvision

    prepare_torchvision()
    from transformers import AutoTokenizer

    return [AutoTokenizer.from_pretrained(weights_folder() / name) for name in ("mini-qwen2-vl", "mini-t5")]


def batches(store, tokenizers, rank=0, ranks=1, micro_batch=0, **changes) -> FeatureBatches:
    vlm, t5 = tokenizers
    return FeatureBatches(
        spec(**changes),
        FeatureStore(store),
        vlm,
        lambda texts, most: t5(list(texts), truncation=True, max_length=most)["input_ids"],
        rank,
        ranks,
        micro_batch,
    )


def test_every_epoch_sees_each_trainable_row_once_and_never_a_held_out_one(features, tokenizers):
    data = batches(features, tokenizers)
    rows = len(data.training_rows)
    assert data.skipped == 1
    assert rows == ROWS - 1 - 8
    seen = np.concatenate([data.rows_of(step) for step in range(3 * rows // 8 + 1)])
    epochs = [seen[n * rows : (n + 1) * rows] for n in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(data.training_rows)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not set(seen) & set(data.validation_rows)
    assert 0 not in seen  # the row of one token


def test_a_step_is_the_same_whichever_steps_were_drawn_before(features, tokenizers):
    one, other = batches(features, tokenizers), batches(features, tokenizers)
    for _ in one.training(0, 9):
        pass
    (late,), (alone,) = list(one.training(9, 10)), list(other.training(9, 10))
    np.testing.assert_array_equal(late.rows, alone.rows)
    np.testing.assert_array_equal(late.shares[0].x_PQ, alone.shares[0].x_PQ)
    assert late.shares[0].targets == alone.shares[0].targets


def test_split_shows_k_tokens_and_asks_for_the_text_of_the_others(features, tokenizers):
    """k uniform in 1 … L - 1; the target is what the VLM's tokenizer makes of ids[k:], read by the T5's."""
    vlm, t5 = tokenizers
    data, store = batches(features, tokenizers), FeatureStore(features)
    shown = Counter()
    for step in range(200):
        (batch,) = data.training(step, step + 1)
        (share,) = batch.shares
        rows = [store.row(int(batch.rows[member])) for member in share.members]
        for row, x_KQ, target in zip(
            rows, np.split(share.x_PQ, np.cumsum(share.prompts)[:-1]), share.targets, strict=True
        ):
            k, length = len(x_KQ), row.length
            assert 1 <= k <= length - 1
            np.testing.assert_array_equal(x_KQ, row.features[:k])
            assert target == t5(vlm.decode(row.token_ids[k:], skip_special_tokens=True))["input_ids"]
            shown[length, k] += 1
    for length in range(4, 12):
        counts = np.array([shown[length, k] for k in range(1, length)])
        expected = counts.sum() / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 3 * len(counts) + 15  # chi-square, far beyond 0.999


def test_split_never_shows_more_than_the_longest_prefix(features, tokenizers):
    data = batches(features, tokenizers, max_split=2)
    assert {int(n) for step in data.training(0, 40) for n in step.prompts} == {1, 2}


def test_element_masking_shows_k_tokens_anywhere_and_asks_for_the_others_in_order(features, tokenizers):
    vlm, t5 = tokenizers
    data, store = batches(features, tokenizers, masking="element"), FeatureStore(features)
    scattered = 0
    for batch in data.training(0, 50):
        (share,) = batch.shares
        for member, x_KQ, target in zip(
            share.members, np.split(share.x_PQ, np.cumsum(share.prompts)[:-1]), share.targets, strict=True
        ):
            row = store.row(int(batch.rows[member]))
            places, start = [], 0
            for one in x_KQ:  # shown rows come in the order of the text
                start = next(at for at in range(start, row.length) if np.array_equal(row.features[at], one)) + 1
                places.append(start - 1)
            assert 1 <= len(places) <= row.length - 1
            rest = [token for at, token in enumerate(row.token_ids) if at not in places]
            if len(set(row.token_ids)) == row.length:  # else the same word could be taken for another
                assert target == t5(vlm.decode(rest, skip_special_tokens=True))["input_ids"]
                scattered += places != list(range(len(places)))
    assert scattered > 50


def test_no_masking_shows_all_and_asks_for_all(features, tokenizers):
    vlm, t5 = tokenizers
    data, store = batches(features, tokenizers, masking="none"), FeatureStore(features)
    (batch,) = data.training(0, 1)
    (share,) = batch.shares
    for member, count, target in zip(share.members, share.prompts, share.targets, strict=True):
        row = store.row(int(batch.rows[member]))
        assert count == row.length
        assert target == t5(vlm.decode(row.token_ids, skip_special_tokens=True))["input_ids"]


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> FeatureSet:
    """Pictures and captions."""
    return make_captions(tmp_path_factory.mktemp("captions"))


CLIP = {"features": "input", "masking": "words", "max_target_tokens": 6, "max_prompt_tokens": 4}


def test_captions_are_cleaned_as_blips_are():
    assert cleaned('  A "photo" of: a (RED) star!!  #1~2 ') == "a photo of a red star 1 2"
    assert cleaned("a cat's up-to-date, 5 %") == "a cat's up-to-date, 5 %"
    assert cleaned(" ".join(map(str, range(60)))).split(" ") == list(map(str, range(50)))
    assert cleaned(" .!? ") == "?"
    assert cleaned(" .! ") == ""


def test_captions_are_split_by_words_behind_all_of_the_picture(captions, tokenizers):
    """The split point is uniform in 1 … n - 1; of one word nothing is shown; both parts end in `</s>` and are cut."""
    _, t5 = tokenizers
    data, store = batches(captions, tokenizers, **CLIP), FeatureStore(captions)
    assert data.skipped == 5  # captions of no word
    points = Counter()
    for step in range(120):
        (batch,) = data.training(step, step + 1)
        (share,) = batch.shares
        for member, x_LQ, shown, target in zip(
            share.members, np.split(share.x_PQ, np.cumsum(share.prompts)[:-1]), share.words, share.targets, strict=True
        ):
            row = store.row(int(batch.rows[member]))
            np.testing.assert_array_equal(x_LQ, row.input_features)
            words = "".join(c for c in row.text.lower() if c not in ".!()").split()
            fits = [
                point
                for point in (range(1, len(words)) if len(words) > 1 else [0])
                if shown == t5(" ".join(words[:point]), truncation=True, max_length=4)["input_ids"]
                and target == t5(" ".join(words[point:]), truncation=True, max_length=6)["input_ids"]
            ]
            assert fits
            if len(words) == 3:
                points[fits[0]] += 1
            assert batch.prompts[member] == 5 + len(shown)
    assert 0.35 < points[1] / (points[1] + points[2]) < 0.65
    assert points.total() > 60


def test_captions_without_masking_are_asked_for_whole(captions, tokenizers):
    _, t5 = tokenizers
    data, store = batches(captions, tokenizers, **{**CLIP, "masking": "none"}), FeatureStore(captions)
    (batch,) = data.training(0, 1)
    (share,) = batch.shares
    assert share.words == []
    for member, target in zip(share.members, share.targets, strict=True):
        text = cleaned(store.row(int(batch.rows[member])).text)
        assert target == t5(text, truncation=True, max_length=6)["input_ids"]


@pytest.mark.parametrize(("which", "change", "says"), [
    ("captions", {"masking": "split"}, "found features with captions and the masking split, expected words, or none"),
    ("features", CLIP, "found features with answers of a VLM and the masking words, expected split or element"),
])  # fmt: skip
def test_masking_of_another_kind_of_features_is_refused(request, tokenizers, which, change, says):
    with pytest.raises(InputError, match=says):
        batches(request.getfixturevalue(which), tokenizers, **change)


def test_only_the_first_tokens_of_an_answer_are_used_if_so_asked(features, tokenizers):
    vlm, t5 = tokenizers
    data, store = batches(features, tokenizers, tokens=4), FeatureStore(features)
    for batch in data.training(0, 10):
        (share,) = batch.shares
        for member, count, target in zip(share.members, share.prompts, share.targets, strict=True):
            ids = store.row(int(batch.rows[member])).token_ids[:4]
            assert 1 <= count <= 3
            assert target == t5(vlm.decode(ids[count:], skip_special_tokens=True))["input_ids"]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_see_the_same_steps_and_share_them_out(features, tokenizers, ranks):
    alone = list(batches(features, tokenizers).training(0, 12))
    shared = [list(batches(features, tokenizers, rank, ranks, micro_batch=2).training(0, 12)) for rank in range(ranks)]
    for number, whole in enumerate(alone):
        (all_of_it,) = whole.shares
        expected = dict(zip(all_of_it.members.tolist(), all_of_it.targets, strict=True))
        found: dict[int, list[int]] = {}
        for steps in shared:
            batch = steps[number]
            np.testing.assert_array_equal(batch.rows, whole.rows)
            np.testing.assert_array_equal(batch.tokens, whole.tokens)
            np.testing.assert_array_equal(batch.prompts, whole.prompts)
            np.testing.assert_array_equal(batch.weights_B, whole.weights_B)
            for share in batch.shares:
                assert len(share.members) <= 2
                for member, target in zip(share.members.tolist(), share.targets, strict=True):
                    assert member not in found
                    found[member] = target
        assert found == expected


def test_weights_are_the_token_mean_of_the_batch_or_of_its_groups():
    tokens = np.array([3, 5, 2, 2, 9, 1])
    losses = [np.random.default_rng(i).random(n) for i, n in enumerate(tokens)]
    sums = np.array([one.sum() for one in losses])
    over_all = np.concatenate(losses).mean()
    assert sums @ token_weights(spec(batch=6), tokens) == pytest.approx(over_all)
    groups = np.mean([np.concatenate(losses[first : first + 2]).mean() for first in (0, 2, 4)])
    assert sums @ token_weights(spec(batch=6, loss_mean="groups", loss_groups=3), tokens) == pytest.approx(groups)


def test_validation_is_split_the_same_way_every_time_and_read_back_as_it_is(features, tokenizers):
    data = batches(features, tokenizers, readings=3)
    first, second = list(data.validation()), list(data.validation())
    assert sorted(np.concatenate([batch.rows for batch in first])) == sorted(data.validation_rows)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.prompts, two.prompts)
    found = data.readings()
    assert found is not None
    texts, share = found
    assert len(texts) == 3
    np.testing.assert_array_equal(share.prompts, first[0].prompts[:3])
