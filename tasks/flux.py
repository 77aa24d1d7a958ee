"""FLUX behind prompt embeddings: (L, D) rows in, pixels out, through diffusers' own FluxPipeline.

In: the local folder of a FluxPipeline, perhaps another transformer for it, prompt embeddings and one seed a picture.
Out: uint8 (H, W, 3) pictures. The T5 of the folder is never loaded; its CLIP is, if there is one, since FLUX also
reads one pooled text embedding, which here is that of the empty text as in the authors' scripts. A folder without
CLIP (the miniature's) was trained with zeros in its place.

Shapes: B batch, L rows of the prompt, D width of a row, P pooled width, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.errors import SpecError
from thinkdiff.tasks.models import loading, require_files

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]


class FluxDecoder:
    """A FluxPipeline that is given prompt embeddings. Raises ModelError when a folder is not a whole model."""

    def __init__(
        self,
        path: str,
        transformer_path: str | None = None,
        device: str = "cpu",
        precision: Literal["bfloat16", "float32"] = "bfloat16",
    ) -> None:
        require_files(path, ("model_index.json", "transformer/*.json", "vae/*.safetensors", "scheduler/*.json"))
        with loading(transformer_path or path):
            import torch
            from diffusers import FluxTransformer2DModel

            self.device, self.precision = device, precision
            # On a GPU the weights are held as they compute; on a CPU autocast does the same to small models.
            held = torch.bfloat16 if precision == "bfloat16" and device != "cpu" else torch.float32
            given: dict[str, Any] = {"text_encoder_2": None, "tokenizer_2": None}
            if transformer_path is not None:
                given["transformer"] = FluxTransformer2DModel.from_pretrained(transformer_path, torch_dtype=held)
        with loading(path):
            from diffusers import FluxPipeline
