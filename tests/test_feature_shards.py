"""The store's bytes against zarr-python's own, and what plain zarr reads from it."""

# ruff: noqa: F811 - a fixture is imported and then is a parameter's name

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import zarr
from s3_server import place, s3  # noqa: F401
from small_features import ROWS, SHARD, TOKENS, WIDTH, array_of, row, write
from zarr.codecs import Crc32cCodec, ZstdCodec

from thinkdiff.schemas.features import Codec
from thinkdiff.storage.feature_codecs import QUANTISERS, pack
from thinkdiff.storage.feature_shards import NATIVE, Layout, StoredType, encode_shard, metadata_bytes
from thinkdiff.storage.root import Folder

CODECS: tuple[Codec, ...] = get_args(Codec)


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_zarr_reads_the_store(place: Folder, dtype: StoredType, codec: Codec):
    write(place, inputs=True, dtype=dtype, codec=codec)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(place.uri, mode="r")
        assert sorted(name for name, _ in group.members()) == ["features", "input_features"]
        found = np.asarray(array_of(group)[...])
    assert found.dtype == NATIVE[dtype]
    for index in range(ROWS):
        states = row(index, dtype=dtype).features
        np.testing.assert_array_equal(found[index, : len(states)], states)
        assert np.isnan(found[index, len(states) :].astype(np.float32)).all()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_metadata_and_shards_are_zarrs_own_bytes(tmp_path: Path, dtype: StoredType, codec: Codec):
    layout = Layout(ROWS, TOKENS, WIDTH, dtype, SHARD, codec=codec)
    values = np.random.default_rng(0).standard_normal((ROWS, TOKENS, WIDTH)).astype(NATIVE[dtype])
    values[3, 2:] = np.nan
    stored, fill, attributes = values, float("nan"), {}
    if codec in QUANTISERS:
        kind = {"int8": np.int8, "fp8": np.uint8}[codec]
        stored = np.stack([pack(row_TD, codec).reshape(TOKENS, -1) for row_TD in values]).view(kind)
        fill, attributes = stored[3, 2, 0], layout.metadata()["attributes"]
    array = zarr.create_array(
        str(tmp_path / "zarr"), shape=stored.shape, chunks=(1, *stored.shape[1:]), shards=(SHARD, *stored.shape[1:]),
        dtype=stored.dtype, compressors=[*([ZstdCodec(level=1)] if codec == "zstd" else []), Crc32cCodec()],
        fill_value=fill, dimension_names=("row", "token", "code" if codec in QUANTISERS else "channel"),
        attributes=attributes, config={"write_empty_chunks": True},
    )  # fmt: skip
    array[...] = stored
    assert metadata_bytes(layout.metadata()) == (tmp_path / "zarr" / "zarr.json").read_bytes()
    for shard in range(layout.shards):
        span = layout.span(shard)
        ours = encode_shard(values[span.start : span.stop], len(span), layout)
        assert bytes(ours) == (tmp_path / "zarr" / "c" / str(shard) / "0" / "0").read_bytes()


def test_group_metadata_is_what_zarr_consolidates(tmp_path: Path):
    write(Folder(str(tmp_path)), inputs=True)
    ours = (tmp_path / "zarr.json").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (tmp_path / "zarr.json").write_text('{"attributes": {}, "zarr_format": 3, "node_type": "group"}')
        zarr.consolidate_metadata(str(tmp_path))
    assert json.loads((tmp_path / "zarr.json").read_bytes()) == json.loads(ours)
