"""What the T5 that taught an aligner finds in aligned rows: where a picture is wrong, was it the aligner's doing?

In: the rows of every prompt, the captions to choose from and the frozen T5 decoder. Out: of each prompt the caption
that the T5 finds likeliest, as a judge chooses among the words of the benchmark. It is not asked to speak: it was to go
on with a text, and to rows of a whole one it has little to say. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from thinkdiff.tasks.prompt_rows import AlignedRows
    from thinkdiff.tasks.t5_decoder import T5Decoder

READ_TOKENS = 128  # of a caption at most
CAPTIONS = 128  # that are weighed together


def read_back(
    rows: AlignedRows, t5: T5Decoder, choices: Sequence[tuple[str, ...]], batch: int, advance: Callable[[int], None]
) -> list[str]:
    """The likeliest caption of every prompt, in their order. choices: the captions of each.

    batch: prompts whose rows are in memory together.
    """
    import torch

    ids = {captions: t5.tokens(captions, READ_TOKENS) for captions in set(choices)}
    found: list[str] = []
    for start in range(0, len(choices), batch):
        at = range(start, min(start + batch, len(choices)))
        for i, x_LD in zip(at, rows(at), strict=True):
            x = torch.from_numpy(x_LD).to(t5.device)
            found.append(choices[i][int(losses(t5, x, ids[choices[i]]).argmin())])
        advance(len(at))
    return found


def losses(t5: T5Decoder, x_LD: torch.Tensor, captions: Sequence[Sequence[int]]) -> torch.Tensor:
    """Nats of each caption, by its token ids, to one prompt's rows."""
    import torch

    from thinkdiff.tasks.t5_decoder import Packing

    sums: list[torch.Tensor] = []
    for some in (captions[start : start + CAPTIONS] for start in range(0, len(captions), CAPTIONS)):
        prompts = Packing.of([len(x_LD)] * len(some), t5.device)
        with torch.no_grad():
            losses_N = t5.losses(x_LD.repeat(len(some), 1), prompts, t5.targets(some))
        sums += [one.sum() for one in losses_N.split([len(ids) for ids in some])]
    return torch.stack(sums)
