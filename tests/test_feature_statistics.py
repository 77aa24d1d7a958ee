"""Statistics of features are those of a plain computation over the same rows, and the number of rows picks these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_features import ROWS, WIDTH, row, writer_of

from thinkdiff.schemas.features import OUTLIER
from thinkdiff.storage.feature_store import FeatureReader, FeatureRow, FeatureWriter
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.feature_statistics import BINS, RUN, SAMPLE, histogram, markdown, measure, sample


def committed(writer: FeatureWriter, rows: list[FeatureRow]) -> FeatureReader:
    for shard in range(writer.shards):
        writer.commit(shard, [rows[index] for index in writer.span(shard)])
    return writer.reader(writer.files())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_statistics_equal_a_plain_computation_over_all_tokens(tmp_path: Path, dtype):
    rows = [row(index, inputs=True, dtype=dtype) for index in range(ROWS)]
    found = measure(committed(writer_of(Folder(str(tmp_path)), True, dtype), rows), ended=6, tokens=25)
    tokens = np.concatenate([one.features for one in rows]).astype(np.float64)
    assert (found.rows, found.sampled_rows, found.sampled_tokens) == (ROWS, ROWS, len(tokens))
    assert (found.ended, found.tokens_per_row) == (0.6, 2.5)
    np.testing.assert_allclose(found.channel_mean, tokens.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.channel_rms, np.sqrt((tokens**2).mean(0)), rtol=1e-5)
    norms = np.linalg.norm(tokens, axis=1)
    assert found.token_norm.mean == pytest.approx(norms.mean(), rel=1e-5)
    assert found.token_norm.p95 == pytest.approx(np.quantile(norms, 0.95), rel=1e-5)
    assert found.row_tokens.most == max(one.length for one in rows)
    assert found.text_characters.least == min(len(one.text) for one in rows)
    assert sum(found.words.values()) == ROWS
    assert found.outliers == ()
    assert "none exceeds 6 times the median" in markdown(found, rows[:2])


def test_channels_beyond_the_limit_are_outliers_the_largest_first(tmp_path: Path):
    rows = []
    for index in range(ROWS):
        features = np.ones((2, WIDTH), np.float32)
        features[:, [1, 4, 6]] = OUTLIER * 2, OUTLIER * 0.99, -OUTLIER * 3
        rows.append(FeatureRow(f"key {index:03}", "prompt", (1, 2), -1, "a b", features))
    found = measure(committed(writer_of(Folder(str(tmp_path))), rows), ended=0, tokens=20)
    assert found.outliers == (6, 1)
    assert (found.channel_rms[6], found.channel_mean[6]) == (OUTLIER * 3, -OUTLIER * 3)
    assert "2 of 8 exceed 6 times that: 6 (18), 1 (12)." in markdown(found, [])


def test_large_store_is_measured_on_the_sample_alone(tmp_path: Path):
    count = SAMPLE + 300
    writer = FeatureWriter(Folder(str(tmp_path)), rows=count, tokens=1, width=2, dtype="float32", shard_size=500)
    writer.prepare()
    rows = [
        FeatureRow(f"{index:06}", "", (index,), -1, "x", np.full((1, 2), index, np.float32)) for index in range(count)
    ]
    found = measure(committed(writer, rows), ended=0, tokens=count)
    assert (found.rows, found.sampled_rows, found.sampled_tokens) == (count, SAMPLE, SAMPLE)
    assert found.channel_mean == pytest.approx([np.mean(sample(count))] * 2, rel=1e-5)


@given(st.integers(1, 10**8))
def test_sample_is_of_distinct_rows_in_runs_over_the_whole_store(rows: int):
    found = sample(rows)
    assert found == sorted(set(found))
    assert len(found) == min(rows, SAMPLE)
    assert (found[0], found[-1]) == (0, rows - 1)
    assert np.diff(found).max(initial=1) <= max(rows // (SAMPLE // RUN - 1) + 1, 1)


@given(st.lists(st.integers(0, 5000), max_size=50))
def test_histogram_counts_every_number_in_few_bins(counts: list[int]):
    found = histogram(counts)
    assert sum(found.values()) == len(counts)
    assert len(found) <= BINS
    for name, count in found.items():
        low, _, high = name.partition("-")
        assert count == sum(int(low) <= number <= int(high or low) for number in counts)
