"""Working with a feature store: rows by key and number, epochs of batches, a torch data set."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_features import INPUTS, ROWS, TOKENS, WIDTH, row, write
from store_artifacts import flip

from thinkdiff.schemas.errors import InputError, StoreError
from thinkdiff.schemas.features import TokenKind
from thinkdiff.storage.feature_shards import StoredType
from thinkdiff.storage.feature_store import FeatureBatch, FeatureStore
from thinkdiff.storage.feature_stream import Shuffle
from thinkdiff.storage.records import write_record
from thinkdiff.storage.root import Folder

HOME = f"extract_features/{'0' * 32}"
SHUFFLES: tuple[Shuffle, ...] = ("none", "exact", "runs")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(write(Folder(str(tmp_path_factory.mktemp("store"))), inputs=True))


def numbers_of(batches: Iterator[FeatureBatch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


def test_rows_are_had_by_key_by_number_and_by_several(tmp_path: Path):
    write_record(write(Folder(str(tmp_path / HOME)), inputs=True))
    store = FeatureStore.open(str(tmp_path / HOME))
    places: list[tuple[Any, int]] = [("key 003", 3), (3, 3), (-1, ROWS - 1), (np.int64(2), 2)]
    for which, index in places:
        assert store[which].key == row(index).key
        np.testing.assert_array_equal(store[which].features, row(index).features)
    assert [found.key for found in store[2:8:3]] == ["key 002", "key 005"]
    assert [found.key for found in store[["key 009", "key 000"]]] == ["key 009", "key 000"]
    assert [found.key for found in store[[4, 4]]] == ["key 004", "key 004"]
    for which in (ROWS, -ROWS - 1):
        with pytest.raises(IndexError):
            store[which]
    with pytest.raises(KeyError):
        store["another key"]


def test_folder_without_a_whole_store_says_so(tmp_path: Path):
    with pytest.raises(StoreError, match="found no whole feature set"):
        FeatureStore.open(str(tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_batches_hold_what_the_rows_hold(tmp_path: Path, dtype: StoredType, shuffle: Shuffle):
    store = FeatureStore(write(Folder(str(tmp_path)), inputs=True, dtype=dtype))
    sizes: dict[TokenKind, int] = {"generated": TOKENS, "input": INPUTS}
    for kind, most in sizes.items():
        for batch in store.iter_batches(3, shuffle=shuffle, seed=1, kind=kind, run=2, buffer=6):
            assert batch.features.shape == (len(batch.rows), most, WIDTH)
            for place, index in enumerate(batch.rows.tolist()):
                wanted = row(index, inputs=True, dtype=dtype)
                states = wanted.features if kind == "generated" else wanted.input_features
                assert states is not None
                assert batch.lengths[place] == len(states)
                np.testing.assert_array_equal(batch.features[place, : len(states)], states)
                assert not batch.features[place, len(states) :].any()
                assert batch.token_ids[place, : wanted.length].tolist() == list(wanted.token_ids)
                assert (batch.token_ids[place, wanted.length :] == -1).all()
                assert batch.eos[place] == wanted.eos
                texts = batch.keys[place], batch.prompts[place], batch.texts[place]
                assert texts == (wanted.key, wanted.prompt, wanted.text)


@given(
    st.sampled_from(SHUFFLES), st.integers(1, 12), st.integers(1, 4), st.integers(1, 5), st.integers(1, 12), st.data()
)
def test_an_epoch_holds_every_row_once_and_can_be_taken_up_anywhere(
    store: FeatureStore, shuffle: Shuffle, size: int, world: int, run: int, buffer: int, data: st.DataObject
):
    options: dict[str, Any] = {"shuffle": shuffle, "seed": 5, "run": run, "buffer": buffer, "world": world}
    shares = [numbers_of(store.iter_batches(size, rank=rank, **options)) for rank in range(world)]
    seen = [index for share in shares for batch in share for index in batch]
    assert len(set(seen)) == len(seen)
    if world == 1:
        assert sorted(seen) == list(range(ROWS))
    else:
        assert len({len(share) for share in shares}) == 1
        assert all(len(batch) == size for share in shares for batch in share)
        assert ROWS - len(seen) < world * (size + run)
    start = data.draw(st.integers(0, len(shares[0]) + 1))
    assert numbers_of(store.iter_batches(size, start=start, **options)) == shares[0][start:]


@pytest.mark.parametrize("shuffle", ["none", "exact"])
def test_a_step_holds_the_same_rows_for_any_number_of_ranks(store: FeatureStore, shuffle: Shuffle):
    alone = numbers_of(store.iter_batches(4, shuffle=shuffle, seed=3))
    ranks = [numbers_of(store.iter_batches(2, shuffle=shuffle, seed=3, rank=rank, world=2)) for rank in range(2)]
    assert [[*a, *b] for a, b in zip(*ranks, strict=True)] == alone[: ROWS // 4]


def test_order_depends_on_seed_and_epoch(store: FeatureStore):
    for shuffle in SHUFFLES[1:]:
        orders = [
            numbers_of(store.iter_batches(ROWS, shuffle=shuffle, seed=seed, epoch=epoch, run=2))
            for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))
        ]
        assert orders[0] == orders[3]
        assert len({str(order) for order in orders}) == 3


def test_runs_are_neighbours_in_random_order(store: FeatureStore):
    orders = {
        str([index for (index,) in numbers_of(store.iter_batches(1, shuffle="runs", seed=seed, run=4, buffer=1))])
        for seed in range(20)
    }
    runs = ("0, 1, 2, 3", "4, 5, 6, 7", "8, 9")
    assert orders == {f"[{', '.join(order)}]" for order in permutations(runs)}


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"rank": 1}, {"world": 0}, {"start": -1}, {"run": 0}, {"shuffle": "Exact"}]
)
def test_batches_that_cannot_be_are_refused(store: FeatureStore, wrong: dict[str, Any]):
    options: dict[str, Any] = {"batch_size": 2} | wrong
    with pytest.raises(ValueError, match="expected positive sizes"):
        next(store.iter_batches(**options))


def test_batches_of_an_altered_store_raise(tmp_path: Path):
    artifact = write(Folder(str(tmp_path)))
    store = FeatureStore(artifact)
    flip(Folder(str(tmp_path)), "features/c/1/0/0", 5)
    with pytest.raises(StoreError, match="row 4 failing its checksum"):
        list(store.iter_batches(4))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_data_set_gives_tensors(tmp_path: Path, dtype: StoredType):
    import torch
    from torch.utils.data import DataLoader

    from thinkdiff.tasks.feature_dataset import FeatureDataset

    write_record(write(Folder(str(tmp_path / HOME)), dtype=dtype))
    dataset = FeatureDataset(str(tmp_path / HOME), 4, shuffle="exact", seed=1)
    batches = list(DataLoader(dataset, batch_size=None))
    assert sorted(torch.cat([batch["rows"] for batch in batches]).tolist()) == list(range(ROWS))
    for batch in batches:
        assert batch["features"].dtype == getattr(torch, dtype)
        for index, states, length in zip(batch["rows"], batch["features"], batch["lengths"], strict=True):
            expected = row(int(index), dtype=dtype).features.astype(np.float32)
            np.testing.assert_array_equal(states[:length].float().numpy(), expected)
    first = [batch["rows"].tolist() for batch in batches]
    dataset.epoch = 1
    assert [batch["rows"].tolist() for batch in DataLoader(dataset, batch_size=None)] != first
    with pytest.raises(InputError, match="leave num_workers at 0"):
        list(DataLoader(dataset, batch_size=None, num_workers=1))
