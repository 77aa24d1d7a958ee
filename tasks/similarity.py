"""How alike pictures are, and pictures and words: cosines of embeddings of a CLIP, and of a DINO's class token.

In: PNG pictures and texts. Out: rows of length 1, so that a cosine is their product. CLIP-I compares two pictures' CLIP
embeddings, CLIP-T a picture's with a text's; DINO the last states of the class token, of facebook/dino-vits16 and the
like or of DINOv2. Each model sees a picture as its own processor makes it. It stores nothing.

Shapes: N pictures or texts, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.errors import ModelError
from thinkdiff.tasks.judge import picture
from thinkdiff.tasks.models import SAFE, complete, loading, require_files

Rows = npt.NDArray[np.float32]
CLIP_I, CLIP_T, DINO = "CLIP-I", "CLIP-T", "DINO"
MEASURES = (CLIP_I, CLIP_T, DINO)


class Clip:
    """Raises ModelError when the folder is not a whole CLIP."""

    def __init__(self, path: str, device: str = "cpu") -> None:
        require_files(path, ("config.json", "*processor_config.json", "tokenizer_config.json"))
        with loading(path):
            import torch
            from transformers import AutoProcessor, CLIPModel

            loaded = CLIPModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **SAFE)
            self.model: Any = complete(path, loaded).to(device).eval().requires_grad_(False)
            self.processor: Any = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        self.device = device

    def images(self, pictures: Sequence[bytes]) -> Rows:
        """(N, D) of pictures."""
        pixels = self.processor(images=[picture(data) for data in pictures], return_tensors="pt")["pixel_values"]
        return self._unit(self.model.get_image_features, pixel_values=pixels)

    def texts(self, texts: Sequence[str]) -> Rows:
        """(N, D) of texts; what is longer than CLIP reads is cut."""
        longest = self.model.config.text_config.max_position_embeddings
        inputs = self.processor.tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True, max_length=longest
        )
        return self._unit(
            self.model.get_text_features, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        )

    def _unit(self, model: Callable[..., Any], **inputs: Any) -> Rows:
        import torch

        with torch.inference_mode():
            found = model(**{name: value.to(self.device) for name, value in inputs.items()})
        return unit(getattr(found, "pooler_output", found))


class Dino:
    """A ViTModel, as DINO is published, or a Dinov2Model. Raises ModelError for a folder that is neither, or not whole.

    DINO's files have no pooler, which is not asked for.
    """

    def __init__(self, path: str, device: str = "cpu") -> None:
        require_files(path, ("config.json", "preprocessor_config.json"))
        with loading(path):
            import torch
            from transformers import AutoConfig, AutoImageProcessor, AutoModel

            kind = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
            if kind not in ("vit", "dinov2", "dinov2_with_registers"):
                raise ModelError(
                    f"model {path}: found a model of type {kind!r:.60}, expected a ViT of DINO or DINOv2. Name "
                    "facebook/dino-vits16 or the like."
                )
            more = {"add_pooling_layer": False} if kind == "vit" else {}
            loaded = AutoModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **more, **SAFE)
            self.model: Any = complete(path, loaded).to(device).eval().requires_grad_(False)
            self.processor: Any = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
        self.device = device

    def images(self, pictures: Sequence[bytes]) -> Rows:
        """(N, D) of pictures."""
        import torch

        pixels = self.processor(images=[picture(data) for data in pictures], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return unit(self.model(pixel_values=pixels.to(self.device)).last_hidden_state[:, 0])


def unit(rows_ND: Any) -> Rows:
    """A tensor's rows, of length 1."""
    return (rows_ND / rows_ND.norm(dim=-1, keepdim=True)).float().cpu().numpy()


def embedded(embed: Callable[[list[Any]], Rows], named: Iterable[tuple[str, Any]], size: int) -> dict[str, Rows]:
    """The row (D,) of each, by its name; so many at a time."""
    found: dict[str, Rows] = {}
    some: list[tuple[str, Any]] = []

    def flush() -> None:
        if some:
            found.update(zip([name for name, _ in some], embed([value for _, value in some]), strict=True))
            some.clear()

    for pair in named:
        some.append(pair)
        if len(some) == size:
            flush()
    flush()
    return found
