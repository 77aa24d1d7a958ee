"""Medians of paired measurements, for the benchmarks of this folder."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence


def median(values: Sequence[float], digits: int = 2, draws: int = 2000) -> str:
    """The median with its bootstrap 95 % interval, as text."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    found = statistics.median(values), medians[int(0.025 * draws)], medians[int(0.975 * draws)]
    middle, low, high = (f"{value:.{digits}f}" for value in found)
    return f"{middle} [{low}, {high}]"
