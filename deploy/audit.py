#!/usr/bin/env python3
"""Are there known flaws in what the locks install? Asks pip-audit, and through it OSV or the package index.

    .venv/bin/python deploy/audit.py                          exit code 1 when there are, 0 when not
    .venv/bin/python deploy/audit.py --accept PYSEC-2026-1    but for one that has been looked at

A service has a say only when it knows of flaws in CANARY: a mirror without advisories answers of everything that
nothing is known. Where no service has one, this says "not audited" and ends with 0, so that a build without a way to
them goes on. Nothing is installed or changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).resolve().parent
CANARY = "pillow==9.0.0"  # reads pictures with flaws that every list of advisories has
SERVICES = ("osv", "pypi")
PATIENCE = 15  # seconds for an answer


def main(arguments: Sequence[str]) -> int:
    """Audits every lock. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Known flaws in the locked packages.")
    parser.add_argument("locks", nargs="*", type=Path, default=sorted(DEPLOY.glob("*.lock")))
    parser.add_argument("--accept", action="append", default=[], metavar="ID", help="a flaw that has been looked at")
    parser.add_argument("--osv-url", default="https://api.osv.dev/v1/query")
    options = parser.parse_args(arguments)
    accepted = [part for flaw in options.accept for part in ("--ignore-vuln", flaw)]
    silent = []
    for service in SERVICES:
        ask = ["--vulnerability-service", service, "--osv-url", options.osv_url]
        if why := unfit(ask):
            silent.append(f"{service}: {why}")
            continue
        found = [line for lock in options.locks for line in flaws(lock, [*ask, *accepted])]
        print("\n".join([*found, f"audit: found {len(found)} known flaws, expected none, by {service}."]))
        return 1 if found else 0
    print(f"audit: not audited: no advisory service answers ({'; '.join(silent)}). Run it where one does.")
    return 0


def unfit(ask: Sequence[str]) -> str:
    """Why a service has no say, "" when it has one."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(f"{CANARY}\n")
        file.flush()
        found = report(Path(file.name), ask)
    if isinstance(found, str):
        return found
    return "" if any(package.get("vulns") for package in found) else f"it knows no flaw of {CANARY}"


def flaws(lock: Path, ask: Sequence[str]) -> list[str]:
    """A line for each known flaw of a locked package. A package that the service does not know is told at once."""
    found = report(lock, ask)
    if isinstance(found, str):
        return [f"{lock.name}: not audited, {found}"]
    lines = []
    for package in found:
        if "skip_reason" in package:
            print(f"{lock.name}: {package['name']} not audited: {package['skip_reason']}")
        for flaw in package.get("vulns", []):
            mended = ", ".join(flaw["fix_versions"]) or "no version"
            lines.append(f"{lock.name}: {package['name']} {package['version']} has {flaw['id']}, mended in {mended}")
    return lines


def report(requirements: Path, ask: Sequence[str]) -> list[dict[str, Any]] | str:
    """What pip-audit finds for each package, or its last words where it did not come to an end."""
    command = [
        sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps", "--disable-pip",
        "--format", "json", "--progress-spinner", "off", "--timeout", str(PATIENCE), *ask,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["dependencies"]
    except ValueError:
        return (done.stderr.strip().splitlines() or ["no message"])[-1][:200]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
