"""The feature store against raw files of the same bytes and against zarr-python, on a local disk, in one run.

    python tests/bench/bench_feature_store.py --rows 460 --width 3584 --shard 128 --dtype bfloat16

Every round measures everything once, so that noise of the machine meets all alike; medians are printed, and ratios to
the raw files. Reads are from a warm page cache. `cpu` is core-seconds per GB, the steadier number on a shared machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from store_artifacts import artifact_of

from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage import bfloat16
from thinkdiff.storage.feature_shards import encode_shard
from thinkdiff.storage.feature_store import FeatureReader, FeatureRow, FeatureWriter
from thinkdiff.storage.root import Folder

BATCH = 96
bfloat16.register()


def cases(home: Path, options: argparse.Namespace) -> dict[str, tuple[float, Callable[[], object]]]:
    """Name -> bytes moved and what moves them."""
    folder = Folder(str(home / "store"))
    writer = FeatureWriter(
        folder, rows=options.rows, tokens=options.tokens, width=options.width, dtype=options.dtype,
        shard_size=options.shard,
    )  # fmt: skip
    writer.prepare()
    layout = writer.layouts["generated"]
    states = np.random.default_rng(0).standard_normal((options.tokens, options.width), np.float32).astype(layout.native)
    ids = tuple(range(options.tokens))
    rows = [FeatureRow(f"{i:08}", "prompt", ids, -1, "text", states) for i in range(options.rows)]
    for shard in range(writer.shards):
        writer.commit(shard, [rows[i] for i in writer.span(shard)])
    artifact = artifact_of(FeatureSet, folder, writer.files())
    reader, names = FeatureReader(artifact), artifact.names("features/c/")
    block, data = np.stack([states] * options.shard), states.nbytes
    picks = np.random.default_rng(1).integers(0, options.rows, BATCH)
    array = zarr.open_group(folder.uri, mode="r")["features"]
    assert isinstance(array, zarr.Array)
    plain = encode_shard(block, layout)

    def raw_gather() -> None:
        files = {name: os.open(artifact.path(name), os.O_RDONLY) for name in names}
        for pick in picks:
            shard, place = divmod(int(pick), options.shard)
            os.pread(files[f"features/c/{shard}/0/0"], data, place * layout.chunk_bytes[0])
        for file in files.values():
            os.close(file)

    def zarr_gather() -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda pick: array[int(pick)], picks))

    return {
        "copy a shard in memory (raw)": (block.nbytes, lambda: block.copy()),
        "encode a shard": (block.nbytes, lambda: encode_shard(block, layout)),
        "write and sync a file (raw)": (len(plain), lambda: folder.write("raw", plain)),
        "read all files (raw)": (options.rows * data, lambda: [folder.read(name) for name in names]),
        "load": (options.rows * data, lambda: FeatureReader(artifact).load()),
        "iterate": (options.rows * data, lambda: sum(row.length for row in reader.iterate())),
        "zarr, whole array": (options.rows * data, lambda: array[...]),
        f"pread {BATCH} rows (raw)": (BATCH * data, raw_gather),
        f"read {BATCH} rows": (BATCH * data, lambda: reader.rows(picks.tolist())),
        f"zarr, {BATCH} rows in threads": (BATCH * data, zarr_gather),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=460)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=3584)
    parser.add_argument("--shard", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        wall: dict[str, list[float]] = {}
        cpu: dict[str, list[float]] = {}
        sizes = cases(Path(home), options)
        for _ in range(options.rounds + 1):
            for name, (_, act) in sizes.items():
                began, used = time.perf_counter(), time.process_time()
                act()
                wall.setdefault(name, []).append(time.perf_counter() - began)
                cpu.setdefault(name, []).append(time.process_time() - used)
        raw = 1.0
        for name, (size, _) in sizes.items():
            rate = size / 1e6 / statistics.median(wall[name][1:])
            raw = rate if "(raw)" in name else raw
            load = statistics.median(cpu[name][1:]) / size * 1e9
            print(f"{name:32} {rate:8.0f} MB/s  {rate / raw:5.2f} of raw  {load:6.2f} cpu s/GB")


if __name__ == "__main__":
    main()
