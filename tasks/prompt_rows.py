"""The rows that a diffusion model reads for a prompt, by method: from the VLM's features or from a text.

In: the benchmark's features and an aligner, or texts and the T5 of the decoder. Out: a Source, which makes the rows of
some prompts at a time, since those of a whole benchmark may not fit in memory. Draws nothing.

Shapes: L rows of a prompt, Q the VLM's width, D the decoder's width, N rows of the empty text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.aligner import AlignerCheckpoint, AlignerSpec
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.schemas.media import MediaSpec, Method

if TYPE_CHECKING:
    from thinkdiff.tasks.diffusion import TextRows
    from thinkdiff.tasks.t5_encoder import T5Encoder

Embeddings = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Source:
    """lengths: of every prompt's rows. embed: makes those of some prompts, (L, D) each, by their positions.

    null: how many rows of the empty text guidance reads; None for as many as the decoder says. texts: what the
    decoder's CLIPs are told of every prompt; None for the empty text.
    """

    lengths: Sequence[int]
    embed: Callable[[Sequence[int]], Embeddings]
    null: int | None = None
    texts: Sequence[str] | None = None


class AlignedRows:
    """The rows of each answer, or of its prompt, through the aligner.

    The end token's row and all behind it are left out unless `keep_eos`. An answer that is nothing but its end token
    keeps that row, since no model reads zero rows. Raises StoreError for an aligner that is lost or altered.
    """

    def __init__(self, queries: FeatureSet, aligner: AlignerCheckpoint, keep_eos: bool, device: str, log: Any) -> None:
        from thinkdiff.storage.feature_reader import LENGTHS, FeatureReader
        from thinkdiff.storage.records import spec_of
        from thinkdiff.tasks.alignment import TrainedAligner

        self._kind = spec_of(aligner, AlignerSpec).features
        self._reader, self._apply = FeatureReader(queries), TrainedAligner(aligner, device)
        self.width, self.keys = self._apply.width, self._reader.keys
        self.lengths: list[int] = self._reader.table.column(LENGTHS[self._kind]).to_pylist()
        if self._kind == "generated" and not keep_eos:
            ends: list[int] = self._reader.table.column("eos").to_pylist()
            for i in (i for i, end in enumerate(ends) if end == 0):
                log.warning("generate_media: %s has an empty answer, its end is used.", self.keys[i])
            pairs = zip(self.lengths, ends, strict=True)
            self.lengths = [max(end, 1) if end >= 0 else length for length, end in pairs]

    def __call__(self, chosen: Sequence[int]) -> Embeddings:
        """(L, D) of each of some prompts, by their positions."""
        rows = self._reader.rows(list(chosen))
        states = [row.features if self._kind == "generated" else row.input_features for row in rows]
        pairs = zip(chosen, states, strict=True)
        return [self._apply(x_LQ[: self.lengths[i]]) for i, x_LQ in pairs if x_LQ is not None]


def text_source(method: Method, texts: Sequence[str], encoder: T5Encoder, reads: TextRows, spec: MediaSpec) -> Source:
    """The rows of texts: in text_prompt as the decoder's own pipeline makes them of a user's prompt, else unpadded.

    No text is lower-cased, which the pipelines of PixArt and DeepFloyd IF do before all else.
    A decoder that always reads the same number of rows gets them padded in any case, and one that is told which rows
    are padding gets none, which is the same to it.
    """
    from thinkdiff.tasks.t5_encoder import MAX_TOKENS

    prompted, longest = method == "text_prompt", reads.longest or MAX_TOKENS
    if prompted and not reads.fixed:
        longest = min(longest, spec.prompt_rows)
    told = texts if prompted else None
    if reads.fixed or (prompted and not reads.mask):
        lengths, null = [longest] * len(texts), None if reads.fixed else longest
        return Source(lengths, lambda at: encoder.padded([texts[i] for i in at], longest, reads.t5_mask), null, told)
    keep = spec.keep_eos or prompted
    lengths = encoder.lengths(texts, keep, longest)
    return Source(lengths, lambda at: encoder.encode([texts[i] for i in at], keep, longest=longest), None, told)
