"""The aligner: token features in, prompt embeddings out (paper, section 3.3).

Linear - GELU - Linear - RMSNorm. The norm's weight starts as the T5 encoder's final norm, so that an
untrained aligner already speaks at T5's scale. Nothing else is here: no loss, no training, no files.
Parameter names are those of the authors' released checkpoints, `mm_projector.{0,2,3}.*`.

Shapes: B batch, L rows, Q width of the VLM, H width of the middle, D width of the T5.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

EPS = 1e-6


@dataclass(frozen=True)
class AlignerConfig:
    """What is needed to build the module, and whose features it takes.

    norm: how the norm's weight starts, or that there is no norm. kind: `lvlm` for the states of a VLM's answer, `clip`
    for the tokens of a vision tower.
    """

    in_features: int  # Q
    hidden: int  # H
    out_features: int  # D
    norm: Literal["t5", "default", "none"] = "t5"
    kind: Literal["lvlm", "clip"] = "lvlm"

    def as_dict(self) -> dict[str, Any]:
        """For `config.json`; `AlignerConfig(**config.as_dict())` is the way back. `lvlm` goes without saying."""
        values = asdict(self)
        return {name: value for name, value in values.items() if (name, value) != ("kind", "lvlm")}


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias, the variance in float32, or float64 where the input is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D) in the weight's type."""
        wide = x if x.dtype == torch.float64 else x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
        return self.weight * (x * scale).to(self.weight.dtype)


class Aligner(nn.Module):
    """Maps the VLM's token features to what a T5 decoder, or a diffusion model beside it, reads.

    The Linear layers start as PyTorch's own; seed the generator before. `t5_norm_D` is the weight of the T5
    encoder's final norm, which `norm="t5"` starts from; without it the norm is ones, until a state is loaded.
    """

    def __init__(self, config: AlignerConfig, t5_norm_D: torch.Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [
            nn.Linear(config.in_features, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.out_features),
        ]
        if config.norm != "none":
            layers.append(RMSNorm(config.out_features))
        self.mm_projector = nn.Sequential(*layers)
        if config.norm == "t5" and t5_norm_D is not None:
            with torch.no_grad():
                self.mm_projector.get_parameter("3.weight").copy_(t5_norm_D)

    def forward(self, x_BLQ: torch.Tensor) -> torch.Tensor:
        """(B, L, Q) or (L, Q) -> the same with D. With a norm the result is float32, also under autocast."""
        return self.mm_projector(x_BLQ)
