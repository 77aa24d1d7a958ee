"""A feature store small enough to look at: ten rows in three shards, the last one short, rows of many lengths."""

from __future__ import annotations

import numpy as np
import zarr
from store_artifacts import artifact_of

from thinkdiff.schemas.features import Codec, FeatureSet
from thinkdiff.storage import bfloat16
from thinkdiff.storage.feature_shards import NATIVE, StoredType
from thinkdiff.storage.feature_store import FeatureRow, FeatureWriter
from thinkdiff.storage.root import Folder

ROWS, TOKENS, WIDTH, SHARD, INPUTS = 10, 5, 8, 4, 3
bfloat16.register()  # what the entry point does; test_bfloat16.py tests that one


def row(index: int, inputs: bool = False, dtype: StoredType = "float32") -> FeatureRow:
    """A row whose length, end and text differ from those of its neighbours; row 7 is empty."""
    rng = np.random.default_rng(index)
    length = 0 if index == 7 else 1 + index % TOKENS
    states = rng.standard_normal((length, WIDTH), np.float32).astype(NATIVE[dtype])
    kept = rng.standard_normal((index % (INPUTS + 1), WIDTH), np.float32).astype(NATIVE[dtype]) if inputs else None
    ids = tuple(int(number) for number in rng.integers(0, 150_000, length))
    return FeatureRow(f"key {index:03}", f"prompt {index % 2}", ids, length - 1 if index % 3 else -1,
                      f"text {index} ü\x00", states, kept)  # fmt: skip


def writer_of(
    folder: Folder,
    inputs: bool = False,
    dtype: StoredType = "float32",
    prepared: bool = True,
    codec: Codec = "none",
) -> FeatureWriter:
    writer = FeatureWriter(
        folder, rows=ROWS, tokens=TOKENS, width=WIDTH, dtype=dtype, shard_size=SHARD,
        input_tokens=INPUTS if inputs else 0, codec=codec,
    )  # fmt: skip
    if prepared:
        writer.prepare()
    return writer


def write(folder: Folder, inputs: bool = False, dtype: StoredType = "float32", codec: Codec = "none") -> FeatureSet:
    writer = writer_of(folder, inputs, dtype, codec=codec)
    for shard in reversed(range(writer.shards)):
        writer.commit(shard, [row(index, inputs, dtype) for index in writer.span(shard)])
    return artifact_of(FeatureSet, folder, writer.files())


def array_of(group: zarr.Group) -> zarr.Array:
    array = group["features"]
    assert isinstance(array, zarr.Array)
    return array
