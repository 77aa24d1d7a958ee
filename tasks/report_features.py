"""The report's section on the features: some pictures with the VLM's words, and what the features look like in numbers.

In: rows of a feature set with their pictures, and its statistics. Out: HTML. The pictures are the first in the order
of their keys, which are hashes, so nobody picked them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from thinkdiff.schemas.features import OUTLIER, FeatureStatistics
from thinkdiff.tasks.feature_statistics import outlier_sentence
from thinkdiff.tasks.report_examples import TEXT_SHOWN, image
from thinkdiff.tasks.report_markup import Child, Html, join, percent, plural, table, tag
from thinkdiff.tasks.report_plots import histogram, loss_ticks, thinned

DRAWN_CHANNELS = 4096
NAMED = 6


@dataclass(frozen=True)
class Spoken:
    """A training picture, what the VLM was asked about it and what it said."""

    key: str
    picture: bytes | None
    prompt: str
    text: str


def features(answers: Sequence[Spoken], found: FeatureStatistics | None) -> Html:
    """Pictures with words, lengths, ends, norms and channels."""
    parts: list[Child] = []
    if answers:
        note = (
            f"{plural(len(answers), 'picture')} of the training set, the first by a hash: nobody picked the good ones."
        )
        parts += [tag("p", note), tag("div", *map(card, answers), class_="cards")]
    if found is None:
        return join([*parts, tag("p", "These features were made before statistics were kept.", class_="soft")])
    said = (
        f"{plural(found.rows, 'row')} of {found.tokens_per_row:.1f} tokens; the VLM ended "
        f"{percent(found.ended)}% of them itself. What follows is from {plural(found.sampled_rows, 'row')} "
        f"({plural(found.sampled_tokens, 'token')}), evenly over all."
    )
    parts += [tag("p", said), numbers(found), histogram("Words in an answer", found.words)]
    note = f"Root mean square of each channel (logarithmic) by its number. Dotted: {OUTLIER:g} times the median. "
    parts += [
        tag("h3", "Channels of the final-norm states"),
        channels(found.channel_rms, found.outliers),
        tag("p", note, outlier_sentence(found, NAMED), class_="soft"),
    ]
    return join(parts)


def card(answer: Spoken) -> Html:
    """One picture with question and answer."""
    cut = answer.text if len(answer.text) <= TEXT_SHOWN else answer.text[:TEXT_SHOWN].rstrip() + "…"
    words = tag("p", tag("small", answer.prompt), f"“{cut}”" if cut else "nothing", class_="said")
    return tag("article", image(answer.picture, "training picture"), words, class_="card answered", data_row=answer.key)


def numbers(found: FeatureStatistics) -> Html:
    """How lengths and norms are distributed."""
    spreads = {
        "Generated tokens": found.row_tokens,
        "Words": found.text_words,
        "Characters": found.text_characters,
        "Norm of a token": found.token_norm,
    }
    rows: list[list[Child]] = [
        [name, *(shown(value) for value in (s.least, s.p5, s.median, s.p95, s.most, s.mean))]
        for name, s in spreads.items()
    ]
    return table(["Numbers", "Least", "5%", "Median", "95%", "Most", "Mean"], rows)


def shown(value: float) -> str:
    """A number in at most four digits, more only where it has them before the point."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"


def channels(rms: Sequence[float], outliers: Sequence[int]) -> Html:
    """The root mean square of every channel, the outliers named."""
    positive = [(channel, value) for channel, value in enumerate(rms) if value > 0]
    if not positive:
        return tag("p", "All channels are zero.", class_="soft")
    limit, values = OUTLIER * statistics.median(rms), [value for _, value in positive]
    ends = [*values, limit] if limit > 0 else values
    low, high = math.log(min(ends) / 1.2), math.log(max(ends) * 1.2)

    def x(channel: int) -> float:
        return 1000 * (channel + 0.5) / len(rms)

    def y(value: float) -> float:
        return 1000 * (high - math.log(value)) / (high - low)

    def points(some: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"M{x(int(channel)):.1f} {y(value):.1f}h0" for channel, value in some)

    out = set(outliers)
    usual = thinned([(float(channel), value) for channel, value in positive if channel not in out], DRAWN_CHANNELS)
    ticks = loss_ticks(math.exp(low), math.exp(high))
    paths = [
        tag("path", class_="grid", d=" ".join(f"M0 {y(tick):.1f}H1000" for tick in ticks)),
        tag("path", class_="limit", d=f"M0 {y(limit):.1f}H1000") if limit > 0 else None,
        tag("path", class_="channels", d=points(usual)),
        tag("path", class_="outliers", d=points((channel, rms[channel]) for channel in outliers)),
    ]
    labels = [tag("span", f"{tick:g}", class_="y", style=f"top:{y(tick) / 10:.2f}%") for tick in ticks]
    labels += [
        tag("span", f"{number:,}", class_="x", style=f"left:{x(number) / 10:.2f}%")
        for number in dict.fromkeys((len(rms) - 1) * quarter // 4 for quarter in range(5))
    ]
    for channel in outliers[:NAMED]:
        side = "out left" if channel > len(rms) * 0.9 else "out"
        place = f"left:{x(channel) / 10:.2f}%;top:{y(rms[channel]) / 10:.2f}%"
        labels.append(tag("span", f"{channel:,}", class_=side, style=place))
    named = ", ".join(map(str, outliers[:NAMED])) or "none"
    spoken = f"Root mean square of {len(rms)} channels; outliers: {named}"
    svg = tag("svg", *paths, viewBox="0 0 1000 1000", preserveAspectRatio="none", aria_hidden="true")
    return tag("div", svg, *labels, class_="plot", role="img", aria_label=spoken)
