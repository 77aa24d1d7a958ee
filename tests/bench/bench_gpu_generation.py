"""What an owner of a GPU runs: how fast FLUX.1-dev draws the benchmark's pictures, and if all families do.

    python tests/bench/bench_gpu_generation.py            the families, then the sweep
    python tests/bench/bench_gpu_generation.py --tiny     on a CPU, with a small model, to try the script

The transformer and the autoencoder have FLUX.1-dev's shapes and random weights, built on the device: nothing is
downloaded and the text encoders are not there. A line for each batch size, without and with compiled blocks: pictures
a minute, hours for the benchmark's 20,000 (ten tasks, 2 and 4 shots, 1,000 prompts each) and peak memory. Time is that
of `generate`: noise, all steps, decoding, pixels. First, tiny random models of every family are drawn on the device and
on the CPU, with `offload` and without, and in bfloat16; a difference ends the script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from tiny_decoders import FRAMES, IF_SIDE, MAKERS
from tiny_diffusion import SIDE, WIDTH, make_tiny_flux

from thinkdiff.tasks.decoders import open_decoder
from thinkdiff.tasks.diffusion import Settings
from thinkdiff.tasks.flux import FluxDecoder

PICTURES = 20_000
ROWS = 128
NEAR = {"float32": 2e-2, "bfloat16": 0.2}  # of pixels in [0, 1]; a GPU's float32 products may be of tf32


def families(device: str) -> None:
    """Every family on the device against the CPU, in both precisions, with its blocks in main memory and without."""
    for name, make in MAKERS.items():
        with tempfile.TemporaryDirectory() as home:
            folder, side = str(make(Path(home))), IF_SIDE if name == "if" else SIDE
            scales = (1.0, 3.0) if name == "flux" else (3.0, 1.0)
            how = Settings(side, side, 4, *scales, frames=FRAMES)
            reference = drawn(open_decoder(folder, precision="float32"), how)
            told: dict[str, Any] = {"family": name}
            for precision in ("float32", "bfloat16"):
                plain = drawn(open_decoder(folder, device=device, precision=precision), how)
                told[precision] = round(float(np.abs(plain - reference).mean()), 6)
                assert told[precision] < NEAR[precision], (name, precision, told)
                if device != "cpu":
                    decoder = open_decoder(folder, device=device, precision=precision, offload="blocks")
                    told[f"{precision}, offloaded"] = float(np.abs(drawn(decoder, how) - plain).max())
                    assert told[f"{precision}, offloaded"] < 1e-2, (name, precision, told)
            print(json.dumps(told), flush=True)


def drawn(decoder: Any, how: Settings) -> np.ndarray:
    """Three samples of several lengths."""
    rng = np.random.default_rng(0)
    asked = [rng.standard_normal((rows, WIDTH)).astype(np.float32) for rows in (5, 7, 5)]
    null = rng.standard_normal((decoder.text.null, WIDTH)).astype(np.float32)
    made = dict(decoder.samples(asked, [1, 2, 3], null, how))
    return np.stack([made[i] for i in range(3)])


def flux(device: str, tiny: bool) -> FluxDecoder:
    """A decoder whose pipeline has FLUX.1-dev's shapes; `tiny`: the same parts, narrow and few."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    with tempfile.TemporaryDirectory() as home:
        decoder = FluxDecoder(str(make_tiny_flux(Path(home))), device=device)
    blocks, heads, width = ((1, 1), 2, 64) if tiny else ((19, 38), 24, 4096)
    channels: Any = (8, 8, 8, 8) if tiny else (128, 256, 512, 512)
    kinds: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4
    }  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(decoder.held)
    try:
        with torch.device(device):
            transformer = FluxTransformer2DModel(
                patch_size=1, in_channels=64, num_layers=blocks[0], num_single_layers=blocks[1],
                attention_head_dim=128, num_attention_heads=heads, joint_attention_dim=width,
                pooled_projection_dim=768, guidance_embeds=True, axes_dims_rope=(16, 56, 56),
            )  # fmt: skip
            vae = AutoencoderKL(
                **kinds, block_out_channels=channels, latent_channels=16, layers_per_block=2,
                norm_num_groups=8 if tiny else 32, use_quant_conv=False, use_post_quant_conv=False,
                scaling_factor=0.3611, shift_factor=0.1159,
            )  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    nothing: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    decoder.pipeline = FluxPipeline(scheduler, vae.eval(), transformer=transformer.eval(), **nothing)
    decoder.pipeline.set_progress_bar_config(disable=True)
    decoder.pooled_1P = torch.zeros(1, 768, device=device, dtype=decoder.held)
    return decoder


def sweep(decoder: FluxDecoder, compiled: bool, options: argparse.Namespace) -> None:
    """A line for each batch size."""
    how = Settings(options.side, options.side, options.steps, 3.5)
    warm = Settings(options.side, options.side, 2, 3.5)
    cuda = decoder.device != "cpu"
    for batch in options.batches:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        first = seconds(decoder, batch, warm)
        spent = [seconds(decoder, batch, how) for _ in range(options.runs)]
        middle = statistics.median(spent)
        line = {
            "batch": batch, "compiled": compiled, "seconds": round(middle, 3), "of": [round(s, 3) for s in spent],
            "pictures_a_minute": round(60 * batch / middle, 2), "hours": round(PICTURES * middle / batch / 3600, 2),
            "first_call": round(first, 1),
        }  # fmt: skip
        if cuda:
            line["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        print(json.dumps(line), flush=True)


def seconds(decoder: FluxDecoder, batch: int, how: Settings) -> float:
    """Of drawing one batch of prompts."""
    rng = np.random.default_rng(batch)
    asked = [rng.standard_normal((ROWS, decoder.width)).astype(np.float32) for _ in range(batch)]
    null = np.zeros((1, decoder.width), np.float32)
    began = time.perf_counter()
    made = list(decoder.samples(asked, range(batch), null, how, batch))
    assert len(made) == batch
    assert all(np.isfinite(x).all() for _, x in made)
    return time.perf_counter() - began


def main() -> int:
    """Prints the device, the families and the sweep, a JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model on a CPU")
    parser.add_argument("--what", choices=["all", "families", "sweep"], default="all")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--runs", type=int, default=2, help="timed batches of each size")
    parser.add_argument("--side", type=int)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    device = "cpu" if options.tiny else "cuda"
    options.side = options.side or (32 if options.tiny else 512)
    options.steps = options.steps or (3 if options.tiny else 28)
    print(json.dumps({"device": device if options.tiny else torch.cuda.get_device_name(), "torch": torch.__version__}))
    if options.what != "sweep":
        families(device)
    if options.what == "families":
        return 0
    decoder = flux(device, options.tiny)
    parameters = sum(p.numel() for p in decoder.pipeline.transformer.parameters())
    print(json.dumps({"parameters": parameters, "side": options.side, "steps": options.steps, "rows": ROWS}))
    sweep(decoder, False, options)
    decoder.pipeline.transformer.compile_repeated_blocks()
    sweep(decoder, True, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
