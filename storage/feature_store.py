"""The features of a FeatureSet: a Zarr v3 group of (N, T, D) arrays, one Parquet of ids and texts per shard.

    zarr.json                       the group; plain `zarr.open_group` reads it
    features/zarr.json, c/<k>/0/0   generated tokens (N, T, D), rows past a row's length are NaN
    input_features/…                the prompt's tokens (N, P, D), if they are kept
    rows/<k>.parquet                key, prompt, token ids, lengths, text of the rows of shard k
    commits/<k>.json                the part record of shard k, written last

Here is the writer; the reader is `feature_reader.py` and, with batches, `feature_stream.py`, both handed on here.
Shards are written whole by one process: two writers of one shard lose rows, whatever the format. The stage holds the
artifact's lease, so what a killed attempt left without a record is overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.features import TokenKind
from thinkdiff.storage.feature_reader import FeatureReader, LoadedFeatures
from thinkdiff.storage.feature_rows import FeatureRow, must_differ, rows_bytes, rows_name
from thinkdiff.storage.feature_shards import (
    ARRAYS,
    Layout,
    StoredType,
    encode_shard,
    finite,
    group_metadata,
    metadata_bytes,
    shard_name,
)
from thinkdiff.storage.feature_stream import FeatureBatch, FeatureStore
from thinkdiff.storage.parts import Part, PartLog, must_be_whole
from thinkdiff.storage.root import Folder, sha256_hex

GROUP = "zarr.json"
COMMITS = "commits"


class FeatureWriter:
    """Writes a store of a fixed number of rows, shard by shard, in any order.

    `rejected` tells which shards `committed` had to give up, and why.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        rows: int,
        tokens: int,
        width: int,
        dtype: StoredType = "bfloat16",
        shard_size: int = 256,
        input_tokens: int = 0,
    ) -> None:
        self.folder = folder
        self.layouts: dict[TokenKind, Layout] = {"generated": Layout(rows, tokens, width, dtype, shard_size)}
        if input_tokens:
            self.layouts["input"] = Layout(rows, input_tokens, width, dtype, shard_size)
        self._log = PartLog(folder, COMMITS, Part)

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return self.layouts["generated"].shards

    @property
    def rejected(self) -> dict[int, str]:
        """Shards whose commit could not be trusted, with a phrase each."""
        return self._log.rejected

    def span(self, shard: int) -> range:
        """The rows of a shard."""
        return self.layouts["generated"].span(shard)

    def prepare(self) -> None:
        """Writes the metadata and removes what a killed writer left half-written; harmless when repeated.

        Raises StoreError when the folder holds a store of another shape or type.
        """
        for name, data in self._metadata().items():
            try:
                found = self.folder.read(name)
            except FileNotFoundError:
                self.folder.write(name, data)
                continue
            if found != data:
                raise StoreError(
                    f"{self.folder.uri}/{name}: found a store of another shape or type, expected "
                    f"{self.layouts['generated']}. Its rows would not fit; run the stage with --refresh."
                )
        for name in (*ARRAYS.values(), "rows", COMMITS):
            (self.folder / name).sweep()

    def committed(self, deep: bool = False) -> dict[int, Part]:
        """The shards that are done, by number; `deep` re-hashes their files.

        Those that cannot be trusted are logged, noted in `rejected` and forgotten.
        """
        return self._log.committed(self._complaint, deep)

    def commit(self, shard: int, rows: Sequence[FeatureRow]) -> list[FileEntry]:
        """Writes all rows of a shard and, last, its record. Returns the entries of all its files.

        Raises StoreError for rows that do not fit the store or are not finite, LockedError when the shard is
        committed already.
        """
        self._check(shard, rows)
        blocks: dict[TokenKind, npt.NDArray[Any]] = {kind: self._block(kind, rows) for kind in self.layouts}
        self._log.must_be_free(shard)
        entries = [
            self.folder.write(shard_name(kind, shard), encode_shard(block, self.layouts[kind]))
            for kind, block in blocks.items()
        ]
        entries.append(self.folder.write(rows_name(shard), rows_bytes(rows)))
        info = {
            "tokens": sum(row.length for row in rows),
            "ended": sum(row.eos >= 0 for row in rows),
            "characters": sum(len(row.text) for row in rows),
        }
        record = Part(number=shard, rows=len(rows), files=tuple(entries), info=info)
        return [*entries, self._log.commit(record)]

    def files(self) -> tuple[FileEntry, ...]:
        """The entries of all files of the finished store. Raises StoreError when a shard is not committed."""
        parts = self.committed()
        must_be_whole(self.folder, parts, self.shards)
        fixed = [
            FileEntry(path=name, size=len(data), sha256=sha256_hex(data)) for name, data in self._metadata().items()
        ]
        records = [self._log.entry(number) for number in parts]
        return (*fixed, *(entry for part in parts.values() for entry in part.files), *records)

    def _metadata(self) -> dict[str, bytes]:
        named = {ARRAYS[kind]: layout for kind, layout in self.layouts.items()}
        arrays = {f"{name}/zarr.json": metadata_bytes(layout.metadata()) for name, layout in named.items()}
        return arrays | {GROUP: metadata_bytes(group_metadata(named))}

    def _complaint(self, part: Part) -> str | None:
        if part.number >= self.shards or part.rows != len(self.span(part.number)):
            return f"a part of {part.rows} rows"
        expected = [*(shard_name(kind, part.number) for kind in self.layouts), rows_name(part.number)]
        return None if part.names() == expected else f"a part of the files {', '.join(part.names())}"

    def _check(self, shard: int, rows: Sequence[FeatureRow]) -> None:
        span, where = self.span(shard), f"{self.folder.uri}: shard {shard}"
        if not span or len(rows) != len(span):
            raise StoreError(f"{where}: found {len(rows)} rows, expected {len(span)}. A shard is written whole.")
        must_differ([row.key for row in rows], where)
        for row in rows:
            if len(row.features) != row.length or not -1 <= row.eos < max(row.length, 1):
                raise StoreError(
                    f"{where}, {row.key}: found {len(row.features)} features and the end at {row.eos} for "
                    f"{row.length} tokens, expected one feature for each token and an end among them or -1."
                )

    def _block(self, kind: TokenKind, rows: Sequence[FeatureRow]) -> npt.NDArray[Any]:
        layout = self.layouts[kind]
        block_RTD = np.full((len(rows), layout.tokens, layout.width), np.nan, layout.native)
        for place, row in enumerate(rows):
            states = row.features if kind == "generated" else row.input_features
            if states is None:
                continue
            if states.ndim != 2 or states.shape[1] != layout.width or len(states) > layout.tokens:
                raise StoreError(
                    f"{self.folder.uri}: {row.key}: found {ARRAYS[kind]} of shape {states.shape}, "
                    f"expected at most ({layout.tokens}, {layout.width})."
                )
            block_RTD[place, : len(states)] = states
            if not finite(block_RTD[place, : len(states)]):
                raise StoreError(
                    f"{self.folder.uri}: {row.key}: found {ARRAYS[kind]} with NaN or infinity, expected finite "
                    f"{layout.dtype} numbers. NaN marks rows past the end; compute in a wider type."
                )
        if kind == "input" or "input" in self.layouts or not any(row.input_length for row in rows):
            return block_RTD
        raise StoreError(f"{self.folder.uri}: found input features, expected none. The store has no room for them.")


__all__ = ["FeatureBatch", "FeatureReader", "FeatureRow", "FeatureStore", "FeatureWriter", "LoadedFeatures"]
