"""A run of the miniature small enough for a test: the real pipeline with fewer captions, steps and prompts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SETTINGS = {
    "captions.n": 160,
    "features.shard_size": 64,
    "aligner.steps": 24,
    "aligner.batch": 8,
    "aligner.validation_rows": 32,
    "aligner.validation_every": 12,
    "run.checkpoint_every": 8,
    "queries.prompts.per_task": 1,
    "media.steps": 2,
    "report.examples": 4,
}


def thinkdiff(*arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "thinkdiff.flows.cli", *arguments],
        capture_output=True, text=True, timeout=timeout, env=os.environ.copy(),
    )  # fmt: skip


def small_arguments(root: Path, data: Path, **changes: Any) -> list[str]:
    """Arguments of `thinkdiff run mini` for a small run."""
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    assignments = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return ["run", "mini", "--root", str(root), "--data", str(data), "--json", *assignments]


def small_run(root: Path, data: Path, *more: str, **changes: Any) -> dict[str, Any]:
    """Runs it and returns what `--json` printed. Fails the test with the log when the run failed."""
    done = thinkdiff(*small_arguments(root, data, **changes), *more)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def states(result: dict[str, Any]) -> dict[str, str]:
    """Role of each stage to its state."""
    return {line["role"]: line["state"] for line in result["stages"]}
