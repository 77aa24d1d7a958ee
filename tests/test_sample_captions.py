"""Bottom-n sampling: independent of order, uniform, each key once."""

from __future__ import annotations

import random

from thinkdiff.schemas.captions import sample_key
from thinkdiff.storage.caption_sample import SampledCaption
from thinkdiff.tasks.sample_captions import BottomN


def candidate(i: int) -> SampledCaption:
    url = f"https://a.example/{i}.jpg"
    return SampledCaption(sample_key("c", url, "x"), "c", url, "x", "f", i)


def sampled(rows: list[int], n: int, seed: int = 0) -> list[str]:
    race = BottomN(n, seed)
    for i in rows:
        race.offer(candidate(i))
    return [c.url for c in race.sample()]


def test_sample_does_not_depend_on_the_order_of_rows():
    rows = list(range(500))
    shuffled = random.Random(1).sample(rows, len(rows))
    assert sampled(rows, 40) == sampled(shuffled, 40)


def test_sample_is_sorted_by_key_and_of_the_asked_size():
    race = BottomN(40, 0)
    for i in range(500):
        race.offer(candidate(i))
    keys = [c.key for c in race.sample()]
    assert len(keys) == 40
    assert keys == sorted(keys)


def test_sample_counts_a_repeated_row_once():
    race = BottomN(10, 0)
    for i in [1, 2, 1, 1, 3]:
        race.offer(candidate(i))
    assert [len(race.sample()), race.duplicates] == [3, 2]


def test_sample_of_another_seed_is_another_and_every_row_is_as_likely():
    rows = list(range(50))
    hits = dict.fromkeys(rows, 0)
    for seed in range(400):
        for url in sampled(rows, 10, seed):
            hits[int(url.rsplit("/", 1)[1][:-4])] += 1
    # each count is binomial(400, 0.2): mean 80, standard deviation 8
    assert sum(hits.values()) == 4000
    assert all(40 < count < 120 for count in hits.values())
