"""The sample: the lowest keyed hashes, each URL once, whatever the order, the cuts and the workers; and uniform."""

from __future__ import annotations

import gzip
import importlib.util
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow
from test_url_hash import plain_murmur

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.captions import CaptionFilters, CaptionSet, CaptionSpec, Collection, sample_key
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.storage.caption_blocks import MalformedRows
from thinkdiff.storage.caption_formats import Split
from thinkdiff.storage.caption_sample import read_captions, read_malformed
from thinkdiff.storage.caption_shards import collection_splits
from thinkdiff.tasks.caption_draw import Columns, Drawn, Tally, candidates, first_limit, lowest, sorting
from thinkdiff.tasks.sample_captions import sample_captions
from thinkdiff.tasks.url_hash import normal_url

Rows = dict[str, list[tuple[str, str]]]


def collections(rows: Rows, **weights: float) -> tuple[Collection, ...]:
    return tuple(
        Collection(name=name, format="cc12m-tsv", url=f"{name}*.tsv", weight=weights.get(name, 1)) for name in rows
    )


def write(folder: Path, rows: Rows, files: int = 1, shuffle: int | None = None) -> None:
    """The collections as TSV files, perhaps several each and in another order."""
    for name, pairs in rows.items():
        ordered = list(pairs)
        if shuffle is not None:
            random.Random(shuffle).shuffle(ordered)
        for i in range(files):
            text = "".join(f"{url}\t{caption}\n" for url, caption in ordered[i::files])
            (folder / f"{name}-{i}.tsv").write_text(text)


def drawn(folder: Path, spec: CaptionSpec, size: int = 1 << 30, limit: float = 1) -> Drawn | int:
    splits = [s for c in spec.collections for s in collection_splits(c, str(folder), size)]
    parts = [candidates(split, spec, limit) for split in splits]
    return lowest(splits, [tally for tally, _ in parts], [columns for _, columns in parts], spec)


def taken(found: Drawn | int) -> list[tuple[str, ...]]:
    assert isinstance(found, Drawn)
    return list(zip(*(c.to_pylist() for c in (found.key, found.collection, found.url, found.caption)), strict=True))


