"""Our own share of drawing pictures: what of `generate` is not inside diffusers' pipeline, and the ratio to a bare one.

    python tests/bench/bench_generation.py                       the miniature's FLUX, then a larger random one
    python tests/bench/bench_generation.py --prompts 8 --pairs 3 a quick look

Shares are direct accounts: the clock, and the processor time of the calling thread, inside calls of the pipeline over
those of all of `generate`. Noise, batches, tensors, checks and rounding to pixels are ours. The ratio is that of
`generate` to calls of the stock pipeline on tensors that are made before, the two in turn. One thread computes, as
several only blur the account.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from medians import median
from tiny_diffusion import make_tiny_flux

from thinkdiff.tasks.diffusion import Settings, batches
from thinkdiff.tasks.flux import FluxDecoder

LENGTHS = (6, 8, 11)


class Account:
    """Seconds inside the pipeline, by the clock and by the thread."""

    def __init__(self) -> None:
        self.clock = self.thread = 0.0

    @contextmanager
    def of(self, kind: Any) -> Iterator[None]:
        """Books calls of a pipeline's class."""
        plain = kind.__call__

        def booked(*args: Any, **named: Any) -> Any:
            clock, thread = time.perf_counter(), time.thread_time()
            try:
                return plain(*args, **named)
            finally:
                self.clock += time.perf_counter() - clock
                self.thread += time.thread_time() - thread

        kind.__call__ = booked
        try:
            yield
        finally:
            kind.__call__ = plain


def prompts(decoder: FluxDecoder, count: int) -> list[np.ndarray]:
    """Random rows of three lengths."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((LENGTHS[i % 3], decoder.width)).astype(np.float32) for i in range(count)]


def ours(decoder: FluxDecoder, asked: list[np.ndarray], how: Settings, batch: int) -> float:
    """Seconds of `generate`."""
    null = np.zeros((1, decoder.width), np.float32)
    began = time.perf_counter()
    made = sum(1 for _ in decoder.generate(asked, range(len(asked)), null, how, batch))
    assert made == len(asked)
    return time.perf_counter() - began


def bare(decoder: FluxDecoder, asked: list[np.ndarray], how: Settings, batch: int) -> float:
    """Seconds of the stock pipeline's calls for the same pictures; all that goes in is made before."""
    ready = []
    for at in batches([len(x_LD) for x_LD in asked], batch, mixed=False):
        x_BLD = torch.from_numpy(np.stack([asked[i] for i in at]))
        pooled = decoder.pooled_1P.expand(len(at), -1)
        noise = [torch.Generator().manual_seed(i) for i in at]
        ready.append({
            "prompt_embeds": x_BLD, "pooled_prompt_embeds": pooled, "generator": noise,
            "negative_prompt_embeds": torch.zeros_like(x_BLD), "negative_pooled_prompt_embeds": pooled,
        })  # fmt: skip
    began = time.perf_counter()
    for inputs in ready:
        decoder.pipeline(
            **inputs, height=how.height, width=how.width, num_inference_steps=how.steps,
            guidance_scale=how.guidance_scale, true_cfg_scale=how.true_cfg_scale, output_type="np",
        )  # fmt: skip
    return time.perf_counter() - began


def report(name: str, decoder: FluxDecoder, how: Settings, options: argparse.Namespace) -> None:
    """The account of one model, then the ratio."""
    asked, account, shares = prompts(decoder, options.prompts), Account(), list[tuple[float, float]]()
    ours(decoder, asked[:3], how, options.batch)
    bare(decoder, asked[:3], how, options.batch)
    for _ in range(options.pairs):
        account.clock = account.thread = 0.0
        thread = time.thread_time()
        with account.of(type(decoder.pipeline)):
            clock = ours(decoder, asked, how, options.batch)
        shares.append((1 - account.clock / clock, 1 - account.thread / (time.thread_time() - thread)))
    ratios = []
    for pair in range(options.pairs):
        runs = [ours, bare] if pair % 2 else [bare, ours]
        seconds = {run: run(decoder, asked, how, options.batch) for run in runs}
        ratios.append(seconds[ours] / seconds[bare])
    size = sum(p.numel() for p in decoder.pipeline.transformer.parameters()) / 1e6
    print(f"{name}: {size:.1f} M parameters, {options.prompts} pictures of {how.height}x{how.width}, {how.steps} steps")
    print(f"  ours, by the clock      {median([100 * share for share, _ in shares])} %")
    print(f"  ours, processor time    {median([100 * share for _, share in shares])} %")
    print(f"  generate over bare      {median(ratios, 3)}, {options.pairs} pairs in turn", flush=True)


def make_larger_flux(folder: Path) -> Path:
    """The tiny random FLUX with a transformer of 30 M parameters."""
    from diffusers import FluxTransformer2DModel

    make_tiny_flux(folder)
    FluxTransformer2DModel(
        patch_size=1, in_channels=48, num_layers=2, num_single_layers=4, attention_head_dim=64, num_attention_heads=8,
        joint_attention_dim=1024, pooled_projection_dim=16, axes_dims_rope=(16, 24, 24),
    ).save_pretrained(folder / "transformer")  # fmt: skip
    return folder


def main() -> int:
    """Prints shares and ratios of both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    from thinkdiff.mini.release import weights_folder

    mini = FluxDecoder(str(weights_folder() / "mini-flux"), precision="float32")
    report("miniature", mini, Settings(32, 32, 16, 1.0, 3.0), options)
    with tempfile.TemporaryDirectory() as home:
        larger = FluxDecoder(str(make_larger_flux(Path(home))), precision="float32")
        report("larger", larger, Settings(64, 64, 8, 1.0, 3.0), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
