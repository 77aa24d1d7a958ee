"""Writes `mini-t5` and `mini-flux` at T5 scale 1, to see what the released scale factor changes: nothing but sizes.

The functions are the same as the released models'; the T5 encoder's features are ten times as large, and FLUX and the
T5 decoder read them ten times as weakly. With them the pipeline shows how much the start of the aligner's norm matters
when T5's features are nearly as large as the VLM's.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from transformers import T5ForConditionalGeneration

from thinkdiff.mini import train_flux, train_t5, training, words


def write_unfolded(weights: Path, out: Path) -> None:
    """Copy the released folders from `weights` to `out`, with T5's scale factor taken back."""
    t5 = T5ForConditionalGeneration.from_pretrained(weights / train_t5.NAME, dtype=torch.float32)
    train_t5.fold_scale(t5, 1 / train_t5.RELEASE_SCALE)

    def write_t5(folder: Path) -> None:
        t5.save_pretrained(folder)
        words.t5_tokenizer().save_pretrained(folder)

    training.save_folder(out / train_t5.NAME, write_t5)
    shutil.copytree(weights / train_flux.NAME, out / train_flux.NAME, dirs_exist_ok=True)
    folder = out / train_flux.NAME / "transformer"
    transformer = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    with torch.no_grad():
        transformer.context_embedder.weight *= train_t5.RELEASE_SCALE
    training.save_folder(folder, lambda part: transformer.save_pretrained(part))
