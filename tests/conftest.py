"""The environment of every test: Prefect in a folder of its own and silent, nothing fetched from a hub.

Files that take minutes are run first.

With THINKDIFF_NO_SKIPS=1 a skipped test fails the run: a missing browser or server cannot pass for a test.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("thinkdiff", deadline=None, database=None)  # no test depends on the clock
hypothesis.settings.load_profile("thinkdiff")

_HOME = tempfile.mkdtemp(prefix="thinkdiff-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(
    PREFECT_HOME=f"{_HOME}/prefect",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
    DO_NOT_TRACK="1",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    VLLM_NO_USAGE_STATS="1",
)
os.environ.pop("PREFECT_API_URL", None)  # a test never writes to the user's own server


# Minutes each: begun first, so that no process of a test run is left with one of them while the others have ended.
LONG = (
    "test_e2e_pipeline", "test_feature_parity", "test_e2e_deploy", "test_train_aligner", "test_e2e_prefect",
    "test_training_ranks", "test_e2e_rehearsal", "test_qwen_engine", "test_house_rules", "test_fault_kill",
    "test_sample_captions", "test_judge", "test_e2e_urls",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def _skipped(config: pytest.Config) -> list[pytest.TestReport]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.stats.get("skipped", []) if reporter else []


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("THINKDIFF_NO_SKIPS") and _skipped(session.config) and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not os.environ.get("THINKDIFF_NO_SKIPS"):
        return
    for report in _skipped(terminalreporter.config):
        terminalreporter.write_line(f"THINKDIFF_NO_SKIPS forbids: {report.nodeid}: {report.longrepr}")


def shared(factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of a test run have in common."""
    base = factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The root of a small undisturbed run, and what it printed; made once for all processes of a test run."""
    from small_run import small_run, started

    folder = shared(tmp_path_factory)
    root, printed = folder / "first", folder / "first.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            printed.write_text(json.dumps(small_run(root, folder / "data", command=started)))
    return root, json.loads(printed.read_text())


@pytest.fixture(scope="session")
def world(first: tuple[Path, dict[str, Any]]) -> Path:
    """The data root that the first run has filled with the miniature's collections."""
    return first[0].with_name("data")
