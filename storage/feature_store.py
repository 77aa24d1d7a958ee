"""The features of a FeatureSet: a Zarr v3 group of (N, T, D) arrays, one Parquet of ids and texts per shard.

    zarr.json                       the group; plain `zarr.open_group` reads it
    features/zarr.json, c/<k>/0/0   generated tokens (N, T, D), rows past a row's length are NaN
    input_features/…                the prompt's tokens (N, P, D), if they are kept
    rows/<k>-<digest>.parquet       key, prompt, token ids, lengths, text, checksums of shard k
    attempts/<k>-<digest>           input features of a shard that is not committed yet
    commits/<k>.json                the part record of shard k, written last

Here is the writer; the reader is `feature_reader.py` and, with batches, `feature_stream.py`, both handed on here.
A shard is written whole, and any number of writers may write it at once: whose object of generated tokens is created
first has won, and what belongs to it lies there already, under a name with that object's digest, for whoever comes
later to finish the commit. What attempts have left without a record is removed by `prepare`, before a run has writers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.features import Codec, FeatureSet, TokenKind
from thinkdiff.storage.feature_reader import FeatureReader, LoadedFeatures
from thinkdiff.storage.feature_rows import (
    CHECKSUMS,
    FeatureRow,
    must_differ,
    numbers,
    read_rows,
    rows_bytes,
    rows_name,
)
from thinkdiff.storage.feature_shards import (
    ARRAYS,
    AXES,
    Layout,
    StoredType,
    damaged,
    decode_shard,
    encode_shard,
    finite,
    group_metadata,
    metadata_bytes,
    row_checksums,
    shard_name,
)
from thinkdiff.storage.feature_stream import FeatureBatch, FeatureStore
from thinkdiff.storage.memory import Memory
from thinkdiff.storage.parts import Part, PartLog, must_be_whole
from thinkdiff.storage.root import Folder, sha256_hex

GROUP = "zarr.json"
READINGS = 3
COMMITS, ATTEMPTS = "commits", "attempts"
SEAL = "sha256"


def attempt_name(shard: int, digest: str) -> str:
    """Where the input features beside generated ones of that sha256 lie until the commit."""
    return f"{ATTEMPTS}/{shard:06d}-{digest}"


def sealed(part: Part) -> Part:
    """The part with a digest of all else that its record says."""
    info = {name: value for name, value in part.info.items() if name != SEAL}
    text = part.model_copy(update={"info": info}).model_dump_json()
    return part.model_copy(update={"info": info | {SEAL: sha256_hex(text.encode())}})


@dataclass(frozen=True)
class EncodedShard:
    """A shard ready to be stored: its objects and the Parquet of its rows."""

    shard: int
    objects: dict[TokenKind, memoryview]
    rows: memoryview

    @cached_property
    def digest(self) -> str:
        """The sha256 of the object of the generated tokens."""
        return sha256_hex(self.objects["generated"])


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
        codec: Codec = "none",
    ) -> None:
        self.folder = folder
        layout = Layout(rows, tokens, width, dtype, shard_size, codec=codec)
        self.layouts: dict[TokenKind, Layout] = {"generated": layout}
        if input_tokens:
            self.layouts["input"] = replace(layout, tokens=input_tokens, axis=AXES["input"])
        self._log = PartLog(folder, COMMITS, Part)
        self._memory = {kind: Memory() for kind in self.layouts}

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

    def prepare(self) -> dict[int, Part]:
        """Writes the metadata, removes what killed writers left, and returns the shards that are `committed`.

        For the holder of the artifact's lease, while nobody else writes. Raises StoreError when the folder holds a
        store of another shape or type.
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
        kept = self.committed()
        named = {entry.path for part in kept.values() for entry in part.files}
        for name in (*ARRAYS.values(), "rows", ATTEMPTS, COMMITS):
            (self.folder / name).sweep()
            left = {f"{name}/{found}" for found in (self.folder / name).sizes()} - named - set(self._metadata())
            for path in left if name != COMMITS else ():
                self.folder.delete(path)
        return kept

    def committed(self, deep: bool = False) -> dict[int, Part]:
        """The shards that are done, by number; `deep` re-hashes their files.

        Those that cannot be trusted are logged, noted in `rejected` and forgotten.
        """
        return self._log.committed(self._complaint, deep)

    def done(self) -> int:
        """How many shards have a record, whole or not; one listing."""
        return len((self.folder / COMMITS).sizes())

    def commit(self, shard: int, rows: Sequence[FeatureRow]) -> Part:
        """Writes all rows of a shard and, last, its record, unless another writer was first; returns what is there.

        Raises StoreError for rows that do not fit the store or are not finite, and for an object that no writer left.
        """
        return self.put(self.encode(shard, rows))

    def encode(self, shard: int, rows: Sequence[FeatureRow]) -> EncodedShard:
        """The first half of `commit`, which touches no store: it may run while the shard before is put."""
        self._check(shard, rows)
        objects: dict[TokenKind, memoryview] = {
            kind: encode_shard(self._padded(kind, rows), len(rows), layout, self._memory[kind])
            for kind, layout in self.layouts.items()
        }
        sums: dict[TokenKind, list[int]] = {
            kind: row_checksums(data, self.layouts[kind], shard, self.folder.uri) for kind, data in objects.items()
        }
        return EncodedShard(shard, objects, rows_bytes(rows, sums))

    def put(self, encoded: EncodedShard) -> Part:
        """The second half of `commit`."""
        shard, objects, digest = encoded.shard, encoded.objects, encoded.digest
        if (part := self._log.find(shard)) is not None:
            return part
        self.folder.create(rows_name(shard, digest), encoded.rows)
        if "input" in objects:
            self.folder.create(attempt_name(shard, digest), objects["input"])
        name = shard_name("generated", shard)
        if not self.folder.create(name, objects["generated"]):
            ours, digest = digest, self._winner(shard)
            if ours != digest:
                self.folder.delete(rows_name(shard, ours))
                self.folder.delete(attempt_name(shard, ours))
        return self._finish(shard, digest, len(objects["generated"]))

    def _winner(self, shard: int) -> str:
        """The sha256 of the object that another writer has created, every row of it verified."""
        return sha256_hex(self._verified("generated", shard, shard_name("generated", shard))[0])

    def _verified(self, kind: TokenKind, shard: int, name: str) -> tuple[bytes, list[int]]:
        """A shard object and the checksums of its rows. Raises StoreError when one of them fails twice."""
        try:
            return self._verify(kind, shard, name)
        except StoreError:  # altered on its way, perhaps
            return self._verify(kind, shard, name)

    def _verify(self, kind: TokenKind, shard: int, name: str) -> tuple[bytes, list[int]]:
        data, layout, where = self.folder.read(name), self.layouts[kind], f"{self.folder.uri}/{name}"
        for _ in decode_shard(data, layout, shard, where):
            pass
        return data, row_checksums(data, layout, shard, where)

    def _finish(self, shard: int, digest: str, size: int) -> Part:
        """Commits a shard whose object is there, by what its writer has left under its digest."""
        entries = [FileEntry(path=shard_name("generated", shard), size=size, sha256=digest)]
        rows, attempt = rows_name(shard, digest), attempt_name(shard, digest)
        inputs = self.layouts["input"].tokens if "input" in self.layouts else 0
        try:
            data, where = self._twice(rows), f"{self.folder.uri}/{rows}"
            table = read_rows(data, where, len(self.span(shard)), self.layouts["generated"].tokens, inputs)
            if inputs:
                entries.append(self._place_inputs(shard, attempt, numbers(table, CHECKSUMS["input"]).tolist()))
        except FileNotFoundError as error:
            if (part := self._log.find(shard)) is not None:  # another writer has finished meanwhile
                return part
            raise StoreError(
                f"{self.folder.uri}/{entries[0].path}: found an object that none of our writers has left ({error} is "
                "missing), expected none. Run the stage again; it is removed then."
            ) from None
        entries.append(FileEntry(path=rows, size=len(data), sha256=sha256_hex(data)))
        info = {
            "tokens": int(numbers(table, "length").sum()),
            "ended": int((numbers(table, "eos") >= 0).sum()),
            "characters": sum(map(len, table.column("text").to_pylist())),
        }
        part = sealed(Part(number=shard, rows=len(table), files=tuple(entries), info=info))
        self._log.commit(part)
        if "input" in self.layouts:
            self.folder.delete(attempt)
        return part

    def _place_inputs(self, shard: int, attempt: str, checksums: list[int]) -> FileEntry:
        """Gives the input features of an attempt their place. Raises StoreError when they are not whole."""
        name = shard_name("input", shard)
        data, found = self._verified("input", shard, attempt)
        if not self.folder.create(name, data):
            data, found = self._verified("input", shard, name)
        if found != checksums:
            raise damaged(f"{self.folder.uri}/{name}", "input features of another attempt")
        return FileEntry(path=name, size=len(data), sha256=sha256_hex(data))

    def _twice(self, name: str) -> bytes:
        """The bytes of a file that no digest vouches for yet, read until they are the same twice.

        Raises StoreError when they keep changing: they are altered on their way, not where they lie.
        """
        data = self.folder.read(name)
        for _ in range(READINGS):
            if (again := self.folder.read(name)) == data:
                return data
            data = again
        raise StoreError(
            f"{self.folder.uri}/{name}: found other bytes at each reading, expected the same. They are altered on the "
            "way; look at the connection or the disk and run the stage again."
        )

    def files(self, parts: Mapping[int, Part] | None = None) -> tuple[FileEntry, ...]:
        """The entries of all files of the finished store, whose parts are those `committed`.

        Raises StoreError when a shard is not committed.
        """
        parts = self.committed() if parts is None else parts
        must_be_whole(self.folder, parts, self.shards)
        fixed = [
            FileEntry(path=name, size=len(data), sha256=sha256_hex(data)) for name, data in self._metadata().items()
        ]
        records = [self._log.entry(number) for number in parts]
        return (*fixed, *(entry for part in parts.values() for entry in part.files), *records)

    def reader(self, files: tuple[FileEntry, ...]) -> FeatureReader:
        """A reader of the finished store, whose `files` these are, before it has a record."""
        return FeatureReader(FeatureSet.model_construct(uri=self.folder.uri, files=files))

    def _metadata(self) -> dict[str, bytes]:
        named = {ARRAYS[kind]: layout for kind, layout in self.layouts.items()}
        arrays = {f"{name}/zarr.json": metadata_bytes(layout.metadata()) for name, layout in named.items()}
        return arrays | {GROUP: metadata_bytes(group_metadata(named))}

    def _complaint(self, part: Part) -> str | None:
        if part != sealed(part):
            return "a record that was altered"
        if part.number >= self.shards or part.rows != len(self.span(part.number)):
            return f"a part of {part.rows} rows"
        digest = part.files[0].sha256 if part.files else ""
        expected = [*(shard_name(kind, part.number) for kind in self.layouts), rows_name(part.number, digest)]
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
            if row.input_length and "input" not in self.layouts:
                raise StoreError(f"{where}: found input features, expected none. The store has no room for them.")

    def _padded(self, kind: TokenKind, rows: Sequence[FeatureRow]) -> Iterator[npt.NDArray[Any]]:
        """Each row as (T, D) with NaN behind its length, in one array that is used again and again."""
        layout = self.layouts[kind]
        row_TD = np.empty((layout.tokens, layout.width), layout.native)
        for row in rows:
            states = row.features if kind == "generated" else row.input_features
            if states is None:
                states = row_TD[:0]
            if states.ndim != 2 or states.shape[1] != layout.width or len(states) > layout.tokens:
                raise StoreError(
                    f"{self.folder.uri}: {row.key}: found {ARRAYS[kind]} of shape {states.shape}, "
                    f"expected at most ({layout.tokens}, {layout.width})."
                )
            row_TD[: len(states)] = states
            row_TD[len(states) :] = np.nan
            if not finite(row_TD[: len(states)]):
                raise StoreError(
                    f"{self.folder.uri}: {row.key}: found {ARRAYS[kind]} with NaN or infinity, expected finite "
                    f"{layout.dtype} numbers. NaN marks rows past the end; compute in a wider type."
                )
            yield row_TD


__all__ = ["FeatureBatch", "FeatureReader", "FeatureRow", "FeatureStore", "FeatureWriter", "LoadedFeatures"]
