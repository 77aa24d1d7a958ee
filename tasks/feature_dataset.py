"""A feature store as a torch data set of whole batches, for a training loop of your own.

dataset = FeatureDataset(uri, 96, shuffle="exact", seed=0)
for batch in torch.utils.data.DataLoader(dataset, batch_size=None): batch["features"]    # (B, T, D)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from thinkdiff.schemas.errors import InputError
from thinkdiff.storage.feature_store import FeatureBatch, FeatureStore


class FeatureDataset(IterableDataset[dict[str, Any]]):
    """The batches of `FeatureStore.iter_batches` as tensors. `epoch` may be set between epochs.

    It reads ahead in a thread and takes no worker processes, which made it slower: each copies every batch once more.
    """

    def __init__(self, uri: str, batch_size: int, **options: Any) -> None:
        self.uri, self.batch_size, self.options = uri, batch_size, options
        self.epoch = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info() is not None:
            raise InputError(
                "feature data set: found a DataLoader with worker processes, expected none. It reads ahead itself; "
                "leave num_workers at 0."
            )
        store = FeatureStore.open(self.uri)
        for batch in store.iter_batches(self.batch_size, epoch=self.epoch, **self.options):
            yield tensors(batch)


def tensors(batch: FeatureBatch) -> dict[str, Any]:
    """rows, lengths and eos (B,) int64, token_ids (B, T) int32, features (B, T, D); keys, prompts and texts as lists.

    The features share their memory with the batch.
    """
    features = batch.features
    if features.dtype == ml_dtypes.bfloat16:  # torch takes its bits only
        states = torch.from_numpy(features.view(np.int16)).view(torch.bfloat16)
    else:
        states = torch.from_numpy(features)
    return {
        "rows": torch.from_numpy(batch.rows),
        "features": states,
        "lengths": torch.from_numpy(batch.lengths),
        "token_ids": torch.from_numpy(batch.token_ids),
        "eos": torch.from_numpy(batch.eos),
        "keys": batch.keys,
        "prompts": batch.prompts,
        "texts": batch.texts,
    }
