"""A FeatureSet to work with: rows by key or number, and epochs of shuffled batches that are read ahead.

    store = FeatureStore.open("s3://bucket/runs/extract_features/3f9a…")
    store["a key"].features                                    # (n, D)
    for batch in store.iter_batches(96, shuffle="runs", seed=0): ...

Every row of an epoch comes exactly once, in an order that depends on (seed, epoch) and the sizes alone, so that an
epoch can be taken up at any batch. Shapes: N rows, B rows of a batch, T tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, get_args, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.features import FeatureSet, TokenKind
from thinkdiff.storage.feature_reader import LENGTHS, FeatureReader, LoadedFeatures
from thinkdiff.storage.feature_rows import FeatureRow, numbers, padded_ids
from thinkdiff.storage.memory import Memory
from thinkdiff.storage.records import read_record
from thinkdiff.storage.root import Folder

Shuffle = Literal["none", "exact", "runs"]
Rows = npt.NDArray[np.int64]
RUN = 16  # neighbouring rows that are one request
BUFFER = 1024  # rows that are mixed with one another


@dataclass(frozen=True)
class FeatureBatch(LoadedFeatures):
    """B rows as `LoadedFeatures`, zeros behind each row's length, and their numbers (B,)."""

    rows: Rows

    def part(self, which: slice) -> FeatureBatch:
        """Some of the rows."""
        return FeatureBatch(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


class FeatureStore(FeatureReader):
    """The rows of a FeatureSet. Raises StoreError for data that are lost or altered, never other numbers."""

    @staticmethod
    def open(uri: str) -> FeatureStore:
        """The store in a folder or below `s3://`. Raises StoreError when no whole one is there."""
        folder = Folder.at(uri)
        artifact = read_record(folder, FeatureSet)
        if artifact is None:
            raise StoreError(
                f"{folder.uri}: found no whole feature set, expected the folder of one. `thinkdiff artifacts` lists "
                "what is under a root; a run that was killed goes on when it is run again."
            )
        return FeatureStore(artifact)

    @overload
    def __getitem__(self, which: int | str) -> FeatureRow: ...
    @overload
    def __getitem__(self, which: slice | Sequence[int] | Sequence[str]) -> list[FeatureRow]: ...
    def __getitem__(self, which: int | str | slice | Sequence[int] | Sequence[str]) -> FeatureRow | list[FeatureRow]:
        """One row by its key or number, or some of them. Raises KeyError or IndexError for a row that is not there."""
        if isinstance(which, slice):
            return self.rows(range(*which.indices(len(self))))
        if isinstance(which, str | int | np.integer):
            return self.rows([self._number(which)])[0]
        return self.rows([self._number(one) for one in which])

    def _number(self, which: str | int) -> int:
        if isinstance(which, str):
            return self._places[which]
        return int(which) + len(self) if -len(self) <= which < 0 else int(which)

    @cached_property
    def _memory(self) -> Memory:
        return Memory()

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.keys)}

    def iter_batches(
        self,
        batch_size: int,
        *,
        shuffle: Shuffle = "none",
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        kind: TokenKind = "generated",
        run: int = RUN,
        buffer: int = BUFFER,
    ) -> Iterator[FeatureBatch]:
        """The batches of one epoch from number `start` on, the next ones being read meanwhile.

        shuffle: "exact" is a random permutation, every row a request of its own; "runs" is for stores far away: runs
        of `run` neighbouring rows in random order (rows are sorted by hashed keys, so that a run is a random draw
        itself), and `buffer` rows at a time are mixed, which is also what is held in memory, twice. Memory of batches
        that nobody holds any more is used again, also for the next epoch.

        world: how many take part, each with its own `rank` and batch_size rows a step. What does not fill a step for
        all is left out when there are several. With "none" and "exact" a step's rows together are the same for any
        number of ranks at equal world * batch_size; with "runs" each rank has runs of its own.
        """
        known = kind in self.layouts and shuffle in get_args(Shuffle)
        if min(batch_size, world, run, buffer) < 1 or not 0 <= rank < world or start < 0 or not known:
            raise ValueError(
                f"batches: found {batch_size=}, {rank=}, {world=}, {start=}, {run=}, {buffer=}, {kind=}, {shuffle=}, "
                f"expected positive sizes, a rank below world, one of {', '.join(self.layouts)} and one of "
                f"{', '.join(get_args(Shuffle))}."
            )
        order = self._order(shuffle, seed, epoch, rank, world, batch_size, run, buffer)
        size, begin = window_size(shuffle, batch_size, buffer), start * batch_size
        cuts = [begin, *range((begin // size + 1) * size, len(order), size), len(order)]
        windows = [order[first:end] for first, end in pairwise(cuts) if first < end]
        if not windows:
            return
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(self.window, windows[0], kind)
            for following in [*windows[1:], None]:
                window = reading.result()
                if following is not None:
                    reading = pool.submit(self.window, following, kind)
                for first in range(0, len(window.rows), batch_size):
                    yield window.part(slice(first, first + batch_size))

    def _order(
        self, shuffle: Shuffle, seed: int, epoch: int, rank: int, world: int, batch_size: int, run: int, buffer: int
    ) -> Rows:
        """The rows of a rank in the order in which it sees them."""
        rows, rng = len(self), np.random.default_rng([seed, epoch])
        if shuffle != "runs":
            order = rng.permutation(rows) if shuffle == "exact" else np.arange(rows)
            if world == 1:
                return order
            steps = rows // (world * batch_size)
            return order[: steps * world * batch_size].reshape(steps, world, batch_size)[:, rank].reshape(-1)
        runs = rng.permutation(-(-rows // run))
        shares = [expanded(runs[member::world], run, rows) for member in range(world)]
        order = shares[rank]
        if world > 1:
            order = order[: min(map(len, shares)) // batch_size * batch_size]
        mixing = np.random.default_rng([seed, epoch, rank])
        size = window_size(shuffle, batch_size, buffer)
        pieces = [mixing.permutation(order[at : at + size]) for at in range(0, len(order), size)]
        return np.concatenate([order[:0], *pieces])

    def window(self, rows: Rows, kind: TokenKind) -> FeatureBatch:
        """Some rows as one batch, in their order."""
        table = self.table.take(pa.array(rows)).combine_chunks()
        return FeatureBatch(
            self.states(rows, kind),
            numbers(table, LENGTHS[kind]),
            padded_ids(table, self.shape[1]),
            numbers(table, "eos"),
            *(table.column(name).to_pylist() for name in ("key", "prompt", "text")),
            rows=rows,
        )

    def states(self, rows: Rows, kind: TokenKind) -> npt.NDArray[Any]:
        """The features alone of some rows, (B, T, D) in their order, zeros behind each row's length."""
        layout, lengths = self.layouts[kind], self._lengths[kind][rows]
        features = self._memory.take((len(rows), layout.tokens, layout.width), layout.native)
        places = np.argsort(rows)
        self._fill(kind, rows[places].tolist(), (features[place] for place in places), lengths[places].tolist())
        return features

    @cached_property
    def _lengths(self) -> dict[TokenKind, Rows]:
        return {kind: numbers(self.table, LENGTHS[kind]) for kind in self.layouts}


def window_size(shuffle: Shuffle, batch_size: int, buffer: int) -> int:
    """How many rows are read together: whole batches."""
    return max(buffer // batch_size, 1) * batch_size if shuffle == "runs" else batch_size


def expanded(runs: Rows, run: int, rows: int) -> Rows:
    """The rows of some runs, one after the other."""
    order = (runs[:, None] * run + np.arange(run)).reshape(-1)
    return order[order < rows]
