"""How fast an extraction runs and where its time goes.

In: answers as they come, the engine's counters at the end. Out: figures and a sentence. Wall seconds are of the time
between the engine's start and its last answer; shares are of it. Tap, moving and writing are thread seconds of our own
code: copying rows out of vLLM, carrying them between processes, and encoding, hashing and storing them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinkdiff.tasks.qwen_chat import Generation


class Meter:
    """Counts one run of `extract_features`."""

    def __init__(self) -> None:
        self.requests = self.tokens = 0
        self.wall = self._began = self._writing = 0.0
        self._engine: Mapping[str, float] = {}

    def start(self) -> None:
        """The engine is ready."""
        self._began = time.perf_counter()

    def count(self, answers: Sequence[Generation]) -> None:
        """Some answers have come."""
        self.requests += len(answers)
        self.tokens += sum(len(answer.token_ids) for answer in answers)
        self.wall = time.perf_counter() - self._began

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While answers are stored."""
        began = time.thread_time()
        yield
        self._writing += time.thread_time() - began

    def stop(self, engine: Mapping[str, float]) -> None:
        """The last answer has come; `engine` are the engine's counters (`statistics`)."""
        self._engine = engine

    def figures(self) -> dict[str, float]:
        """Rates a second, and seconds by what they were spent on; empty where nothing was extracted."""
        if not self.wall:
            return {}
        engine = self._engine
        names = [f"{name}_seconds" for name in ("prefill", "decode", "tap")]
        moving = engine.get("moving_seconds", 0.0) + engine.get("received_seconds", 0.0)
        found = {
            "requests": self.requests,
            "requests_per_second": self.requests / self.wall,
            "tokens_per_second": self.tokens / self.wall,
            "wall_seconds": self.wall,
            **{name: engine[name] for name in names if name in engine},
            "moving_seconds": moving,
            "writing_seconds": self._writing,
        }
        return {name: round(value, 3) for name, value in found.items()}

    def sentence(self) -> str:
        """The figures in words."""
        figures = self.figures()
        shares = [
            f"{name} {figures[f'{name}_seconds'] / self.wall:.1%}"
            for name in ("prefill", "decode", "tap", "moving", "writing")
            if f"{name}_seconds" in figures
        ]
        return (
            f"{figures['requests_per_second']:.1f} requests and {figures['tokens_per_second']:.0f} tokens a second; "
            f"of the time {', '.join(shares)}"
        )
