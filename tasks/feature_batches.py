"""Which features and which text each training step sees: pure functions of (seed, step), so resuming needs no state.

In: a feature store, of a VLM's generated or input tokens, or of a vision tower's with captions. Out: a rank's share of
each step, packed: prompt rows, target tokens, and the tokens of a caption's words that stand behind a picture's rows.
All ranks draw the whole step, so that it is the same for any number of them, and each reads its share alone.
Shapes: B samples of a step, P prompt rows of a share, Q the VLM's width.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.features import TokenKind
from thinkdiff.storage.feature_reader import LENGTHS
from thinkdiff.storage.feature_stream import FeatureStore

VALIDATION_STREAM = 1 << 40
HELD = 256 << 20  # bytes of features that are held in memory rather than read again in every epoch
PUNCTUATION, CAPTION_WORDS = re.compile(r"[.!\"()*#:;~]"), 50  # of BLIP's captions
Ints = npt.NDArray[np.int64]


class Source(Protocol):
    """Where features come from: a FeatureStore, or `Held` in memory."""

    @property
    def table(self) -> pa.Table:
        """`length` and `token_ids` of every row."""
        ...

    def states(self, rows: Ints, kind: TokenKind) -> npt.NDArray[Any]:
        """(B, T, D) of some rows, in the order asked."""
        ...


class Held:
    """The features of one kind of a store, in memory: of a small one, reading costs more than the bytes."""

    def __init__(self, store: FeatureStore, kind: TokenKind) -> None:
        self.table, self._features_NTD = store.table, store.load(kind).features

    def states(self, rows: Ints, kind: TokenKind) -> npt.NDArray[Any]:
        """(B, T, D) of some rows, in the order asked."""
        return self._features_NTD[rows]


def source(store: FeatureStore, kind: TokenKind) -> Source:
    """The store, or what is in it. Raises InputError when it has none of that kind."""
    if kind not in store.layouts:
        raise InputError(
            f"train_aligner: found no features of {kind} tokens, expected them as the spec asks. Set features to "
            f"{next(iter(store.layouts))}, or extract them."
        )
    layout = store.layouts[kind]
    return Held(store, kind) if len(store) * layout.tokens * layout.width * layout.native.itemsize <= HELD else store


@dataclass(frozen=True)
class Share:
    """What one process has in memory together.

    x_PQ: prompt rows in the stored type; prompts: how many of them each sample has; words: token ids of the shown words
    of its caption, if captions are split; targets: its token ids; members: its place in the step.
    """

    x_PQ: npt.NDArray[Any]
    prompts: list[int]
    words: list[list[int]]
    targets: list[list[int]]
    members: Ints


@dataclass(frozen=True)
class Batch:
    """A step, or a part of the validation. rows, prompts and tokens (B,) are of all ranks, the shares of one.

    prompts and tokens: how many each sample has. weights_B: float64, what a token of each sample counts; over the whole
    step the weights of tokens sum to 1.
    """

    rows: Ints
    prompts: Ints
    tokens: Ints
    weights_B: npt.NDArray[np.float64]
    shares: list[Share]


@dataclass(frozen=True)
class Draw:
    """Which tokens of which rows are shown, the text of the others, and texts as token ids of the T5.

    words: of a caption's words that are shown, if captions are split.
    """

    rows: Ints
    shown: list[Ints]
    words: list[list[int]]
    texts: list[str]
    targets: list[list[int]]


class FeatureBatches:
    """Shuffled epochs without replacement over the trainable rows, the first `validation_rows` of them held out.

    Rows are stored in the order of their keys, which are hashes, so the first rows are a random draw. A row is
    trainable when it has at least two tokens: one to show and one to predict; of a vision tower's, when its caption has
    a word. `tokenizer` is the VLM's, if there is one; `t5_tokens` makes at most so many token ids of texts. Raises
    InputError when the features are not those that the spec masks.
    """

    def __init__(
        self, spec: AlignerSpec, source: Source, tokenizer: Any,
        t5_tokens: Callable[[Sequence[str], int], list[list[int]]],
        rank: int = 0, ranks: int = 1, micro_batch: int = 0,
    ) -> None:  # fmt: skip
        # Texts are a few words: a pool of threads costs more than it gains, and takes from those that compute.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.spec, self.source, self.tokenizer, self.t5_tokens = spec, source, tokenizer, t5_tokens
        self.rank, self.ranks, self.micro_batch = rank, ranks, micro_batch or spec.batch
        self._prompts = source.table.column(LENGTHS[spec.features]).to_numpy()
        self._token_ids = source.table.column("token_ids")
        lengths = source.table.column("length").to_numpy()
        self.captioned = bool(len(lengths)) and not lengths.any()
        if spec.masking != "none" and self.captioned != (spec.masking == "words"):
            found, wanted = ("captions", "words") if self.captioned else ("answers of a VLM", "split or element")
            raise InputError(
                f"train_aligner: found features with {found} and the masking {spec.masking}, expected {wanted}, or "
                "none. Captions are split by words, answers by tokens; set masking so."
            )
        if self.captioned and spec.features != "input":
            raise InputError(
                "train_aligner: found a vision tower's features, expected a VLM's generated tokens. A tower generates "
                "nothing; set features to input."
            )
        self._captions = list(map(cleaned, source.table.column("text").to_pylist())) if self.captioned else []
        usable = np.flatnonzero(list(map(bool, self._captions)) if self.captioned else lengths >= 2)
        self.skipped = len(lengths) - len(usable)
        held_out = min(spec.validation_rows, max(len(usable) - 1, 0))
        self.validation_rows, self.training_rows = usable[:held_out], usable[held_out:]
        self._epoch_number, self._order = -1, usable

    def keys(self, rows: Sequence[int]) -> list[str]:
        """The samples' keys."""
        return self.source.table.column("key").take(pa.array(rows, pa.int64())).to_pylist()

    def rows_of(self, step: int) -> Ints:
        """The rows of a step, counted from 0."""
        rows = np.empty(self.spec.batch, np.int64)
        for place in range(self.spec.batch):
            epoch, at = divmod(step * self.spec.batch + place, len(self.training_rows))
            rows[place] = self.training_rows[self._epoch(epoch)[at]]
        return rows

    def training(self, begin: int, end: int) -> Generator[Batch, Any, None]:
        """The batches of some steps."""
        for step in range(begin, end):
            yield self._batch(self.draw(self.rows_of(step), [self.spec.seed, step]))

    def validation(self) -> Generator[Batch, Any, None]:
        """The held-out rows, split the same way every time."""
        size = max(self.spec.batch, 64)
        for number, first in enumerate(range(0, len(self.validation_rows), size)):
            rows = self.validation_rows[first : first + size]
            yield self._batch(self.draw(rows, [self.spec.seed, VALIDATION_STREAM, number]))

    def draw(self, rows: Ints, stream: list[int]) -> Draw:
        """Splits samples: k of a sample's L tokens are shown, k uniform in 1 … min(L - 1, max_split)."""
        if self.captioned:
            return self._draw_captions(rows, stream)
        rng = np.random.default_rng(stream)
        shown, rest = [], []
        for row in rows:
            ids = np.asarray(self._token_ids[int(row)].values)[: self.spec.tokens]
            if self.spec.masking == "none":
                shown.append(np.arange(self._prompts[row] if self.spec.features == "input" else len(ids)))
                rest.append(ids)
                continue
            count = int(rng.integers(1, min(len(ids) - 1, self.spec.max_split) + 1))
            element = self.spec.masking == "element"
            seen = np.sort(rng.permutation(len(ids))[:count]) if element else np.arange(count)
            shown.append(seen)
            rest.append(np.delete(ids, seen))
        texts = self.tokenizer.batch_decode(rest, skip_special_tokens=True)
        return Draw(rows, shown, [], texts, self.t5_tokens(texts, self.spec.max_target_tokens))

    def _draw_captions(self, rows: Ints, stream: list[int]) -> Draw:
        """All of a picture; k of its caption's n words, k uniform in 1 … n - 1, and none of a caption of one word."""
        rng = np.random.default_rng(stream)
        shown = [np.arange(self._prompts[row]) for row in rows]
        before, texts = list[str](), list[str]()
        for row in rows:
            words = self._captions[int(row)].split(" ")
            count = int(rng.integers(1, len(words))) if self.spec.masking == "words" and len(words) > 1 else 0
            before.append(" ".join(words[:count]))
            texts.append(" ".join(words[count:]))
        words = self.t5_tokens(before, self.spec.max_prompt_tokens) if self.spec.masking == "words" else []
        return Draw(rows, shown, words, texts, self.t5_tokens(texts, self.spec.max_target_tokens))

    def readings(self) -> tuple[list[str], Share] | None:
        """Some held-out rows as validation splits them, whole on this rank, and the texts of what is not shown."""
        rows = self.validation_rows[: self.spec.readings]
        if not len(rows):
            return None
        draw = self.draw(rows, [self.spec.seed, VALIDATION_STREAM, 0])
        return draw.texts, self._share(draw, np.arange(len(rows)))

    def _epoch(self, epoch: int) -> Ints:
        if self._epoch_number != epoch:
            rng = np.random.default_rng([self.spec.seed, VALIDATION_STREAM + 1, epoch])
            self._epoch_number, self._order = epoch, rng.permutation(len(self.training_rows))
        return self._order

    def _batch(self, draw: Draw) -> Batch:
        tokens = np.array([len(target) for target in draw.targets])
        # Longest first, dealt in turn: ranks have equal work, and what is in memory together is of like lengths.
        mine = np.argsort(-tokens, kind="stable")[self.rank :: self.ranks]
        cuts = range(0, len(mine), self.micro_batch)
        shares = [self._share(draw, mine[first : first + self.micro_batch]) for first in cuts]
        prompts = np.array([len(shown) for shown in draw.shown])
        if draw.words:
            prompts += [len(words) for words in draw.words]
        return Batch(draw.rows, prompts, tokens, token_weights(self.spec, tokens), shares)

    def _share(self, draw: Draw, members: Ints) -> Share:
        found = self.source.states(draw.rows[members], self.spec.features)
        seen = [draw.shown[member] for member in members]
        x_PQ = np.concatenate([states_TQ[one] for states_TQ, one in zip(found, seen, strict=True)])
        words = [draw.words[member] for member in members] if draw.words else []
        return Share(x_PQ, [len(one) for one in seen], words, [draw.targets[member] for member in members], members)


def cleaned(caption: str) -> str:
    """A caption as ThinkDiff-CLIP reads it: lower case, little punctuation, at most CAPTION_WORDS words."""
    return " ".join(PUNCTUATION.sub(" ", caption.lower()).split()[:CAPTION_WORDS])


def token_weights(spec: AlignerSpec, tokens: Ints) -> npt.NDArray[np.float64]:
    """What a token of each of B samples counts in the loss. tokens: (B,)."""
    groups = spec.loss_groups if spec.loss_mean == "groups" and not len(tokens) % spec.loss_groups else 1
    sums = tokens.reshape(groups, -1).sum(1)
    return np.repeat(1 / (groups * sums), len(tokens) // groups)
