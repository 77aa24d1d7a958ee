"""What is kept beside the features of a row: key, prompt, tokens, text. One Parquet per shard, sorted in row order.

In: `FeatureRow`s. Out: Parquet bytes that are the same for the same rows, and tables whose numbers were checked
against the arrays' sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.features import TokenKind
from thinkdiff.storage.tables import bad_table, column, read_table, table_bytes

DIGITS = 16
CHECKSUMS: dict[TokenKind, str] = {"generated": "crc32c", "input": "input_crc32c"}
ROWS_NAME = re.compile(rf"rows/(\d{{6}})-[0-9a-f]{{{DIGITS}}}\.parquet")
ROWS = pa.schema(
    [
        column("key", pa.string()),
        column("prompt", pa.string()),
        column("token_ids", pa.list_(pa.field("element", pa.int32(), nullable=False))),
        column("length", pa.int32()),
        column("eos", pa.int32()),
        column("text", pa.string()),
        column("input_length", pa.int32()),
        column("crc32c", pa.uint32()),
        column("input_crc32c", pa.uint32()),
    ]
)


@dataclass(frozen=True)
class FeatureRow:
    """One request and its answer.

    key: the sample's or the prompt's name; prompt: what was asked; token_ids: the n generated tokens, the end token
    included; eos: position of the first end token, or -1; text: the answer; features: (n, D) final-norm states, one
    for each generated token; input_features: (p, D), those of the prompt's tokens, or None when they are not kept.
    """

    key: str
    prompt: str
    token_ids: tuple[int, ...]
    eos: int
    text: str
    features: npt.NDArray[Any]
    input_features: npt.NDArray[Any] | None = None

    @property
    def length(self) -> int:
        """How many tokens were generated."""
        return len(self.token_ids)

    @property
    def input_length(self) -> int:
        """How many tokens of the prompt are kept."""
        return 0 if self.input_features is None else len(self.input_features)


def rows_name(shard: int, digest: str) -> str:
    """The name of a shard's Parquet file beside features of that sha256."""
    return f"rows/{shard:06d}-{digest[:DIGITS]}.parquet"


def shard_of_rows(name: str) -> int | None:
    """The shard whose Parquet file has that name."""
    found = ROWS_NAME.fullmatch(name)
    return int(found[1]) if found else None


def rows_bytes(rows: Sequence[FeatureRow], checksums: Mapping[TokenKind, Sequence[int]]) -> memoryview:
    """The rows as a Parquet file, with the checksums of their features in place of these; 0 for a kind not kept."""
    columns = {
        "key": [row.key for row in rows],
        "prompt": [row.prompt for row in rows],
        "token_ids": [row.token_ids for row in rows],
        "length": [row.length for row in rows],
        "eos": [row.eos for row in rows],
        "text": [row.text for row in rows],
        "input_length": [row.input_length for row in rows],
    } | {name: checksums.get(kind, [0] * len(rows)) for kind, name in CHECKSUMS.items()}
    return table_bytes(pa.Table.from_pydict(columns, ROWS))


def read_rows(data: bytes, where: str, rows: int, tokens: int, input_tokens: int) -> pa.Table:
    """The table of a shard, its numbers checked. Raises StoreError when it cannot be what a writer left."""
    table = read_table(data, ROWS, where, rows).combine_chunks()
    lengths, eos = numbers(table, "length"), numbers(table, "eos")
    counted = np.diff(lists(table)[1])
    if (lengths < 0).any() or (lengths > tokens).any() or (counted != lengths).any():
        raise bad_table(where, "lengths that do not fit the tokens", f"0 … {tokens}")
    if (eos < -1).any() or (eos >= np.maximum(lengths, 0)).any():
        raise bad_table(where, "an end position outside the row", "-1 … length - 1")
    inputs = numbers(table, "input_length")
    if (inputs < 0).any() or (inputs > input_tokens).any():
        raise bad_table(where, "input lengths that do not fit the array", f"0 … {input_tokens}")
    return table


def numbers(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """An integer column as an array."""
    return table.column(name).to_numpy().astype(np.int64)


def lists(table: pa.Table) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The token ids of all rows one after the other, and where each row starts and the last one ends."""
    chunk = table.column("token_ids").combine_chunks()
    offsets = chunk.offsets.to_numpy().astype(np.int64)
    return chunk.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0]


def padded_ids(table: pa.Table, tokens: int) -> npt.NDArray[np.int32]:
    """The token ids as (N, T), with -1 behind the last one."""
    flat, offsets = lists(table)
    ids_NT = np.full((len(offsets) - 1, tokens), -1, np.int32)
    ids_NT[np.arange(tokens) < np.diff(offsets)[:, None]] = flat
    return ids_NT


def must_differ(keys: Sequence[str], where: str) -> None:
    """Raises StoreError when a key comes twice."""
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))
        raise StoreError(f"{where}: found the key {twice!r} twice, expected one row for each request.")
