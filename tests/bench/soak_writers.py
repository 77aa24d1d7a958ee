"""Three writers of one feature store, killed with SIGKILL again and again, on disk or in a bucket.

    python tests/bench/soak_writers.py --kills 100 [--s3]

The engine is deterministic: a row is drawn from its number. Every writer goes through all missing shards in an order of
its own, so that shards are made twice too. Every fifth writer kills itself between the first shard's object and its
record; the others are killed at random moments. The end must be the store of an undisturbed writer, digest for digest,
and `gc` must then find what was left over, and only that.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from s3_server import bucket_url
from store_artifacts import artifact_of

from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage.feature_store import FeatureReader, FeatureRow, FeatureWriter
from thinkdiff.storage.housekeeping import garbage, remove, verify_root
from thinkdiff.storage.records import write_record
from thinkdiff.storage.root import Folder

WRITERS, SHARD, TOKENS, WIDTH, INPUTS = 3, 16, 8, 64, 4
DECISIVE, NEVER = "features/", "nowhere"


def row(index: int) -> FeatureRow:
    """What the deterministic engine answers to request `index`."""
    rng = np.random.default_rng(index)
    length = 1 + index % TOKENS
    states, inputs = (rng.standard_normal((count, WIDTH), np.float32) for count in (length, index % (INPUTS + 1)))
    ids = tuple(rng.integers(0, 150_000, length).tolist())
    return FeatureRow(f"key {index:06}", "prompt", ids, length - 1, f"text {index}", states, inputs)


def writer_of(folder: Folder, rows: int) -> FeatureWriter:
    """A writer of the store, its metadata not yet written."""
    return FeatureWriter(
        folder, rows=rows, tokens=TOKENS, width=WIDTH, dtype="float32", shard_size=SHARD, input_tokens=INPUTS
    )


@dataclass(frozen=True)
class Slow(Folder):
    """A folder that takes its time before it creates an object, so that a kill may fall between any two of them."""

    die_after: str

    def create(self, name: str, data: bytes | bytearray | memoryview) -> bool:
        """`Folder.create` after a moment; after it, dies where it was told to."""
        time.sleep(random.uniform(0, 0.05))
        made = super().create(name, data)
        if name.startswith(self.die_after):
            os.kill(os.getpid(), signal.SIGKILL)
        return made


def work(uri: str, rows: int, seed: int, die_after: str) -> None:
    """A writer: commits what is missing, in an order of its own."""
    random.seed(seed)
    writer = writer_of(Slow(uri, die_after), rows)
    missing = sorted(set(range(writer.shards)) - recorded(writer.folder))
    for shard in random.sample(missing, len(missing)):
        writer.commit(shard, [row(index) for index in writer.span(shard)])


def recorded(folder: Folder) -> set[int]:
    """The shards that have a record. `committed` is not for writers: it judges, by a listing that others outrun."""
    return {int(Path(name).stem) for name in folder.sizes("commits")}


def half_way(folder: Folder) -> int:
    """How many shards have their object and no record."""
    objects = {int(name.split("/")[2]) for name in folder.sizes("features") if "/c/" in name}
    return len(objects - recorded(folder))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--shards", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--s3", action="store_true", help="in a bucket of SeaweedFS")
    arguments = parser.parse_args()
    base = f"{bucket_url()}/{uuid.uuid4().hex}" if arguments.s3 else tempfile.mkdtemp(prefix="soak-writers-")
    root = Folder.at(base)
    rows, rng = arguments.shards * SHARD - 5, random.Random(arguments.seed)
    calm, rough = (root / name / "extract_features" / ("0" * 32) for name in ("calm", "rough"))

    undisturbed = writer_of(calm, rows)
    undisturbed.prepare()
    for shard in range(undisturbed.shards):
        undisturbed.commit(shard, [row(index) for index in undisturbed.span(shard)])
    expected = artifact_of(FeatureSet, calm, undisturbed.files())

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["thinkdiff.storage.feature_store", "s3fs"])
    writer_of(rough, rows).prepare()
    started = kills = on_purpose = windows = 0
    writers: list[BaseProcess] = []
    while kills < arguments.kills:
        while len(writers) < WRITERS:
            die_after = DECISIVE if started % 5 == 4 else NEVER
            writer = context.Process(target=work, args=(rough.uri, rows, started, die_after), name=die_after)
            writer.start()
            started += 1
            writers.append(writer)
        time.sleep(rng.uniform(0, 0.6))
        if victims := [one for one in writers if one.name != DECISIVE]:
            victim = rng.choice(victims)
            victim.kill()
            victim.join()
        for writer in [one for one in writers if not one.is_alive()]:
            writer.join()
            writers.remove(writer)
            if writer.exitcode == 0:
                raise SystemExit(f"a writer finished after {kills} kills: ask for more --shards")
            kills, on_purpose = kills + 1, on_purpose + (writer.name == DECISIVE)
        windows += half_way(rough) > 0
    for writer in writers:
        writer.join()
    work(rough.uri, rows, started, NEVER)

    store = writer_of(rough, rows)
    artifact = artifact_of(FeatureSet, rough, store.files())
    write_record(artifact)
    reader = FeatureReader(artifact)
    assert reader.keys == [row(index).key for index in range(rows)]
    assert artifact.digest == expected.digest, "another store than the undisturbed one"
    left = garbage((root / "rough").uri)
    named = {f"extract_features/{'0' * 32}/{entry.path}" for entry in artifact.files}
    assert not named & set(left), "gc would remove what the record names"
    remove((root / "rough").uri, left)
    checked, problems = verify_root((root / "rough").uri, deep=True)
    assert checked == 1
    assert not problems, problems
    assert set(rough.sizes()) - {"artifact.json"} == set(artifact.names(""))
    print(
        f"{'s3' if arguments.s3 else 'disk'}: {kills} kills of {started} writers ({on_purpose} of them by itself, "
        f"between object and record), {windows} looks found a shard half-way, {rows} rows once each, the digest of an "
        f"undisturbed writer; gc removed {len(left)} left-overs ({sum(left.values())} bytes)"
    )
    root.delete_all()


if __name__ == "__main__":
    main()
