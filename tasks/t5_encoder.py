"""The T5 text encoder: texts in, prompt embeddings out, as the diffusion model was trained to read them.

In: a local folder of any T5 (its decoder is ignored). Out: one float32 (L, D) array per text, without padding
rows. It makes the text bridge, the true captions and the empty prompt of classifier-free guidance.

Shapes: B batch, L tokens, D T5 width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from thinkdiff.tasks.models import SAFE, complete, loading, require_files

MAX_TOKENS = 512  # of FLUX's own pipeline, where a decoder names no other; a longer text is cut


class T5Encoder:
    """Raises ModelError when the folder is not a whole T5."""

    def __init__(self, path: str, device: str = "cpu", precision: Literal["bfloat16", "float32"] = "float32") -> None:
        require_files(path, ("config.json", "tokenizer_config.json"))
        with loading(path):
            import torch
            from transformers import AutoTokenizer, T5EncoderModel

            self.device, self.precision = device, precision
            # On a GPU the weights are held as they compute; on a CPU autocast does the same to small models.
            held = torch.bfloat16 if precision == "bfloat16" and device != "cpu" else torch.float32
            loaded = T5EncoderModel.from_pretrained(path, dtype=held, output_loading_info=True, **SAFE)
            self.model: Any = complete(path, loaded).to(device).eval().requires_grad_(False)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)

    @property
    def width(self) -> int:
        """D, the width of the rows."""
        return self.model.config.d_model

    def encode(
        self, texts: Sequence[str], eos: bool = True, batch: int = 64, longest: int = MAX_TOKENS
    ) -> list[npt.NDArray[np.float32]]:
        """One (L, D) float32 array per text, which is cut to `longest` tokens.

        `eos` keeps the row of the closing `</s>`, which FLUX has always seen. Without it the text is encoded
        all the same with `</s>`, and the row is dropped at the end: the way in which the aligner's
        embeddings, which have no end token, look. A text without tokens keeps its `</s>`, since no model
        reads zero rows.
        """
        ids = [self._token_ids(text, longest) for text in texts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # little padding in a batch
        found: dict[int, npt.NDArray[np.float32]] = {}
        for chunk in (order[start : start + batch] for start in range(0, len(order), batch)):
            for i, x_LD in zip(chunk, self._states([ids[i] for i in chunk]), strict=True):
                found[i] = x_LD if eos or len(x_LD) == 1 else x_LD[:-1]
        return [found[i] for i in range(len(ids))]

    def lengths(self, texts: Sequence[str], eos: bool = True, longest: int = MAX_TOKENS) -> list[int]:
        """How many rows `encode` makes of each text, without running the model."""
        return [n if eos or n == 1 else n - 1 for n in (len(self._token_ids(text, longest)) for text in texts)]

    def padded(self, texts: Sequence[str], rows: int, mask: bool, batch: int = 64) -> list[npt.NDArray[np.float32]]:
        """One (rows, D) float32 array per text with its `</s>`: cut, or with the states of padding tokens behind.

        `mask` keeps the text from seeing the padding; without it padding is words like others, as some diffusion
        models were trained.
        """
        ids = [self._token_ids(text, rows) for text in texts]
        chunks = (ids[start : start + batch] for start in range(0, len(ids), batch))
        return [x_LD for chunk in chunks for x_LD in self._states(chunk, rows, mask)]

    def empty(self, rows: int = 1, mask: bool = True) -> npt.NDArray[np.float32]:
        """(rows, D) of the empty text, `</s>` and padding: the other side of classifier-free guidance."""
        return self.padded([""], rows, mask)[0]

    def _token_ids(self, text: str, longest: int) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=True, truncation=True, max_length=longest).input_ids
        assert ids[-1:] == [self.tokenizer.eos_token_id]
        return ids

    def _states(
        self, ids: list[list[int]], rows: int | None = None, mask: bool = True
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Each text's own rows, or `rows` of every text."""
        import torch

        longest = rows or max(len(row) for row in ids)
        ids_BL = torch.full((len(ids), longest), self.tokenizer.pad_token_id)
        mask_BL = torch.full_like(ids_BL, int(not mask))
        for i, row in enumerate(ids):
            ids_BL[i, : len(row)] = torch.tensor(row)
            mask_BL[i, : len(row)] = 1
        with (
            torch.inference_mode(),
            torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):
            output = self.model(input_ids=ids_BL.to(self.device), attention_mask=mask_BL.to(self.device))
        x_BLD = output.last_hidden_state.float().cpu().numpy()
        return (x_BLD[i, : rows or len(row)] for i, row in enumerate(ids))
