"""An engine without a model, for tests of what is around it: answers depend on a request's seed and parts alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from thinkdiff.schemas.features import FeatureSpec
from thinkdiff.tasks import engines
from thinkdiff.tasks.engines import Idle
from thinkdiff.tasks.qwen_chat import Generation, Request

WIDTH = 4


class KeyedEngine:
    """Says `spec.max_tokens` tokens of WIDTH float32 channels to everything."""

    def __init__(self, run: Any, spec: FeatureSpec, path: str, **_: Any) -> None:
        self.spec = spec

    def __enter__(self) -> Self:
        return self

    def close(self) -> None: ...

    def statistics(self) -> dict[str, float]:
        return {}

    def stream(self, batches: Iterable[Sequence[Request]]) -> Iterator[list[Generation]]:
        for batch in batches:
            yield [self.answer(request) for request in batch]

    def answer(self, request: Request) -> Generation:
        """The token of place i is i beyond a number that the request gives; its features count on from there."""
        number = request.seed & 0xFFFF
        for part in request.content:
            number = zlib.crc32(part.encode() if isinstance(part, str) else bytes(part), number) & 0xFFFF
        ids = list(range(number, number + self.spec.max_tokens))
        features_TD = np.arange(len(ids) * WIDTH, dtype=np.float32).reshape(len(ids), WIDTH) + number
        return Generation(request.key, ids, f"text {number}", features_TD, [], None, None)


def install() -> None:
    """Makes it the engine of this process, whatever is asked for."""
    engines.IDLE = Idle()
    engines.open_engine = KeyedEngine  # pyright: ignore[reportAttributeAccessIssue]
