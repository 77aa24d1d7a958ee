#!/usr/bin/env python3
"""Set up the CPU environment: a virtual environment, torch, the rest of the lock, thinkdiff, and a check.

    python3 deploy/install.py           what the pipeline needs, from deploy/cpu.lock
    python3 deploy/install.py --test    and what the tests need, from deploy/test.lock

Torch is a step of its own, with its dependencies, because its builds differ in what they depend on. The first
source that has it wins: a CPU build that pip's own configuration knows (a folder, a mirror); where no NVIDIA
driver is found, PyTorch's CPU index; else the package index's build with its CUDA libraries. What is already
installed in the locked version, whatever its build, is left alone, so a second run takes a moment. Standard
library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PYTHONS = ((3, 11), (3, 12))
STAMP = "thinkdiff-install.json"

# Run by the new environment's Python; prepare_torchvision() defines the two operators that a CUDA build of
# torchvision cannot register beside a CPU torch, and does nothing elsewhere.
CHECK = """
import os
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
import torch
from thinkdiff.tasks.qwen_engine import prepare_torchvision
prepare_torchvision()
import torchvision
from vllm import LLM
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
"""


class InstallError(Exception):
    """A sentence for the person at the terminal: what was found, what was expected, what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Install, check, print one line. Returns the exit code."""
    options = parse(arguments)
    try:
        use_supported_python()
        print(install(options.venv.absolute(), test=options.test, torch_index=options.torch_index), flush=True)
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description="Set up thinkdiff's CPU environment.")
    parser.add_argument("--test", action="store_true", help="install the test tools too")
    parser.add_argument("--venv", type=Path, default=REPOSITORY / ".venv", help="default: .venv here")
    parser.add_argument("--torch-index", default=CPU_INDEX, help=f"index of +cpu builds, default {CPU_INDEX}")
    return parser.parse_args(arguments)


def use_supported_python() -> None:
    """Go on under a Python that the lock was resolved for, if this is none and there is one on the PATH."""
    if sys.version_info[:2] in PYTHONS:
        return
    for major, minor in PYTHONS:
        if other := shutil.which(f"python{major}.{minor}"):
            probe = subprocess.run([other, "-c", "import venv"], capture_output=True, check=False)
            if probe.returncode == 0:
                os.execv(other, [other, *sys.argv])  # noqa: S606 (a Python that was just found)
    raise InstallError(
        f"found Python {platform.python_version()}, expected 3.11 or 3.12. The lock's packages have no "
        "wheels for it. Install Python 3.11 and run this again."
    )


def install(venv: Path, *, test: bool, torch_index: str = CPU_INDEX) -> str:
    """Bring `venv` to the lock and return one line that says what it holds. Raises InstallError."""
    started = time.monotonic()
    locks = [REPOSITORY / "deploy" / "cpu.lock"] + ([REPOSITORY / "deploy" / "test.lock"] if test else [])
    pins = {name: version for lock in locks for name, version in read_lock(lock).items()}
    python = create(venv)
    wanted = missing(pins, site_packages(venv))
    if "torch" in wanted:
        install_torch(python, pins, locks[0], torch_index)
        wanted = missing(pins, site_packages(venv))
    if wanted:
        say(f"{len(wanted)} packages from {' and '.join(lock.name for lock in locks)}")
        pip(python, "--no-deps", *(f"{name}=={pins[name]}" for name in wanted))
    stamp = venv / STAMP
    seen = state(site_packages(venv))
    if stamp.is_file() and json.loads(stamp.read_text())["state"] == seen:
        return f"{venv} is in order: {json.loads(stamp.read_text())['holds']}"
    say("thinkdiff itself, from this folder")
    pip(python, "--no-deps", "--no-build-isolation", "--editable", str(REPOSITORY))
    say("does it import?")
    holds = f"{check(python)}, {len(pins)} locked packages"
    stamp.write_text(json.dumps({"state": state(site_packages(venv)), "holds": holds}))
    return f"{venv} is ready after {time.monotonic() - started:.0f} s: {holds}"


def read_lock(lock: Path) -> dict[str, str]:
    """Package name -> version of a lock of `name==version` lines."""
    lines = [line.strip() for line in lock.read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, version in pairs}


def normal(name: str) -> str:
    """A package name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def create(venv: Path) -> Path:
    """The Python of `venv`, made first when it is not there."""
    python = venv / "bin" / "python"
    if not python.exists():
        say(f"virtual environment {venv}")
        made = run([sys.executable, "-m", "venv", str(venv)])
        if made.returncode:
            shutil.rmtree(venv, ignore_errors=True)
            raise InstallError(
                f"found no way to make {venv} ({last_line(made.stdout + made.stderr)}), expected `python3 -m "
                "venv` to work. On Debian and Ubuntu: apt-get install python3-venv, then run this again."
            )
    return python


