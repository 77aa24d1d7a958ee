"""Reading the features of a FeatureSet: single rows by range, all rows in order, or everything into memory.

Every byte handed out was checked: single rows by the crc32c that their shard's table keeps, so that no other whole row
is taken for one; whole shards and tables by the sha256 of the record. Missing data raise, where zarr would say zeros.
Reads single rows at the speed of `pread` and, in a bucket, many ranges at once; neighbouring rows are one request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.features import FeatureSet, TokenKind
from thinkdiff.storage.feature_rows import (
    CHECKSUMS,
    FeatureRow,
    must_differ,
    numbers,
    padded_ids,
    read_rows,
    shard_of_rows,
)
from thinkdiff.storage.feature_shards import (
    ARRAYS,
    CRC,
    Bytes,
    Layout,
    Spans,
    damaged,
    decode_index,
    decode_row,
    decode_shard,
    finite,
    read_layout,
    shard_name,
    stored_checksum,
)
from thinkdiff.storage.records import missing_files, verified_bytes, written_by
from thinkdiff.storage.refusals import cause
from thinkdiff.storage.root import Folder

TABLES_AT_ONCE = 8
SHARDS_AT_ONCE = 2  # each is in memory twice while it is checked and copied
MAX_RUN = 1 << 25  # bytes of neighbouring rows that one request asks for
LOCAL_RUN = 1 << 20  # the same on a disk, where a request costs little
States = dict[TokenKind, npt.NDArray[Any]]
LENGTHS: dict[TokenKind, str] = {"generated": "length", "input": "input_length"}


@dataclass(frozen=True)
class LoadedFeatures:
    """A store, or N rows of it, in memory.

    features: (N, T, D) in the stored type, `padding` behind each row's length; lengths: (N,) of that array;
    token_ids: (N, T) int32 of the generated tokens, -1 behind the last; eos: (N,), -1 for none.
    """

    features: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int32]
    eos: npt.NDArray[np.int64]
    keys: list[str]
    prompts: list[str]
    texts: list[str]


class FeatureReader:
    """Random and sequential access to a FeatureSet. Raises StoreError when a file of the record is not there."""

    def __init__(self, artifact: FeatureSet) -> None:
        self.folder, self.artifact = Folder(artifact.uri), artifact
        self._entries = {entry.path: entry for entry in artifact.files}
        if problems := missing_files(artifact):
            raise StoreError(
                f"{artifact.uri}: found {problems[0]}. The store is not whole; re-run extract_features with --refresh."
            )
        self.layouts: dict[TokenKind, Layout] = {
            kind: read_layout(self._bytes(f"{name}/zarr.json"), f"{artifact.uri}/{name}", kind, written_by(artifact))
            for kind, name in ARRAYS.items()
            if kind == "generated" or f"{name}/zarr.json" in self._entries
        }
        self._layout = self.layouts["generated"]
        for layout in self.layouts.values():
            if (layout.rows, layout.shard_size) != (self._layout.rows, self._layout.shard_size):
                raise StoreError(f"{artifact.uri}: found arrays of different rows, expected one row for each request.")
        tables = {shard: name for name in self._entries if (shard := shard_of_rows(name)) is not None}
        for shard in range(self._layout.shards):
            tables.setdefault(shard, f"rows/{shard:06d}-*.parquet")
            for name in (tables[shard], *(shard_name(kind, shard) for kind in self.layouts)):
                self._entry(name)
        self._table_names = tables
        self._tables: dict[int, pa.Table] = {}
        self._spans: dict[tuple[TokenKind, int], Spans] = {}
        self._checksums: dict[tuple[TokenKind, int], npt.NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return self._layout.rows

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D) of the generated tokens' features."""
        return self._layout.rows, self._layout.tokens, self._layout.width

    @cached_property
    def table(self) -> pa.Table:
        """Everything but the features, N rows: key, prompt, token_ids, length, eos, text, input_length."""
        with ThreadPoolExecutor(TABLES_AT_ONCE) as pool:
            table = pa.concat_tables(pool.map(self._table, range(self._layout.shards))).combine_chunks()
        must_differ(table.column("key").to_pylist(), self.folder.uri)
        return table

    @property
    def keys(self) -> list[str]:
        """The key of every row. Raises StoreError when one comes twice."""
        return self.table.column("key").to_pylist()

    @property
    def token_ids(self) -> list[list[int]]:
        """The generated tokens of every row."""
        return self.table.column("token_ids").to_pylist()

    def texts(self) -> list[str]:
        """The text of every row."""
        return self.table.column("text").to_pylist()

    def row(self, index: int) -> FeatureRow:
        """One row, its features cut to its length. Raises IndexError, or StoreError for lost or altered data."""
        return self.rows([index])[0]

    def rows(self, indices: Sequence[int], inputs: bool = True) -> list[FeatureRow]:
        """Rows in the order asked; each is read once, neighbours together. inputs: with input features, if any."""
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"row: found {index}, expected 0 … {len(self) - 1}.")
        wanted = sorted({int(index) for index in indices})
        kinds: list[TokenKind] = [kind for kind in self.layouts if inputs or kind != "input"]
        found: dict[TokenKind, dict[int, npt.NDArray[Any]]] = {}
        for kind in kinds:
            layout = self.layouts[kind]
            block_RTD = np.empty((len(wanted), layout.tokens, layout.width), layout.native)
            self._fill(kind, wanted, block_RTD)
            found[kind] = dict(zip(wanted, block_RTD, strict=True))
        rows: list[States] = [{kind: found[kind][int(index)] for kind in kinds} for index in indices]
        return [self._row(int(index), row) for index, row in zip(indices, rows, strict=True)]

    def iterate(self) -> Iterator[FeatureRow]:
        """All rows in order, one shard in memory at a time."""
        for shard in range(self._layout.shards):
            span = self._layout.span(shard)
            blocks: States = {kind: self._whole(kind, shard) for kind in self.layouts}
            for place, index in enumerate(span):
                row: States = {kind: block[place] for kind, block in blocks.items()}
                yield self._row(index, row)

    def load(self, kind: TokenKind = "generated", padding: float = 0.0) -> LoadedFeatures:
        """The whole store in memory, with the features of one kind of tokens.

        Behind a row's length stands `padding` and not the stored NaN, which no mask by multiplication removes.
        """
        if kind not in self.layouts:
            raise StoreError(f"{self.folder.uri}: found no features of {kind} tokens, expected them. Extract them.")
        layout, table = self.layouts[kind], self.table
        if not finite(np.array([padding], layout.native)):
            raise ValueError(f"padding: found {padding}, expected a number that is finite in {layout.dtype}.")
        lengths = numbers(table, LENGTHS[kind])
        features_NTD = np.empty((layout.rows, layout.tokens, layout.width), layout.native)

        def fill(shard: int) -> None:
            span = layout.span(shard)
            part, cut = features_NTD[span.start : span.stop], lengths[span.start : span.stop]
            self._whole(kind, shard, part)
            part[np.arange(layout.tokens) >= cut[:, None]] = padding
            if not finite(part):
                raise self._not_finite(f"in shard {shard}")

        with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
            list(pool.map(fill, range(layout.shards)))
        return LoadedFeatures(
            features_NTD,
            lengths,
            padded_ids(table, self._layout.tokens),
            numbers(table, "eos"),
            self.keys,
            table.column("prompt").to_pylist(),
            self.texts(),
        )

    def _row(self, index: int, states: States) -> FeatureRow:
        shard, place = divmod(index, self._layout.shard_size)
        values = self._table(shard).slice(place, 1).to_pylist()[0]
        cut = {kind: self._checked(state[: values[LENGTHS[kind]]], index).copy() for kind, state in states.items()}
        return FeatureRow(
            key=values["key"],
            prompt=values["prompt"],
            token_ids=tuple(values["token_ids"]),
            eos=values["eos"],
            text=values["text"],
            features=cut["generated"],
            input_features=cut.get("input"),
        )

    def _checked(self, state: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """A row's features, if they are finite within its length."""
        if not finite(state):
            raise self._not_finite(f"in row {index}")
        return state

    def _fill(
        self, kind: TokenKind, wanted: Sequence[int], outs: Iterable[npt.NDArray[Any]], lengths: Sequence[int] = ()
    ) -> None:
        """Reads rows, in the order of their numbers, into arrays (T, D) of the array's type; neighbours together.

        Numbers that are stored as they are come straight to their place. With lengths, what is within them is checked
        to be finite and what is behind them is zero; each row is looked at while it is in the processor's cache.
        """
        layout = self.layouts[kind]
        self._read_indices(kind, {index // layout.shard_size for index in wanted})
        requests: list[tuple[str, int, list[Bytes]]] = []
        members: list[list[tuple[int, npt.NDArray[Any], Bytes, Bytes, int | None]]] = []
        reached, longest = 0, LOCAL_RUN if self.folder.is_local else MAX_RUN
        for index, out_TD, length in zip(wanted, outs, lengths or [None] * len(wanted), strict=True):
            shard, place = divmod(index, layout.shard_size)
            name, (start, end) = shard_name(kind, shard), self._spans[kind, shard][place].tolist()
            plain = layout.codec == "none" and out_TD.flags.c_contiguous
            body = out_TD.reshape(-1).view(np.uint8) if plain else np.empty(end - start - CRC, np.uint8)
            checksum = np.empty(CRC, np.uint8)
            if not requests or requests[-1][0] != name or reached != start or end - requests[-1][1] > longest:
                requests.append((name, start, []))
                members.append([])
            requests[-1][2].extend((body, checksum))
            members[-1].append((index, out_TD, body, checksum, length))
            reached = end

        def check(request: int, buffer: int) -> None:
            member, checksum_there = divmod(buffer, 2)
            if not checksum_there:
                return
            where = f"{self.folder.uri}/{requests[request][0]}"
            index, out_TD, body, checksum, length = members[request][member]
            self._must_be_recorded(kind, index, stored_checksum(checksum))
            row_TD = decode_row(body, checksum, layout, index, where)
            if not np.may_share_memory(row_TD, out_TD):
                out_TD[:] = row_TD
            if length is not None:
                self._checked(out_TD[:length], index)
                out_TD[length:] = 0

        try:
            self.folder.read_into(requests, check)
        except FileNotFoundError as error:
            raise self._gone(error) from error

    def _must_be_recorded(self, kind: TokenKind, index: int, checksum: int) -> None:
        """Raises StoreError for a row of another shard or store: whole in itself, and not the one that was written."""
        shard, place = divmod(index, self._layout.shard_size)
        if checksum != self._checksums[kind, shard][place]:
            where = f"{self.folder.uri}/{shard_name(kind, shard)}"
            raise damaged(where, f"row {index} failing its checksum or another one in its place")

    def _read_indices(self, kind: TokenKind, shards: set[int]) -> None:
        """Has for these shards where each row is and which checksum it was written with."""
        layout = self.layouts[kind]
        for shard in sorted(shards):
            if (kind, shard) not in self._checksums:
                self._checksums[kind, shard] = numbers(self._table(shard), CHECKSUMS[kind])
        lacking = sorted(shard for shard in shards if (kind, shard) not in self._spans)
        sizes = [self._entry(shard_name(kind, shard)).size for shard in lacking]
        ranges = [
            (shard_name(kind, shard), max(size - layout.index_bytes, 0), size)
            for shard, size in zip(lacking, sizes, strict=True)
        ]
        for shard, size, data in zip(lacking, sizes, self._ranges(ranges), strict=True):
            where = f"{self.folder.uri}/{shard_name(kind, shard)}"
            self._spans[kind, shard] = decode_index(data, layout, shard, size, where)

    def _ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes of shard objects. Raises StoreError when one is not there any more, or is shorter."""
        try:
            return self.folder.read_ranges(ranges)
        except FileNotFoundError as error:
            raise self._gone(error) from error

    def _gone(self, error: FileNotFoundError) -> StoreError:
        return damaged(self.folder.uri, f"a shard gone since it was opened ({cause(error)})")

    def _whole(self, kind: TokenKind, shard: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """All rows of a shard (R, T, D), read at once and checked by sha256."""
        layout, name = self.layouts[kind], shard_name(kind, shard)
        if out is None:
            out = np.empty((len(layout.span(shard)), layout.tokens, layout.width), layout.native)
        for place, row in enumerate(decode_shard(self._bytes(name), layout, shard, f"{self.folder.uri}/{name}")):
            out[place] = row
        return out

    def _table(self, shard: int) -> pa.Table:
        if shard not in self._tables:
            inputs = self.layouts["input"].tokens if "input" in self.layouts else 0
            self._tables[shard] = read_rows(
                self._bytes(self._table_names[shard]),
                f"{self.folder.uri}/{self._table_names[shard]}",
                len(self._layout.span(shard)),
                self._layout.tokens,
                inputs,
            )
        return self._tables[shard]

    def _bytes(self, name: str) -> bytes:
        return verified_bytes(self.folder, self._entry(name))

    def _entry(self, name: str) -> FileEntry:
        if name not in self._entries:
            raise StoreError(
                f"{self.folder.uri}: found no file {name} in the record, expected one. "
                "The store is not whole; re-run extract_features with --refresh."
            )
        return self._entries[name]

    def _not_finite(self, place: str) -> StoreError:
        return StoreError(
            f"{self.folder.uri}: found NaN or infinity {place} within its length, expected finite features. "
            "The store was written by other software or altered; re-run extract_features with --refresh."
        )
