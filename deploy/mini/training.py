"""What the miniature's training loops share: a seeded start, progress, learning rates, saving whole folders.

A model is saved before it is scored, in bfloat16 and under its final name only when it is complete; its scores come
from the rounded weights computed in float32. Beside the weights lies `training.json`, from which `build.py` writes the
model card.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

Report = dict[str, Any]


class Clock:
    """CPU and wall seconds since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def seconds(self) -> dict[str, float]:
        return {
            "cpu_seconds": round(time.process_time() - self._cpu, 1),
            "wall_seconds": round(time.perf_counter() - self._wall, 1),
        }


class Progress:
    """A bar on a terminal, else a plain line every 100 steps with the mean of the last losses."""

    def __init__(self, name: str, total: int | None) -> None:
        self._name, self._total, self._losses = name, total, []
        self._bar = tqdm(total=total, desc=name) if sys.stderr.isatty() else None
        self._clock = Clock()
        self.step = 0

    def update(self, loss: float) -> None:
        self.step += 1
        self._losses = [*self._losses[-99:], loss]
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        elif self.step % 100 == 0 or self.step == self._total:
            spent = self._clock.seconds()
            self.say(
                f"{self.step}/{self._total or '?'} loss {np.mean(self._losses):.4f} "
                f"cpu {spent['cpu_seconds']:.0f} s wall {spent['wall_seconds']:.0f} s"
            )

    def say(self, text: str) -> None:
        tqdm.write(f"{self._name}: {text}")
        sys.stdout.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def start(seed: int) -> np.random.Generator:
    """One thread and seeded generators: a small model is slower, and no longer repeatable, on several threads."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def autocast() -> torch.autocast:
    """Matrix products in bfloat16, masters in float32; all in float32 on a processor that would only emulate bfloat16.

    Emulation is about ten times slower than float32, and most laptops have nothing else.
    """
    can = torch.cpu.get_capabilities()
    return torch.autocast("cpu", torch.bfloat16, enabled=bool(can.get("avx512_bf16") or can.get("amx_bf16")))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_step(loss: torch.Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Backward, clip to norm 1, update. Raises ArithmeticError where the loss is no longer a number."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ArithmeticError(f"training: found loss {value}, expected a number. The run diverged. Lower the rate.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    return value


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `folder`, then put it in its place."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write(part)
    for config in part.rglob("config.json"):
        held = json.loads(config.read_text())
        if held.pop("_name_or_path", None) is not None:  # where a model was trained from is no part of it
            config.write_text(json.dumps(held, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def round_to_bfloat16(model: nn.Module) -> None:
    """Round float32 parameters and buffers in place to values that bfloat16 holds exactly."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype == torch.float32:
                tensor.copy_(tensor.to(torch.bfloat16).float())


def store_float32_config(folder: Path) -> None:
    """Say float32 in config.json though the file is bfloat16: the rounded weights are meant to compute in float32."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_report(folder: Path, report: Report) -> Report:
    """Leave `training.json` in the model's folder."""
    (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
