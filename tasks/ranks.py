"""The processes that train together, and the signal that asks them to stop. Alone, nothing is sent.

ranks = Ranks.from_torchrun("cpu")      # in each process that torchrun has started
with stop_signal() as stopping: ...
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process's number among `world` of them, and where it computes."""

    device: str
    rank: int = 0
    world: int = 1

    @classmethod
    def from_torchrun(cls, device: str) -> Self:
        """Joins the others: NCCL between GPUs, Gloo between CPUs. Raises what torch raises when they do not come."""
        if device.startswith("cuda"):
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        return cls(device, dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces each tensor by its sum over the ranks; all travel as one message. Of one type, on one device."""
        if self.world == 1:
            return
        message = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(message)
        for tensor, total in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def agreed(self, number: int) -> int:
        """The first rank's number."""
        if self.world == 1:
            return number
        told = torch.tensor([number], device=self.device)
        dist.broadcast(told, 0)
        return int(told.item())

    def leave(self) -> None:
        """Ends what `from_torchrun` began."""
        if self.world > 1:
            dist.destroy_process_group()


@contextmanager
def stop_signal(forward: Callable[[], object] = bool) -> Iterator[Callable[[], bool]]:
    """Holds SIGTERM back: whether it has come is asked for, and at the end it takes effect. `forward`: called then.

    Outside of the main thread, where Python allows no handlers, it is left as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        seen.append(number)
        forward()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGTERM, before)
        if seen:
            os.kill(os.getpid(), signal.SIGTERM)
