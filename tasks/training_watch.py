"""What a person watches of a training: a line with rates and time left, curves, and what the T5 reads.

In: the events of `aligner_training`. Out: a line for the log and the UI, scalars for a tracker, tables of readings.
"""

from __future__ import annotations

import time
from typing import Any

from thinkdiff.tasks.report_markup import code
from thinkdiff.tasks.trackers import Tracker

TRACK_EVERY = 10  # steps
FLUSH_SECONDS = 60.0
RECENT = 0.95  # weight of what was before in the averages that are told


class TrainingWatch:
    """Hears events; `start` is the first, once it has come."""

    def __init__(self, steps: int, open_tracker: Any) -> None:
        self.steps, self._open_tracker = steps, open_tracker
        self.start: dict[str, Any] = {}
        self.step: dict[str, Any] = {}
        self.validation: float | None = None
        self.page = ""
        self._tracker: Tracker | None = None
        self._sums: dict[str, float] = {}
        self._flushed = time.monotonic()

    def hear(self, event: dict[str, Any]) -> None:
        """Takes in an event."""
        kind = event["event"]
        if kind == "start":
            self.start, self._tracker = event, self._open_tracker(event["step"])
        elif kind == "step":
            self.step = event
            for name in ("seconds", "waited", "samples", "tokens", "rows", "places", "flops"):
                self._sums[name] = RECENT * self._sums.get(name, 0.0) + event[name]
            if self._tracker and (event["step"] % TRACK_EVERY == 0 or event["step"] == self.steps):
                values = {"loss": event["loss"], "learning rate": event["lr"], "gradient norm": event["grad_norm"]}
                self._tracker.scalars(event["step"], values | self.rates())
                if time.monotonic() - self._flushed >= FLUSH_SECONDS:
                    self._flushed = time.monotonic()
                    self._tracker.flush()
        elif kind == "validation":
            self.validation = event["loss"]
            if self._tracker:
                self._tracker.scalars(event["step"], {"validation loss": event["loss"]})
                self._tracker.flush()
        elif kind == "readings":
            self.page = readings_table(event)
            if self._tracker:
                self._tracker.text(event["step"], "read back", self.page)
                self._tracker.flush()

    def close(self) -> None:
        """The curves so far, written."""
        if self._tracker:
            self._tracker.close()

    def rates(self) -> dict[str, float]:
        """Of the last steps: a second's samples and target tokens; shares of padding that was not computed, of the
        matrix rate, and of the time that was waited for data."""
        if not self._sums:
            return {}
        sums = self._sums
        seconds = max(sums["seconds"], 1e-9)
        return {
            "samples per second": sums["samples"] / seconds,
            "tokens per second": sums["tokens"] / seconds,
            "padding avoided": 1 - (sums["tokens"] + sums["rows"]) / sums["places"],
            "utilisation": sums["flops"] / seconds / self.start["matrix_rate"],
            "waiting for data": sums["waited"] / seconds,
        }

    def line(self) -> str:
        """One line: losses, rates, shares."""
        if not self.step:
            return ""
        rates, validation = self.rates(), f" (validation {self.validation:.4f})" if self.validation is not None else ""
        return (
            f"loss {self.step['loss']:.4f}{validation}, lr {self.step['lr']:.2e}, gradient "
            f"{self.step['grad_norm']:.3g}, {rates['tokens per second']:,.0f} tokens/s, "
            f"{rates['padding avoided']:.0%} padding avoided, {rates['utilisation']:.0%} of the matrix rate, "
            f"{rates['waiting for data']:.1%} waiting for data"
        )


def readings_table(event: dict[str, Any]) -> str:
    """What the VLM went on to say, and what the T5 reads in the features before it."""
    rows = [f"| {code(row['expected'], 1000)} | {code(row['read'], 1000)} |" for row in event["rows"]]
    return "\n".join([f"Read back at step {event['step']}:", "", "| the VLM | the T5 |", "|---|---|", *rows])
