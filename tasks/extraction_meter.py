"""How fast an extraction runs and where its time goes.

In: answers as they come, the engine's counters before and after. Out: figures of one worker, those of all together, a
sentence. Tap, moving and writing are thread seconds of our own code: copying rows out of vLLM, carrying them between
processes, and encoding, hashing and storing them; prefill and decode are wall seconds of vLLM's steps, vision is the
pictures' part of prefill. On a GPU, where vision is the device's time, their border is blurred.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinkdiff.tasks.qwen_chat import Generation

KINDS = ("vision", "prefill", "decode", "tap", "moving", "writing")


class Meter:
    """Counts what one worker does. Figures: requests, tokens, and seconds by kind, those of its engine as `engine`."""

    def __init__(self) -> None:
        self._found: dict[str, float] = {"requests": 0, "tokens": 0}
        self._writing: list[float] = []  # of several threads
        self._began = 0.0
        self._before: Mapping[str, float] = {}

    def start(self, engine: Mapping[str, float]) -> None:
        """The engine is ready; these are its counters (`statistics`)."""
        self._before, self._began = engine, time.perf_counter()

    def count(self, answers: Sequence[Generation]) -> None:
        """Some answers have come."""
        self._found["requests"] += len(answers)
        self._found["tokens"] += sum(len(answer.token_ids) for answer in answers)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While answers are stored."""
        began = time.thread_time()
        yield
        self._writing.append(time.thread_time() - began)

    def stop(self, engine: Mapping[str, float]) -> None:
        """The last answer has come."""
        used = {name: value - self._before.get(name, 0.0) for name, value in engine.items()}
        moving = used.get("moving_seconds", 0.0) + used.get("received_seconds", 0.0)
        seconds = {kind: used.get(f"{kind}_seconds", 0.0) for kind in ("vision", "prefill", "decode", "tap")}
        seconds["prefill"] = max(seconds["prefill"] - seconds["vision"], 0.0)
        self._found.update({**seconds, "moving": moving, "engine": time.perf_counter() - self._began})

    def figures(self) -> dict[str, float]:
        """What was counted."""
        return {**self._found, "writing": sum(self._writing)}


def merged(workers: Sequence[Mapping[str, float]], wall: float) -> dict[str, float]:
    """The figures of several workers together, with rates over `wall` seconds."""
    total: dict[str, float] = {}
    for figures in workers:
        for name, value in figures.items():
            total[name] = total.get(name, 0.0) + value
    rates = {f"{name}_per_second": total.get(name, 0.0) / wall for name in ("requests", "tokens")}
    return {name: round(value, 3) for name, value in {**total, **rates, "wall": wall}.items()}


def sentence(figures: Mapping[str, float]) -> str:
    """Merged figures in words; shares are of the engines' time."""
    engine = figures.get("engine") or 1.0
    shares = [f"{kind} {figures[kind] / engine:.1%}" for kind in KINDS if figures.get(kind)]
    return (
        f"{figures['requests_per_second']:.1f} requests and {figures['tokens_per_second']:.0f} tokens a second; of the "
        f"engines' time {', '.join(shares)}"
    )