def site_packages(venv: Path) -> Path:
    """The folder that `venv` installs into."""
    return next((venv / "lib").glob("python3.*/site-packages"))


def missing(pins: dict[str, str], folder: Path) -> list[str]:
    """The locked packages that `folder` has not, or has in another version.

    A build tag (`+cpu`) is no part of a version here. A package counts as installed once its RECORD is there,
    which pip writes last.
    """
    found = {}
    for record in folder.glob("*.dist-info/RECORD"):
        name, _, version = record.parent.name.removesuffix(".dist-info").partition("-")
        found[normal(name)] = version.partition("+")[0]
    return [name for name, version in pins.items() if found.get(name) != version]


def state(folder: Path) -> str:
    """A digest of what is installed in `folder` and of how thinkdiff is packaged."""
    parts = sorted(path.name for path in folder.glob("*.dist-info"))
    parts += [str(REPOSITORY), (REPOSITORY / "pyproject.toml").read_text(), CHECK]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def install_torch(python: Path, pins: dict[str, str], lock: Path, torch_index: str) -> None:
    """Install torch with its dependencies from the first source that has it; see the top of this file."""
    torch, vision = f"torch=={pins['torch']}", f"torchvision=={pins['torchvision']}"
    rest = ("--constraint", str(lock))
    say(f"{torch}: a CPU build that pip's own configuration knows?")
    if pip_finds(python, f"{torch}+cpu", *rest):
        return
    if platform.system() == "Linux" and not nvidia_driver():
        say(f"{torch}: PyTorch's CPU index, {torch_index}?")
        builds = (f"{torch}+cpu", f"{vision}+cpu")
        if index_lists(python, torch_index, *builds[0].split("==")):
            if pip_finds(python, "--extra-index-url", torch_index, *builds, *rest):
                return
    say(f"{torch}: the package index's build with the libraries it needs (on Linux CUDA, several GB)")
    pip(python, torch, *rest)


def nvidia_driver() -> bool:
    """Whether an NVIDIA driver is loaded here."""
    return Path("/proc/driver/nvidia/version").exists()


def index_lists(python: Path, index: str, name: str, version: str) -> bool:
    """Whether an index has a version. One that does not answer within ten seconds counts as having none."""
    patience = ("--timeout", "10", "--retries", "0", "--disable-pip-version-check")
    listed = run([str(python), "-m", "pip", "index", "versions", name, "--index-url", index, *patience])
    return version in re.split(r"[\s,]+", listed.stdout)


def pip_finds(python: Path, *arguments: str) -> bool:
    """Install, or return False where pip finds no such distribution. Else raises InstallError."""
    done = run_pip(python, arguments)
    # A build that a constraint names as well is reported as a conflict when no index has it.
    absent = any(words in done.stderr for words in ("No matching distribution found", "ResolutionImpossible"))
    if done.returncode and not absent:
        raise failed(done, arguments)
    return done.returncode == 0


def pip(python: Path, *arguments: str) -> None:
    """Install, or raise InstallError with pip's last line."""
    done = run_pip(python, arguments)
    if done.returncode:
        raise failed(done, arguments)


def run_pip(python: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """`pip install` in `python`'s environment, without a question and with nothing but its complaints."""
    quiet = ("-qq", "--no-input", "--disable-pip-version-check")
    return run([str(python), "-m", "pip", "install", *quiet, *arguments])


def failed(done: subprocess.CompletedProcess[str], arguments: Sequence[str]) -> InstallError:
    """What pip complained about, and about which command."""
    command = " ".join(("pip install", *arguments))
    return InstallError(
        f"found that pip failed ({last_line(done.stderr)}), expected `{command:.160}` to end well. Check the "
        "network and pip's configuration, then run this again; what is installed stays."
    )


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The finished process of `command`, started in the repository with no standard input."""
    return subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd=REPOSITORY
    )


def check(python: Path) -> str:
    """The builds that import together in `python`, as a phrase, or InstallError with what to do."""
    done = run([str(python), "-c", CHECK])
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1]
    raise InstallError(
        f"found that torch, torchvision and vllm do not import together ({last_line(done.stderr)}), expected "
        f"builds that fit each other. With `{python} -m pip`: uninstall torchaudio and torchcodec where they "
        f"are installed, `install --force-reinstall --no-deps --index-url {CPU_INDEX} torch torchvision` in "
        "the versions of deploy/cpu.lock, then run this again."
    )


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "no message"


def say(what: str) -> None:
    print(f"install: {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
