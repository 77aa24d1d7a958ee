"""How long a vLLM model spends on pictures: the seconds in its `embed_multimodal`, which both model runners call.

In: a loaded model. Out: seconds so far. It waits for nothing, so that vLLM's asynchronous scheduling goes on as before
(vLLM's own timing of encoders synchronizes the device twice for each batch of pictures).

On a CPU it is wall time. On CUDA it is the time between two events on the stream of the forward pass: what the device
worked on pictures, and its waits for the host meanwhile; a pair of events is read once it has passed. Encoders that
vLLM replays as CUDA graphs (off by default) do not come by here. Was not yet run on CUDA.
"""

from __future__ import annotations

import collections
import time
from typing import Any

import torch


class VisionClock:
    """Counts from when it was made."""

    def __init__(self, model: Any) -> None:
        self._passed = 0.0
        self._events: collections.deque[tuple[torch.cuda.Event, torch.cuda.Event]] = collections.deque()
        self._encode = getattr(model, "embed_multimodal", None)
        if self._encode is not None:
            self._on_cuda = next(model.parameters()).is_cuda
            model.embed_multimodal = self._timed

    def seconds(self) -> float:
        """The time so far; on CUDA without what the device has not yet done."""
        while self._events and self._events[0][1].query():
            begin, end = self._events.popleft()
            self._passed += begin.elapsed_time(end) / 1000
        return self._passed

    def _timed(self, **pictures: Any) -> Any:
        assert self._encode is not None
        if not self._on_cuda:
            began = time.perf_counter()
            found = self._encode(**pictures)
            self._passed += time.perf_counter() - began
            return found
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        found = self._encode(**pictures)
        end.record()
        self._events.append((begin, end))
        self.seconds()  # few pairs wait at a time
        return found
