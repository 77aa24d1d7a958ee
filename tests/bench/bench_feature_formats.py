"""The same features in other formats, on a local disk: written, read at random, read in runs. A table, not a contest.

    pip install pylance webdataset
    python tests/bench/bench_feature_formats.py

Rows are (T, D) bfloat16 of the paper's size with a text each. Every format gets its usual way: WebDataset has tars of
`.pth` files, as the authors' release stores features, and can only be streamed; zarr-python the store's own layout,
single rows in threads (fancy indexing is many times slower) and runs as slices; Lance and Parquet a row as bytes,
Parquet with a row group for each row. All end with the bytes on the disk (sync). Every round does everything once;
medians over rounds, reads from a warm page cache, memory new for each batch but for ours. Checksums are verified by
this store and zarr alone. `cpu` is core-seconds of this process per GB.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr
from zarr.codecs import Crc32cCodec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from store_artifacts import artifact_of

from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage import bfloat16
from thinkdiff.storage.feature_shards import NATIVE
from thinkdiff.storage.feature_store import FeatureRow, FeatureStore, FeatureWriter
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.extraction_meter import Meter
from thinkdiff.tasks.feature_work import store

BATCH, RUN, THREADS = 96, 16, 8
Act = Callable[[], object]


class Rows:
    """What is stored, and which rows are read."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.count, self.shard = options.rows, options.shard
        numbers = np.random.default_rng(0).standard_normal((16, options.tokens, options.width), np.float32)
        self.states, self.ids = numbers.astype(NATIVE["bfloat16"]), tuple(range(options.tokens))
        rng = np.random.default_rng(1)
        self.picks = rng.permutation(self.count)[: self.count // BATCH * BATCH].reshape(-1, BATCH)
        self.runs = rng.permutation(self.count // RUN)[: len(self.picks) * BATCH // RUN] * RUN

    def __iter__(self) -> Iterator[FeatureRow]:
        for i in range(self.count):
            yield FeatureRow(f"{i:08}", "prompt", self.ids, -1, "text " * 30, self.states[i % 16])

    def shards(self) -> Iterator[tuple[int, list[FeatureRow]]]:
        rows = list(self)
        for first in range(0, self.count, self.shard):
            yield first // self.shard, rows[first : first + self.shard]


def ours(home: Path, rows: Rows) -> tuple[Act, Act, Act]:
    tokens, width = rows.states.shape[1:]
    writer = FeatureWriter(Folder(str(home)), rows=rows.count, tokens=tokens, width=width, shard_size=rows.shard)
    opened: list[FeatureStore] = []

    def write() -> None:
        writer.prepare()
        store(writer, rows.shards(), Meter())

    def epoch(shuffle: Any) -> None:
        if not opened:
            opened.append(FeatureStore(artifact_of(FeatureSet, writer.folder, writer.files())))
        for number, _ in enumerate(opened[0].iter_batches(BATCH, shuffle=shuffle, run=RUN, buffer=BATCH * 4), 1):
            if number == len(rows.picks):
                return

    return write, lambda: epoch("exact"), lambda: epoch("runs")


def plain_zarr(home: Path, rows: Rows) -> tuple[Act, Act, Act]:
    shape = (rows.count, *rows.states.shape[1:])

    def write() -> None:
        array = zarr.create_array(
            str(home), shape=shape, chunks=(1, *shape[1:]), shards=(rows.shard, *shape[1:]), dtype=NATIVE["bfloat16"],
            compressors=[Crc32cCodec()], config={"write_empty_chunks": True},
        )  # fmt: skip
        for shard, some in rows.shards():
            first = shard * rows.shard
            array[first : first + len(some)] = np.stack([row.features for row in some])
        synced(home)

    def take(slices: list[Any]) -> None:
        array: Any = zarr.open_array(str(home), mode="r")
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda one: array[one], slices))

    return (
        write,
        lambda: [take([slice(i, i + 1) for i in batch.tolist()]) for batch in rows.picks],
        lambda: [take([slice(i, i + RUN) for i in some.tolist()]) for some in rows.runs.reshape(-1, BATCH // RUN)],
    )


def table_of(some: list[FeatureRow]) -> pa.Table:
    kind = pa.binary(some[0].features.nbytes)
    states = pa.array([row.features.tobytes() for row in some], kind)
    return pa.table({"features": states, "text": [row.text for row in some]})


def parquet(home: Path, rows: Rows) -> tuple[Act, Act, Act]:
    def write() -> None:
        home.mkdir()
        for shard, some in rows.shards():
            pq.write_table(
                table_of(some), home / f"{shard}.parquet", row_group_size=1, compression="none", use_dictionary=False
            )
        synced(home)

    def take(batches: Any) -> None:
        files = [pq.ParquetFile(home / f"{shard}.parquet") for shard in range(-(-rows.count // rows.shard))]
        for batch in batches:
            for first, number in batch:
                groups = list(range(first % rows.shard, first % rows.shard + number))
                files[first // rows.shard].read_row_groups(groups, use_threads=False)

    return (
        write,
        lambda: take([[(i, 1) for i in batch.tolist()] for batch in rows.picks]),
        lambda: take([[(i, RUN) for i in rows.runs.tolist()]]),
    )


def lance(home: Path, rows: Rows) -> tuple[Act, Act, Act]:
    module = importlib.import_module("lance")

    def write() -> None:
        for _, some in rows.shards():
            module.write_dataset(table_of(some), str(home), mode="append" if home.exists() else "create")
        synced(home)

    def take(batches: list[list[int]]) -> None:
        data = module.dataset(str(home))
        for batch in batches:
            data.take(batch)

    def runs() -> None:
        flat = (rows.runs[:, None] + np.arange(RUN)).reshape(-1, BATCH)
        take(flat.tolist())

    return write, lambda: take(rows.picks.tolist()), runs


def webdataset(home: Path, rows: Rows) -> tuple[Act, Act | None, Act]:
    module = importlib.import_module("webdataset")

    def write() -> None:
        home.mkdir()
        for shard, some in rows.shards():
            with tarfile.open(home / f"{shard:06d}.tar", "w") as tar:
                for row in some:
                    data = io.BytesIO()
                    torch.save(torch.from_numpy(row.features.view(np.int16)).view(torch.bfloat16), data)
                    for end, content in (("pth", data.getvalue()), ("txt", row.text.encode())):
                        info = tarfile.TarInfo(f"{row.key}.{end}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
        synced(home)

    def stream() -> None:
        tars = sorted(str(path) for path in home.glob("*.tar"))
        data = module.WebDataset(tars, shardshuffle=False).shuffle(BATCH * 4)
        for sample in data:
            torch.load(io.BytesIO(sample["pth"]), weights_only=True)

    return write, None, stream


def synced(home: Path) -> None:
    """Waits until all files below a folder are on the disk."""
    for path in home.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.close(file)


FORMATS = {
    "this store": ours, "zarr-python": plain_zarr, "Parquet": parquet, "Lance": lance, "WebDataset .pth": webdataset,
}  # fmt: skip


def cell(times: list[tuple[float, float]], size: int) -> str:
    """Speed and processor time."""
    wall, cpu = (statistics.median(one[place] for one in times) for place in range(2))
    return f"{size / 1e6 / wall:6.0f} MB/s {cpu / size * 1e9:6.2f} cpu"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1536)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=3584)
    parser.add_argument("--shard", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bfloat16.register()
    rows = Rows(options)
    size = rows.count * rows.states[0].nbytes
    found: dict[str, list[list[tuple[float, float]]]] = {name: [[], [], []] for name in FORMATS}
    stored: dict[str, int] = {}
    for _ in range(options.rounds):
        for name, make in FORMATS.items():
            with tempfile.TemporaryDirectory() as home:
                for place, act in enumerate(make(Path(home, "store"), rows)):
                    if act is not None:
                        began, used = time.perf_counter(), time.process_time()
                        act()
                        found[name][place].append((time.perf_counter() - began, time.process_time() - used))
                stored[name] = sum(path.stat().st_size for path in Path(home).rglob("*") if path.is_file())
    print(
        f"{'format':16} {'bytes':>6} " + "".join(f"{kind:>24}" for kind in ("write", f"random {BATCH}", f"runs {RUN}"))
    )
    for name, kinds in found.items():
        cells = ["-" if not kind else cell(kind, size) for kind in kinds]
        print(f"{name:16} {stored[name] / size:6.3f} " + "".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()
