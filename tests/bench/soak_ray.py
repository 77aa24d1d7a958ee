"""Extracts the miniature on a Ray cluster of two local nodes and kills the one that works beside the head in mid-run.

    pip install "prefect-ray>=0.6"
    python tests/bench/soak_ray.py --folder /tmp/soak-ray

The head has its calls and the killed node's run again by Ray; the features must have the digest of an undisturbed run
with one engine in this process. Both nodes have one CPU for tasks, so that each has one engine at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

CAPTIONS, SHARD = 2048, 32
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block", "--num-cpus=1",
       "--num-gpus=0", "--disable-usage-stats"]  # fmt: skip


def run(root: Path, data: Path, *more: str) -> subprocess.Popen[str]:
    """The miniature up to its features."""
    command = [sys.executable, "-m", "thinkdiff.flows.cli", "run", "mini", "--root", str(root), "--data", str(data)]
    command += ["--until", "extract_features", "--json", "--set=run.threads=1"]
    command += [f"--set=captions.n={CAPTIONS}", f"--set=features.shard_size={SHARD}", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def digest(process: subprocess.Popen[str], root: Path) -> str:
    """The features' digest, once the run has ended well."""
    out, _ = process.communicate()
    assert process.returncode == 0, f"the run ended with {process.returncode}: {out[-2000:]}"
    (record,) = (root / "extract_features").glob("*/artifact.json")
    return json.loads(record.read_text())["digest"]


def node(log: Path, *more: str) -> psutil.Process:
    """A Ray node in a process group of its own."""
    with open(log, "w") as file:
        started = subprocess.Popen([*RAY, *more], stdout=file, stderr=file, start_new_session=True)
    return psutil.Process(started.pid)


def working(of: psutil.Process) -> list[psutil.Process]:
    """The processes below a node that run a task."""
    found = []
    for process in of.children(recursive=True):
        try:
            if any(part.startswith("ray::") and "IDLE" not in part for part in process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found


def end(of: psutil.Process) -> int:
    """Kills a node with all that it has started, and says how many processes that were."""
    family = [of, *of.children(recursive=True)]
    for process in family:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    return len(family)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
    expected = digest(run(folder / "calm", folder / "data"), folder / "calm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    head = node(folder / "head.log", "--head", "--node-ip-address=127.0.0.1", f"--port={port}",
                "--include-dashboard=false")  # fmt: skip
    other = head
    try:
        time.sleep(10)
        other = node(folder / "other.log", f"--address={address}")
        time.sleep(5)
        rough = run(folder / "rough", folder / "data", "--set=run.runner=ray", f"--set=run.runner_address={address}",
                    "--set=run.engines=2")  # fmt: skip
        records = folder / "rough" / "extract_features"
        while rough.poll() is None and (len(list(records.glob("*/commits/*.json"))) < 8 or not working(other)):
            time.sleep(0.05)
        assert rough.poll() is None, f"the run ended before the kill with {rough.returncode}"
        busy, done = len(working(other)), len(list(records.glob("*/commits/*.json")))
        print(f"killed {end(other)} processes of a node, {busy} of them at work, after {done} commits", flush=True)
        found = digest(rough, folder / "rough")
    finally:
        end(other)
        end(head)
    print(f"digest equal to an undisturbed run's: {found == expected} ({found[:16]})")
    assert found == expected


if __name__ == "__main__":
    main()
