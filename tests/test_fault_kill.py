"""SIGKILL in the middle of extraction by two engines and of training: the re-run ends as an undisturbed one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from small_run import small_arguments, small_run, states

from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage.feature_reader import FeatureReader
from thinkdiff.storage.records import read_record
from thinkdiff.storage.root import Folder


def kill_when(root: Path, data: Path, pattern: str) -> None:
    """Starts a small run and kills its process group as soon as a file matches."""
    process = subprocess.Popen(
        [sys.executable, "-m", "thinkdiff.flows.cli", *small_arguments(root, data, run__engines=2)],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + 300
    try:
        while not list(root.glob(pattern)):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def digests(result: dict) -> dict[str, str]:
    return {line["role"]: line["digest"] for line in result["stages"]}


def test_fault_kill_in_extraction_and_training_then_re_run(first, world, tmp_path):
    calm, root = first[1], tmp_path / "root"
    kill_when(root, world, "extract_features/*/commits/*.json")
    committed = {kept: kept.read_bytes() for kept in root.glob("extract_features/*/commits/*.json")}
    assert committed
    assert not list(root.glob("extract_features/*/artifact.json"))
    kill_when(root, world, "train_aligner/*/checkpoints/*.json")
    assert {kept: kept.read_bytes() for kept in committed} == committed
    again = small_run(root, world, "--until", "train_aligner")
    assert states(again)["extract_features"] == "Cached"
    calm_features, features = (
        FeatureReader(read_record(Folder.at(line["uri"]), FeatureSet))  # pyright: ignore[reportArgumentType]
        for result in (calm, again)
        for line in result["stages"]
        if line["role"] == "extract_features"
    )
    assert features.keys == calm_features.keys
    one, two = calm_features.load(), features.load()
    np.testing.assert_array_equal(one.token_ids, two.token_ids)
    np.testing.assert_allclose(one.features, two.features, atol=1e-4)
    if digests(again)["extract_features"] == digests(calm)["extract_features"]:
        assert digests(again)["train_aligner"] == digests(calm)["train_aligner"]
