"""The text encoder of a CLIP in the folder of a diffusers pipeline: texts in, what the pipeline takes of them out.

Each text is padded to the tokenizer's length, or cut there, as the pipelines do it. It is no judge: that is
`judge_clip`.

Shapes: B texts, C rows of the CLIP, D width of a row, P pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thinkdiff.tasks.models import SAFE, complete, loading

if TYPE_CHECKING:
    import torch


class ClipText:
    """`text_encoder{number}` and `tokenizer{number}` of a folder. Raises ModelError when they are not whole.

    kind: the class that `model_index.json` names, CLIPTextModel or CLIPTextModelWithProjection.
    """

    def __init__(self, path: str, number: str, kind: str, device: str, dtype: torch.dtype) -> None:
        place = f"{path}/text_encoder{number}"
        with loading(place):
            import transformers

            loaded = getattr(transformers, kind).from_pretrained(place, dtype=dtype, output_loading_info=True, **SAFE)
            self.model: Any = complete(place, loaded).to(device).eval().requires_grad_(False)
            self.tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(
                f"{path}/tokenizer{number}", trust_remote_code=False
            )
        self.device = device

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The states before the last layer (B, C, D), and the pooled embeddings (B, P)."""
        import torch

        ids_BC = self.tokenizer(
            list(texts), padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        with torch.no_grad(), torch.autocast(self.device, enabled=False):
            made = self.model(ids_BC.to(self.device), output_hidden_states=True)
        pooled = made.text_embeds if hasattr(made, "text_embeds") else made.pooler_output
        return made.hidden_states[-2], pooled
