"""A judge that is a CLIP: the words nearest to a picture, and how near the right ones are.

In: PNG pictures. Out: of the object words and of the attribute words the nearest, raw as in the benchmark's
`evaluation_icl.py`, and the similarity to "{value} {thing}" of the target, a cosine times CLIP's scale, at least 0.

Shapes: N pictures, W words, D width of CLIP's common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thinkdiff.schemas.cobsat import Family
from thinkdiff.tasks.judge import Seen, Subject, Wanted, family_of, picture
from thinkdiff.tasks.models import SAFE, complete, loading, require_files


class NearestJudge:
    """Raises ModelError when the folder is not a whole CLIP."""

    def __init__(self, path: str, families: dict[str, Family], device: str = "cpu") -> None:
        require_files(path, ("config.json", "*processor_config.json", "tokenizer_config.json"))
        with loading(path):
            import torch
            from transformers import AutoProcessor, CLIPModel

            loaded = CLIPModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **SAFE)
            self.model: Any = complete(path, loaded).to(device).eval().requires_grad_(False)
            self.processor: Any = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        self.device, self.families = device, families
        self._texts: dict[str, Any] = {}

    def see(self, subjects: Sequence[Subject], wanted: Sequence[Wanted]) -> list[Seen]:
        """What is nearest to each picture."""
        import torch

        pixels = self.processor(images=[picture(data) for data in subjects], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            found = self.model.get_image_features(pixel_values=pixels.to(self.device))
            images_ND = unit(getattr(found, "pooler_output", found))
        seen = []
        for image_D, want in zip(images_ND, wanted, strict=True):
            family = family_of(self.families, want.family)
            things, values = (self._nearest(image_D, words) for words in (family.things, family.values))
            right = float(image_D @ self._text(f"{want.value} {want.thing}"))
            seen.append(Seen(values, things, max(right * float(self.model.logit_scale.exp()), 0.0)))
        return seen

    def _nearest(self, image_D: Any, words: Sequence[str]) -> str:
        import torch

        near_W = torch.stack([self._text(word) for word in words]) @ image_D
        return words[int(near_W.argmax())]

    def _text(self, text: str) -> Any:
        """(D,) of a text; there are some hundreds of them in a benchmark."""
        import torch

        if text not in self._texts:
            inputs = self.processor(text=[text], return_tensors="pt", padding=True)
            with torch.inference_mode():
                found = self.model.get_text_features(**{name: value.to(self.device) for name, value in inputs.items()})
            self._texts[text] = unit(getattr(found, "pooler_output", found))[0]
        return self._texts[text]


def unit(rows_ND: Any) -> Any:
    """Rows of length 1."""
    return rows_ND / rows_ND.norm(dim=-1, keepdim=True)
