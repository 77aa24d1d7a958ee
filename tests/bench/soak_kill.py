"""Kills a run with SIGKILL at random moments of extraction and training, re-runs it, compares with an undisturbed run.

    python tests/bench/soak_kill.py --folder /tmp/soak --kills 10 [--engines 3]

Training must end in the same content digest. Extraction: shards that were committed keep their bytes, every key is
present once, recomputed rows have the same ids and features within 1e-4.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage.feature_store import FeatureReader
from thinkdiff.storage.records import read_record
from thinkdiff.storage.root import Folder

STEPS, CHECKPOINT_EVERY = 300, 20
PARTS = {"extract_features": 16, "train_aligner": STEPS // CHECKPOINT_EVERY}


def command(root: Path, data: Path, engines: int = 0) -> list[str]:
    """The run that is disturbed: a shorter miniature up to the aligner."""
    settings = {
        "run.engines": engines,
        "captions.n": 2048, "features.shard_size": 128, "aligner.steps": STEPS,
        "run.checkpoint_every": CHECKPOINT_EVERY,
    }  # fmt: skip
    return [
        sys.executable, "-m", "thinkdiff.flows.cli", "run", "mini", "--root", str(root), "--data", str(data),
        "--until", "train_aligner", "--json", *(f"--set={name}={value}" for name, value in settings.items()),
    ]  # fmt: skip


def artifacts(root: Path) -> tuple[FeatureSet, AlignerCheckpoint]:
    """The one feature set and the one aligner of a root."""
    found = []
    for stage, kind in (("extract_features", FeatureSet), ("train_aligner", AlignerCheckpoint)):
        base = Folder.at(str(root)) / stage
        (name,) = base.children()
        artifact = read_record(base / name, kind)
        assert artifact is not None, f"{stage} is not whole"
        found.append(artifact)
    return found[0], found[1]


def killed_run(root: Path, data: Path, stage: str, share: tuple[float, float], rng: random.Random, engines: int) -> str:
    """Starts a run and kills its process group at a random point in that share of `stage`."""
    process = subprocess.Popen(
        command(root, data, engines), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    done = parts(root, stage)
    wanted = max(done, round((PARTS[stage] - 1) * rng.uniform(*share)))
    while process.poll() is None and (parts(root, stage) < wanted or not list((root / stage).glob("*/lease.json"))):
        time.sleep(0.02)
    delay = rng.uniform(0.0, 2.0)
    end = time.monotonic() + delay
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    if process.poll() is not None:
        return f"ended by itself with {process.returncode}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return f"killed {delay:.1f} s after part {wanted} of {PARTS[stage]} was there ({done} before)"


def parts(root: Path, stage: str) -> int:
    """How far a stage has come: shards committed, or checkpoints reached (only the last two are kept)."""
    if stage == "extract_features":
        return len(list((root / stage).glob("*/commits/*.json")))
    steps = [int(path.stem) for path in (root / stage).glob("*/checkpoints/*.json")]
    return max(steps, default=0) // CHECKPOINT_EVERY


def commits(root: Path) -> dict[str, bytes]:
    """Commit records of the feature store by name."""
    return {path.name: path.read_bytes() for path in sorted((root / "extract_features").glob("*/commits/*.json"))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", type=int, default=0, help="engines side by side in the killed runs")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    data, calm, rough = (arguments.folder / name for name in ("data", "calm", "rough"))
    if not (calm / "train_aligner").exists():
        subprocess.run(command(calm, data), check=True, stdout=subprocess.DEVNULL)
    kept: dict[str, bytes] = {}
    half = arguments.kills // 2
    plan = [("extract_features", i, half) for i in range(half)]
    plan += [("train_aligner", i, arguments.kills - half) for i in range(arguments.kills - half)]
    for kill, (stage, i, count) in enumerate(plan):
        share = (i / count, (i + 1) / count)
        print(f"kill {kill} in {stage}: {killed_run(rough, data, stage, share, rng, arguments.engines)}", flush=True)
        now = commits(rough)
        changed = [name for name, body in kept.items() if now.get(name) != body]
        assert not changed, f"committed shards changed: {changed}"
        kept = now
    subprocess.run(command(rough, data, arguments.engines), check=True, stdout=subprocess.DEVNULL)
    (features, aligner), (features_2, aligner_2) = artifacts(calm), artifacts(rough)
    one, two = FeatureReader(features).load(), FeatureReader(features_2).load()
    keys = FeatureReader(features_2).keys
    assert len(set(keys)) == len(keys) == features_2.counts["rows"]
    assert keys == FeatureReader(features).keys
    assert np.array_equal(one.token_ids, two.token_ids)
    worst = float(np.abs(one.features - two.features).max())
    print(f"features: {len(keys)} keys once each, ids equal, largest difference {worst:.2e}")
    print(f"features digest equal: {features.digest == features_2.digest}")
    print(f"aligner digest equal: {aligner.digest == aligner_2.digest}")
    assert worst <= 1e-4
    assert features.digest != features_2.digest or aligner.digest == aligner_2.digest


if __name__ == "__main__":
    main()
