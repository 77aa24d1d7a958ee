"""What the T5 that taught an aligner says to aligned rows: where a picture is wrong, was it the aligner's doing?

In: the rows of every prompt and the frozen T5 decoder. Out: a text for each, said greedily. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from thinkdiff.tasks.prompt_rows import AlignedRows
    from thinkdiff.tasks.t5_decoder import T5Decoder

READ_TOKENS = 128  # as many as the VLM is let say to a benchmark prompt


def read_back(rows: AlignedRows, t5: T5Decoder, batch: int, advance: Callable[[int], None]) -> list[str]:
    """The text of every prompt, in their order. Prompts of like length are read together."""
    import torch

    from thinkdiff.tasks.t5_decoder import Packing

    order, found = sorted(range(len(rows.lengths)), key=lambda i: (rows.lengths[i], i)), dict[int, str]()
    for at in (order[start : start + batch] for start in range(0, len(order), batch)):
        x_PD = torch.from_numpy(np.concatenate(rows(at))).to(t5.device)
        said = t5.read(x_PD, Packing.of([rows.lengths[i] for i in at], t5.device), READ_TOKENS)
        found |= zip(at, said, strict=True)
        advance(len(at))
    return [found[i] for i in range(len(order))]
