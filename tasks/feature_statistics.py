"""What a feature set looks like in numbers: lengths of answers, norms of tokens, channels that stick out.

In: a reader of the finished store. Out: `FeatureStatistics`. Features are those of a sample of rows that depends on
the number of rows alone, read once all are committed: a resumed run has the same figures, they cost the same seconds
for any number of rows, and no record of a part grows by D numbers. Sums are float64 and rounded to six digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.features import OUTLIER, FeatureStatistics, Spread
from thinkdiff.tasks.report_markup import code, grid

if TYPE_CHECKING:
    from thinkdiff.storage.feature_store import FeatureReader, FeatureRow

SAMPLE = 1024  # rows, at least where there are so many
RUN = 8  # neighbouring rows of them, which are one request to a store
READ = 64  # rows in memory
BINS = 10
Numbers = Sequence[float] | npt.NDArray[np.float64]


def measure(reader: FeatureReader, ended: int, tokens: int) -> FeatureStatistics:
    """Reads the sample and counts. ended, tokens: of all rows, as the store's parts have them."""
    width, rows = reader.shape[2], sample(len(reader))
    count, sums_D, squares_D = 0, np.zeros(width), np.zeros(width)
    norms: list[npt.NDArray[np.float64]] = []
    texts: list[str] = []
    lengths: list[int] = []
    for row in read(reader, rows):
        features_TD = row.features.astype(np.float64)
        squared_TD = features_TD * features_TD
        count += len(features_TD)
        sums_D += features_TD.sum(0)
        squares_D += squared_TD.sum(0)
        norms.append(np.sqrt(squared_TD.sum(1)))
        texts.append(row.text)
        lengths.append(row.length)
    rms_D = np.sqrt(squares_D / max(count, 1))
    beyond = np.flatnonzero(rms_D > OUTLIER * np.median(rms_D))
    words = [len(text.split()) for text in texts]
    return FeatureStatistics(
        rows=len(reader),
        ended=rounded(ended / len(reader)),
        tokens_per_row=rounded(tokens / len(reader)),
        sampled_rows=len(rows),
        sampled_tokens=count,
        row_tokens=spread(lengths),
        text_words=spread(words),
        text_characters=spread([len(text) for text in texts]),
        words=histogram(words),
        token_norm=spread(np.concatenate(norms)),
        channel_mean=tuple(map(rounded, sums_D / max(count, 1))),
        channel_rms=tuple(map(rounded, rms_D)),
        outliers=tuple(int(channel) for channel in beyond[np.argsort(-rms_D[beyond], kind="stable")]),
    )


def sample(rows: int) -> list[int]:
    """SAMPLE of the row numbers in runs, evenly over all; every row where there are no more."""
    if rows <= SAMPLE:
        return list(range(rows))
    runs = SAMPLE // RUN
    starts = [i * (rows - RUN) // (runs - 1) for i in range(runs)]
    return [start + place for start in starts for place in range(RUN)]


def read(reader: FeatureReader, rows: Sequence[int]) -> Iterator[FeatureRow]:
    """Some rows, a few in memory at a time."""
    for first in range(0, len(rows), READ):
        yield from reader.rows(rows[first : first + READ], inputs=False)


def spread(values: Numbers) -> Spread:
    """Mean, quantiles and extremes; zeros where there is nothing."""
    found = np.asarray(values, np.float64) if len(values) else np.zeros(1)
    low, median, high = np.quantile(found, (0.05, 0.5, 0.95))
    numbers = {
        "mean": found.mean(),
        "least": found.min(),
        "p5": low,
        "median": median,
        "p95": high,
        "most": found.max(),
    }
    return Spread(**{name: rounded(value) for name, value in numbers.items()})


def rounded(value: float) -> float:
    """Six significant digits: the order of a sum differs between machines in the last ones."""
    return float(f"{value:.6g}")


def histogram(counts: Sequence[int]) -> dict[str, int]:
    """How often numbers from 0 on come, in at most BINS bins of 1, 2, 5, 10, ... numbers: {"10-14": 7, ...}."""
    if not counts:
        return {}
    found = np.asarray(counts, np.int64)
    least, most = int(found.min()), int(found.max())
    widths = (digit * 10**power for power in range(19) for digit in (1, 2, 5))
    width = next(w for w in widths if most // w - least // w < BINS)
    first = least // width
    bins = np.bincount(found // width - first).tolist()
    names = [str(i) if width == 1 else f"{i * width}-{(i + 1) * width - 1}" for i in range(first, first + len(bins))]
    return dict(zip(names, bins, strict=True))


def markdown(found: FeatureStatistics, shown: Sequence[FeatureRow]) -> str:
    """The statistics and some rows as a page of the Prefect UI."""
    spreads = {
        "generated tokens": found.row_tokens,
        "words": found.text_words,
        "characters": found.text_characters,
        "norm of a token": found.token_norm,
    }
    rows = [
        [name, *(f"{value:g}" for value in (s.mean, s.least, s.p5, s.median, s.p95, s.most))]
        for name, s in spreads.items()
    ]
    numbers = grid(["", "mean", "least", "5 %", "median", "95 %", "most"], rows)
    said = (
        f"An end token came in {found.ended:.1%} of {found.rows:,} rows; {found.tokens_per_row:.1f} tokens a row. "
        f"Below, {found.sampled_rows:,} of them."
    )
    answers = grid(["asked", "said"], [[code(row.prompt, 200), code(row.text, 300)] for row in shown])
    return "\n\n".join([said, numbers, outlier_sentence(found, most=8), answers])


def outlier_sentence(found: FeatureStatistics, most: int) -> str:
    """Which channels stick out, the largest `most` of them by number."""
    median = float(np.median(found.channel_rms))
    typical = f"The median channel has a root mean square of {median:.3g}"
    if not found.outliers:
        largest = max(found.channel_rms)
        times = f"{largest / median:.1f} times that" if median else f"{largest:.3g}"
        return f"{typical}, the largest {times}; none exceeds {OUTLIER:g} times the median."
    named = ", ".join(f"{channel} ({found.channel_rms[channel]:.3g})" for channel in found.outliers[:most])
    count, more = len(found.outliers), ", …" if len(found.outliers) > most else ""
    return f"{typical}; {count} of {len(found.channel_rms):,} exceed {OUTLIER:g} times that: {named}{more}."
