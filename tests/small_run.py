"""A run of the miniature small enough for a test: the real pipeline with fewer captions, steps and prompts."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from thinkdiff.flows import cli

SETTINGS = {
    "world.rows": 2000,
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


def thinkdiff(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in this process, whose libraries and Prefect server are there for the next call, too.

    Prefect's log goes where it went when Prefect was loaded, and not into what is returned.
    """
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["thinkdiff", *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(["thinkdiff", *arguments], code, out.getvalue(), err.getvalue())


def started(*arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
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


def small_run(root: Path, data: Path, *more: str, command: Any = thinkdiff, **changes: Any) -> dict[str, Any]:
    """Runs it and returns what `--json` printed. Fails the test with the log when the run failed."""
    done = command(*small_arguments(root, data, **changes), *more)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def states(result: dict[str, Any]) -> dict[str, str]:
    """Role of each stage to its state."""
    return {line["role"]: line["state"] for line in result["stages"]}
