"""The aligner against the layers it is said to be made of, T5's own norm, and the authors' names and
counts."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from thinkdiff.tasks.aligner import Aligner, AlignerConfig
from thinkdiff.tasks.qwen_engine import prepare_torchvision


def aligner(norm: Literal["t5", "default", "none"] = "t5", weight: torch.Tensor | None = None) -> Aligner:
    torch.manual_seed(0)
    return Aligner(AlignerConfig(16, 24, 8, norm), weight)


def test_forward_is_linear_gelu_linear_and_t5s_norm():
    prepare_torchvision()
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    weight = torch.linspace(0.1, 2, 8)
    module = aligner(weight=weight)
    state = module.state_dict()
    x_BLQ = torch.randn(3, 5, 16)
    hidden = F.gelu(F.linear(x_BLQ, state["mm_projector.0.weight"], state["mm_projector.0.bias"]))
    flat = F.linear(hidden, state["mm_projector.2.weight"], state["mm_projector.2.bias"])
    norm = T5LayerNorm(8, eps=1e-6)
    norm.weight.data.copy_(weight)
    torch.testing.assert_close(module(x_BLQ), norm(flat))
    no_norm = aligner("none")
    no_norm.load_state_dict({k: v for k, v in state.items() if not k.startswith("mm_projector.3")})
    torch.testing.assert_close(no_norm(x_BLQ), flat)


def test_norm_starts_from_t5_or_from_ones_and_stays_trainable():
    weight = torch.linspace(0.1, 2, 8)
    assert torch.equal(aligner("t5", weight).state_dict()["mm_projector.3.weight"], weight)
    assert torch.equal(aligner("default", weight).state_dict()["mm_projector.3.weight"], torch.ones(8))
    assert all(parameter.requires_grad for parameter in aligner("t5", weight).parameters())
    assert list(aligner("none", weight).state_dict()) == [
        f"mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    ]


def test_norm_of_the_wrong_width_is_refused():
    with pytest.raises(RuntimeError):
        aligner("t5", torch.ones(9))


def test_papers_sizes_have_the_authors_parameter_count_and_names():
    with torch.device("meta"):
        module = Aligner(AlignerConfig(3584, 4096, 4096))
    assert sum(parameter.numel() for parameter in module.parameters()) == 31_469_568
    assert sorted(module.state_dict()) == [
        "mm_projector.0.bias",
        "mm_projector.0.weight",
        "mm_projector.2.bias",
        "mm_projector.2.weight",
        "mm_projector.3.weight",
    ]


def test_output_is_float32_under_autocast_and_near_the_full_precision_one():
    module, x_BLQ = aligner(weight=torch.ones(8)), torch.randn(2, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        low = module(x_BLQ)
    assert low.dtype == torch.float32
    assert (low - module(x_BLQ)).abs().max() < 0.05


def test_config_survives_its_dictionary():
    config = AlignerConfig(3, 4, 5, "none")
    assert AlignerConfig(**config.as_dict()) == config
