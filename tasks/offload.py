"""A model too large for a GPU: its blocks stay in main memory and are brought while they are read. A model in, changed.

It changes no picture and no state but where weights lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def offloaded(model: Any, device: str) -> None:
    """Brings a model to the device but for its blocks: each comes for the time it is called, from main memory.

    diffusers can do as much with a package that is not needed otherwise. The copies are those of the same weights, so
    pictures are the same.
    """
    import torch

    lists = [child for child in model.children() if isinstance(child, torch.nn.ModuleList)]
    blocks = [block for blocks in lists for block in blocks]
    away = {id(tensor) for block in blocks for tensor in tensors(block)}
    for tensor in tensors(model.requires_grad_(False)):  # or autocast would keep copies of what is brought
        if id(tensor) not in away:
            tensor.data = tensor.data.to(device)
    for block in blocks:
        held = [(tensor, tensor.data if device == "cpu" else tensor.data.pin_memory()) for tensor in tensors(block)]

        def bring(*_: Any, held: Any = held) -> None:
            for tensor, data in held:
                tensor.data = data.to(device, non_blocking=True)

        def leave(*_: Any, held: Any = held) -> None:
            for tensor, data in held:
                tensor.data = data

        leave()
        block.register_forward_pre_hook(bring)
        block.register_forward_hook(leave)


def tensors(module: Any) -> Iterator[torch.Tensor]:
    """A module's parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()
