"""Prompt embeddings of ThinkDiff-CLIP: pictures' tokens through the aligner, and behind them the words' rows of the T5.

In: pictures and words of one prompt. Out: float32 rows, [picture 1; picture 2; ...; words], as the authors' scripts put
them together. The words' rows are `own` (nothing but the words; no rows where there are none) or `padded`, as those
scripts have them: always so many rows, also of the empty text, with the states of padding tokens behind the words. FLUX
reads padding like words, and there are 128 rows of it beside a picture's 65, so `own` is the default. Nothing is drawn
here, and no pooled embedding is made.

Shapes: K tokens of a picture, L rows of a prompt, D width of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.tasks.t5_encoder import MAX_TOKENS, T5Encoder

if TYPE_CHECKING:
    from PIL import Image

    from thinkdiff.tasks.alignment import TrainedAligner
    from thinkdiff.tasks.diffusion import TextRows
    from thinkdiff.tasks.vision_tower import VisionTower

PADDED_ROWS = 128  # of words, in the authors' FLUX scripts; of a decoder that reads a fixed number, what is left of it
Rows = npt.NDArray[np.float32]
WordRows = Literal["own", "padded"]


class PicturePrompts:
    """Makes the rows of one prompt after the other. `reads`: how the decoder reads rows. The T5 is opened when needed.

    keep_eos: whether the closing `</s>` of `own` words is a row; padded words always have it.
    """

    def __init__(
        self,
        tower: VisionTower | None,
        aligner: TrainedAligner | None,
        t5: Callable[[], T5Encoder],
        reads: TextRows,
        words: WordRows = "own",
        keep_eos: bool = False,
    ) -> None:
        self.tower, self.aligner, self.t5, self.reads = tower, aligner, t5, reads
        self.words, self.keep_eos = words, keep_eos

    def __call__(self, pictures: Sequence[Image.Image], text: str = "") -> Rows:
        """(L, D). Raises InputError for neither pictures nor words, SpecError where words do not fit."""
        if not pictures and not text:
            raise InputError(
                "prompt: found neither a picture nor words, expected one of both. No model reads zero rows."
            )
        parts: list[Rows] = []
        if pictures:
            assert self.tower is not None, "whoever shows pictures has a tower and an aligner"
            assert self.aligner is not None
            parts += [self.aligner(states_KQ) for states_KQ in self.tower(pictures)]
        said = self.said(text, sum(map(len, parts)))
        return np.concatenate([*parts, said] if said is not None else parts)

    def said(self, text: str, taken: int) -> Rows | None:
        """The words' rows behind `taken` others."""
        if self.words == "padded":
            return self.t5().padded([text], self._padded(taken), self.reads.t5_mask)[0]
        if not text:
            return None
        return self.t5().encode([text], self.keep_eos, longest=self._left(taken))[0]

    def length(self, pictures: int, text: str) -> int:
        """L of a prompt with so many pictures, without running a model but the tokenizer."""
        taken = pictures * self.tower.tokens if self.tower is not None else 0
        if self.words == "padded":
            return taken + self._padded(taken)
        return taken + (self.t5().lengths([text], self.keep_eos, self._left(taken))[0] if text else 0)

    def _padded(self, taken: int) -> int:
        """How many rows padded words have behind `taken` others."""
        return self._left(taken) if self.reads.fixed else min(PADDED_ROWS, self._left(taken))

    def _left(self, taken: int) -> int:
        """How many rows of words fit behind `taken` others."""
        left = (self.reads.longest or taken + MAX_TOKENS) - taken
        if left < 1:
            raise SpecError(
                f"prompt: found {taken} rows of pictures, expected fewer than the {self.reads.longest} that the "
                "diffusion model reads, so that words fit behind them. Show fewer pictures, or name another decoder."
            )
        return left


def words_of(parts: Sequence[Any]) -> str:
    """The words among a turn's parts, joined by spaces."""
    return " ".join(part.strip() for part in parts if isinstance(part, str) and part.strip())
