"""Trainings in several processes: the same losses as in one, one sentence when they fail, nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from small_training import features, make_features, spec, work

from thinkdiff.schemas.errors import SpecError, TrainingError
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.train_aligner import train_aligner

__all__ = ["features"]
STEPS = 50


def losses(folder, features, ranks: int, precision: str) -> list[float]:
    plan = spec(steps=STEPS, schedule_steps=STEPS, lr=5e-4, precision=precision)
    train_aligner.body(work(folder, ranks=ranks), plan, features)
    return json.loads(Folder.at(str(folder)).read("losses.json"))["training"]


@pytest.mark.parametrize(("precision", "ranks", "within"), [("float64", 4, 1e-8), ("float32", 2, 1e-3)])
def test_ranks_have_the_losses_of_one(features, tmp_path, precision, ranks, within):
    one = losses(tmp_path / "1", features, 1, precision)
    assert len(one) == STEPS
    np.testing.assert_allclose(losses(tmp_path / "many", features, ranks, precision), one, rtol=within)


def test_error_of_a_rank_is_told_as_it_is(tmp_path):
    bad = make_features(tmp_path, poisoned=20)
    with pytest.raises(TrainingError, match=rf"found the loss nan at step \d+ \(of the samples {20:032x}"):
        train_aligner.body(work(tmp_path / "run", ranks=2), spec(steps=20), bad)


def test_more_ranks_than_samples_are_refused(features, tmp_path):
    with pytest.raises(SpecError, match="found 9, expected at most the 8 samples of a step"):
        train_aligner.body(work(tmp_path, ranks=9), spec(), features)


def test_ranks_end_with_the_process_that_started_them_and_stop_on_its_sigterm(features, tmp_path):
    """SIGTERM: a checkpoint, and the signal's own end. SIGKILL: the ranks find their input closed."""
    script = (
        "import sys\nfrom small_training import spec, work\n"
        "from thinkdiff.schemas.features import FeatureSet\nfrom thinkdiff.storage.records import read_record\n"
        "from thinkdiff.storage.root import Folder\nfrom thinkdiff.tasks.train_aligner import train_aligner\n"
        "train_aligner.body(work(sys.argv[2], ranks=2, checkpoint_every=10), spec(steps=100_000),"
        " read_record(Folder.at(sys.argv[1]), FeatureSet))"
    )
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = newest(tmp_path)
        with subprocess.Popen(
            [sys.executable, "-c", script, features.uri, str(tmp_path)], env=environment()
        ) as process:
            wait_for(lambda before=before: newest(tmp_path) > before)
            process.send_signal(number)
            process.wait(120)
        assert process.returncode == -number
        if number == signal.SIGTERM:
            assert newest(tmp_path) > before
        wait_for(lambda: not living(tmp_path))


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def newest(folder) -> int:
    return max((int(found.stem) for found in (folder / "checkpoints").glob("*.json")), default=0)


def living(folder) -> list[str]:
    """Processes whose command line names the folder."""
    found = []
    for line in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{line}/cmdline", "rb") as file:
                command = file.read().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command and "training_process" in command:
            found.append(command)
    return found


def wait_for(ready) -> None:
    end = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)
