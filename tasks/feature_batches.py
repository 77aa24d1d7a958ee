"""Which features and which text each training step sees: pure functions of (seed, step), so resuming needs no state.

In: a feature store in memory, of generated or of input tokens. Out: prompt rows and target texts.
Shapes: B batch, L prompt rows, Q the VLM's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thinkdiff.schemas.aligner import AlignerSpec

if TYPE_CHECKING:
    from thinkdiff.storage.feature_store import LoadedFeatures

VALIDATION_STREAM = 1 << 40


@dataclass(frozen=True)
class Batch:
    """Prompt rows (B, L, Q) float32, zero past each length; their mask (B, L) int64; B target texts."""

    x_BLQ: np.ndarray
    mask_BL: np.ndarray
    texts: list[str]


class FeatureBatches:
    """Shuffled epochs without replacement over the trainable rows, the first `validation_rows` of them held out.

    Rows are stored in the order of their keys, which are hashes, so the first rows are a random draw. A row is
    trainable when it has at least two tokens: one to show and one to predict.
    """

    def __init__(self, spec: AlignerSpec, features: LoadedFeatures, tokenizer: Any) -> None:
        self.spec, self.features, self.tokenizer = spec, features, tokenizer
        self.answer_lengths = (features.token_ids >= 0).sum(1)
        usable = np.flatnonzero(self.answer_lengths >= 2)
        self.skipped = len(self.answer_lengths) - len(usable)
        held_out = min(spec.validation_rows, max(len(usable) - 1, 0))
        self.validation_rows, self.training_rows = usable[:held_out], usable[held_out:]

    def training(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        count, size = len(self.training_rows), self.spec.batch
        rows = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, count)
            rows.append(self.training_rows[self._epoch(epoch)[place]])
        return self._batch(rows, np.random.default_rng([self.spec.seed, step]))

    def validation(self) -> list[Batch]:
        """The held-out rows, split the same way every time."""
        size = max(self.spec.batch, 64)
        chunks = [self.validation_rows[i : i + size] for i in range(0, len(self.validation_rows), size)]
        return [
            self._batch(list(rows), np.random.default_rng([self.spec.seed, VALIDATION_STREAM, i]))
            for i, rows in enumerate(chunks)
        ]

    def _epoch(self, epoch: int) -> np.ndarray:
        if getattr(self, "_epoch_number", None) != epoch:
            rng = np.random.default_rng([self.spec.seed, VALIDATION_STREAM + 1, epoch])
            self._epoch_number, self._order = epoch, rng.permutation(len(self.training_rows))
        return self._order

    def _batch(self, rows: list[int], rng: np.random.Generator) -> Batch:
        prompts, targets = [], []
        for row in rows:
            answer = int(self.answer_lengths[row])
            shown, cut = int(self.features.lengths[row]), 0
            if self.spec.masking == "split":
                shown = cut = int(rng.integers(1, min(answer - 1, self.spec.max_split) + 1))
            prompts.append(self.features.features[row, :shown])
            targets.append(self.features.token_ids[row, cut:answer])
        texts = self.tokenizer.batch_decode(targets, skip_special_tokens=True)
        longest, width = max(len(p) for p in prompts), prompts[0].shape[1]
        x_BLQ = np.zeros((len(rows), longest, width), np.float32)
        mask_BL = np.zeros((len(rows), longest), np.int64)
        for i, prompt in enumerate(prompts):
            x_BLQ[i, : len(prompt)] = prompt
            mask_BL[i, : len(prompt)] = 1
        return Batch(x_BLQ, mask_BL, texts)
