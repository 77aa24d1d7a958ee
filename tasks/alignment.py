"""A trained aligner at work: token features of one answer in, prompt embeddings out.

In: the artifact of train_aligner. Shapes: L rows, Q the VLM's width, D the T5's width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.aligner import AlignerCheckpoint


class TrainedAligner:
    """Loaded once, applied row by row in float32. Raises StoreError when the weights are lost or altered."""

    def __init__(self, artifact: AlignerCheckpoint, device: str) -> None:
        import torch

        from thinkdiff.storage.checkpoints import load_aligner
        from thinkdiff.tasks.aligner import Aligner, AlignerConfig

        tensors, config = load_aligner(artifact)
        self.module = Aligner(AlignerConfig(**config))
        self.module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in tensors.items()})
        self.module.to(device).eval().requires_grad_(False)
        self.device = device

    def __call__(self, x_LQ: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(L, Q) -> (L, D)."""
        import torch

        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(x_LQ, np.float32)).to(self.device)
            return self.module(x).float().cpu().numpy()