def expected(rows: Rows, spec: CaptionSpec) -> list[tuple[str, ...]]:
    """The sample by the letter of the spec, with plain Python."""
    weights = {c.name: c.weight for c in spec.collections}
    by_hash = defaultdict(list)
    for name, pairs in rows.items():
        for url, caption in pairs:
            hashed = plain_murmur(normal_url(url.encode()), spec.seed)
            by_hash[hashed].append((hashed / weights[name], sample_key(name, url, caption), name, url, caption))
    winners, seen = [], set()
    for _, hashed in sorted((min(found)[0], hashed) for hashed, found in by_hash.items()):
        _, *row = min(by_hash[hashed])
        if spec.distinct_captions and row[3] in seen:
            continue
        seen.add(row[3])
        winners.append(tuple(row))
    return sorted(winners[: spec.n])


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Two collections with URLs that come twice, also across them and in another spelling, and repeated captions."""
    rng = random.Random(0)
    found: Rows = {"a": [], "b": []}
    for i in range(3000):
        url = f"https://host{rng.randrange(5)}.example/{rng.randrange(2500)}.jpg"
        if rng.random() < 0.1:
            url = url.replace("host", "HOST") + "#x"
        found[rng.choice("aab")].append((url, f"caption {rng.randrange(1500)} é {i % 7}"))
    return found


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("weights", [{}, {"b": 3.0}])
@pytest.mark.parametrize("n", [1, 40, 700])
def test_sample_is_that_of_the_definition(tmp_path: Path, rows: Rows, n: int, weights: dict, distinct: bool):
    write(tmp_path, rows)
    spec = CaptionSpec(collections=collections(rows, **weights), n=n, seed=5, distinct_captions=distinct)
    assert taken(drawn(tmp_path, spec)) == expected(rows, spec)


@pytest.mark.parametrize(("files", "shuffle", "size"), [(1, None, 900), (1, 1, 1 << 30), (5, 2, 3000), (2, 3, 333)])
def test_sample_does_not_depend_on_files_order_or_cuts(
    tmp_path: Path, rows: Rows, files: int, shuffle: int | None, size: int
):
    write(tmp_path, rows, files, shuffle)
    spec = CaptionSpec(collections=collections(rows), n=300)
    found = drawn(tmp_path, spec, size)
    assert taken(found) == expected(rows, spec)
    assert isinstance(found, Drawn)
    for file, row, url in zip(found.file.to_pylist(), found.row.to_pylist(), found.url.to_pylist(), strict=True):
        assert Path(file).read_text().splitlines()[row].startswith(url + "\t")


def test_sample_does_not_depend_on_the_limit_and_too_low_a_one_is_noticed(tmp_path: Path, rows: Rows):
    write(tmp_path, rows)
    spec = CaptionSpec(collections=collections(rows), n=300)
    counts = {limit: drawn(tmp_path, spec, limit=limit) for limit in (1, 0.9, 0.5, 0.05)}
    assert taken(counts[1]) == taken(counts[0.9]) == taken(counts[0.5])
    assert isinstance(counts[0.05], int)
    duplicates = {limit: found.duplicates for limit, found in counts.items() if isinstance(found, Drawn)}
    assert len(set(duplicates.values())) == 1


def test_limit_lets_a_tenth_too_many_rows_through(tmp_path: Path):
    rows: Rows = {"a": [(f"https://x.example/{i}", "two words" if i % 4 else "one") for i in range(60_000)]}
    write(tmp_path, rows)
    spec = CaptionSpec(collections=collections(rows), n=4000, filters=CaptionFilters(min_words=2))
    splits = collection_splits(spec.collections[0], str(tmp_path), 1 << 19)
    limit = first_limit(splits, spec)
    found = sum(len(candidates(split, spec, limit)[1].hashes) for split in splits)
    assert 4000 < found < 6000


def test_number_of_distinct_urls_is_estimated(tmp_path: Path, rows: Rows):
    write(tmp_path, rows)
    found = drawn(tmp_path, CaptionSpec(collections=collections(rows), n=700))
    distinct = len({normal_url(url.encode()) for pairs in rows.values() for url, _ in pairs})
    assert isinstance(found, Drawn)
    assert abs(found.distinct / distinct - 1) < 5 / 700**0.5


def test_weight_makes_rows_of_a_collection_as_many_times_as_likely(tmp_path: Path):
    rows: Rows = {name: [(f"https://{name}.example/{i}", "x") for i in range(20_000)] for name in "ab"}
    write(tmp_path, rows)
    found = drawn(tmp_path, CaptionSpec(collections=collections(rows, b=4.0), n=2000))
    assert isinstance(found, Drawn)
    share = Counter(found.collection.to_pylist())["b"] / 2000
    assert abs(share - 0.8) < 5 * (0.8 * 0.2 / 2000) ** 0.5


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """Standard deviations that the statistic lies above its mean."""
    freedom = observed.size - 1
    return (float(((observed - expected) ** 2 / expected).sum()) - freedom) / (2 * freedom) ** 0.5


def test_over_200_seeds_no_collection_position_or_file_is_preferred(tmp_path: Path):
    rows: Rows = {"a": [(f"https://a.example/{i:04}", "x") for i in range(600)]}
    rows["b"] = [(f"http://b.example/{i}/photo.jpg?size={i % 9}", "x") for i in range(900)]
    write(tmp_path, rows, files=3)
    hits: Counter[tuple[str, int, int]] = Counter()
    for seed in range(200):
        found = drawn(tmp_path, CaptionSpec(collections=collections(rows), n=150, seed=seed))
        assert isinstance(found, Drawn)
        for file, row in zip(found.file.to_pylist(), found.row.to_pylist(), strict=True):
            name = Path(file).name
            hits[name[0], int(name[2]), row] += 1
    cells = [(c, f, r) for c, count in (("a", 200), ("b", 300)) for f in range(3) for r in range(count)]
    observed = np.array([hits[cell] for cell in cells], float)
    assert observed.sum() == 200 * 150
    kinds: dict[str, list[Any]] = {
        "row": list(range(len(cells))),
        "collection": [c for c, _, _ in cells],
        "file": [(c, f) for c, f, _ in cells],
        "position": [r // 20 for _, _, r in cells],
    }
    for kind, labels in kinds.items():
        groups = sorted(set(labels))
        sums = np.array([observed[[label == group for label in labels]].sum() for group in groups])
        sizes = np.array([labels.count(group) for group in groups], float)
        assert abs(chi_square(sums, 200 * 150 * sizes / len(cells))) < 4.5, kind


@flow(name="test-sampling", persist_result=False)
def sampled(run: Execution, spec: CaptionSpec) -> CaptionSet:
    return sample_captions(run, spec).artifact


def test_stage_gives_the_same_bytes_for_any_workers_files_and_cuts(tmp_path: Path, rows: Rows):
    spec = CaptionSpec(collections=collections(rows), n=300)
    digests = set()
    for i, (workers, files, size) in enumerate([(1, 1, 1 << 30), (2, 3, 5000), (7, 2, 700)]):
        data = tmp_path / f"data-{i}"
        data.mkdir()
        write(data, rows, files, shuffle=i)
        run = Execution(root=str(tmp_path / f"root-{i}"), data=str(data), workers=workers, split_bytes=size)
        artifact = sampled(run, spec)
        digests.add(artifact.digest)
        assert [tuple(row) for row in read_captions(artifact)] == expected(rows, spec)
        assert artifact.counts["rows"] == sum(map(len, rows.values()))
    assert len(digests) == 1


@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_stage_with_a_runner_that_is_not_installed_says_what_to_install(tmp_path: Path, rows: Rows, runner: str):
    assert importlib.util.find_spec(f"prefect_{runner}") is None, "the lock holds no cluster"
    write(tmp_path, rows)
    where = {"root": str(tmp_path / "root"), "data": str(tmp_path), "workers": 2, "split_bytes": 700, "runner": runner}
    run = Execution.model_validate(where)
    with pytest.raises(SpecError, match=f"Install thinkdiff with the extra {runner}"):
        sampled(run, CaptionSpec(collections=collections(rows), n=3))


def test_stage_accounts_for_every_row(tmp_path: Path):
    good = [(f"https://x.example/{i}", f"caption number {i}") for i in range(200)]
    bad = ["https://x.example/a\tone", "no tab", "https://x.example/b\tb\x07 two three", "ftp://x/1\tthree words here"]
    lines = [f"{url}\t{caption}" for url, caption in [*good, good[3]]]
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress("\n".join([*lines[:100], *bad, *lines[100:]]).encode()))
    spec = CaptionSpec(
        collections=(Collection(name="a", format="cc12m-tsv", url="a.tsv.gz"),),
        n=200,
        filters=CaptionFilters(min_words=2, control_characters=True),
    )
    artifact = sampled(Execution(root=str(tmp_path / "root"), data=str(tmp_path)), spec)
    counts = artifact.counts
    assert counts["rows"] == 205
    assert counts["captions"] + counts["duplicates_of_sampled"] + counts["filtered"] + counts["malformed"] == 205
    assert artifact.stats["filtered"] == {"too few words": 1, "control characters": 1}
    assert [row["row"] for row in read_malformed(artifact)] == [101, 103]
    assert artifact.stats["caption_words"]["3-4"] == 200
    assert artifact.stats["distinct_urls_estimated"] >= 190
    origins = pq.read_table(artifact.path("origins.parquet")).to_pylist()
    by_key = {row.key: row for row in read_captions(artifact)}
    assert {lines.index(f"{by_key[o['key']].url}\t{by_key[o['key']].caption}") for o in origins} == set(range(200))
    assert [f.path for f in artifact.files if not f.content] == ["malformed.parquet", "origins.parquet"]
    assert pq.ParquetFile(artifact.path("captions.parquet")).metadata.row_group(0).column(0).has_offset_index


def test_stage_with_fewer_captions_than_asked_for_says_so(tmp_path: Path, rows: Rows):
    write(tmp_path, rows)
    with pytest.raises(InputError, match=r"expected at least n = 5000\. Lower n, add a collection, or filter less"):
        sampled(
            Execution(root=str(tmp_path / "root"), data=str(tmp_path)),
            CaptionSpec(collections=collections(rows), n=5000),
        )


def test_stage_cleans_captions_after_their_keys_are_made(tmp_path: Path):
    (tmp_path / "a.tsv").write_text("https://x.example/1\tA  DOG!\n")
    collection = Collection(name="a", format="cc12m-tsv", url="a.tsv")
    spec = CaptionSpec(collections=(collection,), n=1, cleaning="blip")
    (row,) = read_captions(sampled(Execution(root=str(tmp_path / "root"), data=str(tmp_path)), spec))
    assert tuple(row) == (sample_key("a", "https://x.example/1", "A  DOG!"), "a", "https://x.example/1", "a dog")


def test_empty_columns_are_no_sample(tmp_path: Path):
    texts = [pa.array([], pa.large_binary())] * 2
    empty = Columns(np.zeros(0, np.uint64), np.zeros((0, 2), np.uint64), np.zeros(0, np.int64), *texts)
    split = Split("a", "cc12m-tsv", str(tmp_path), "a.tsv", 0, 0, 0)
    spec = CaptionSpec(collections=(Collection(name="a", format="cc12m-tsv", url="a.tsv"),), n=1)
    assert lowest([split], [Tally(0, Counter(), MalformedRows())], [empty], spec) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), unique=True))
def test_keys_are_sorted_whether_their_first_halves_differ_or_not(keys: list[tuple[int, int]]):
    halves = np.array(keys, np.uint64).reshape(-1, 2)
    assert halves[sorting(halves)].tolist() == [list(key) for key in sorted(keys)]
