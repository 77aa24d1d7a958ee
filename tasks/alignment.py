"""A trained aligner at work: token features of one answer in, prompt embeddings out.

In: the artifact of train_aligner, or an aligner from elsewhere. Shapes: L rows, Q the VLM's width, D the T5's width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.errors import InputError, StoreError

if TYPE_CHECKING:
    from thinkdiff.tasks.aligner import Aligner


class TrainedAligner:
    """Loaded once, applied row by row in float32. Raises StoreError when the weights are lost or altered."""

    def __init__(self, trained: AlignerCheckpoint | Aligner, device: str) -> None:
        module = loaded(trained) if isinstance(trained, AlignerCheckpoint) else trained
        self.module = module.to(device).eval().requires_grad_(False)
        self.device = device

    @property
    def width(self) -> int:
        """D, the width of what comes out."""
        return self.module.config.out_features

    def __call__(self, x_LQ: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(L, Q) -> (L, D). Raises InputError for features of another width than the aligner was trained on."""
        import torch

        if x_LQ.shape[-1] != (width := self.module.config.in_features):
            raise InputError(
                f"aligner: found token features {x_LQ.shape[-1]} wide, expected {width}. It was trained on another "
                "vision-language model; take that one's recipe, or another aligner."
            )
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(x_LQ, np.float32)).to(self.device)
            return self.module(x).float().cpu().numpy()


def loaded(artifact: AlignerCheckpoint) -> Aligner:
    """The module of an artifact. Raises StoreError when the weights are lost or altered."""
    import torch

    from thinkdiff.storage.checkpoints import load_aligner
    from thinkdiff.storage.records import written_by
    from thinkdiff.tasks.aligner import Aligner, AlignerConfig

    tensors, config = load_aligner(artifact)
    try:
        module = Aligner(AlignerConfig(**config))
    except TypeError:
        raise StoreError(
            f"{artifact.uri}: found a configuration of {', '.join(config)}, expected that of an aligner as this "
            f"version knows it. It was written by {written_by(artifact)}; use that version, or re-run train_aligner "
            "with --refresh."
        ) from None
    module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in tensors.items()})
    return module
