"""The environment of every test: Prefect in a folder of its own and silent, nothing fetched from a hub.

With THINKDIFF_NO_SKIPS=1 a skipped test fails the run: a missing browser or server cannot pass for a test.
"""

from __future__ import annotations

import atexit
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


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that the first run fills with the miniature's collections."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory, world: Path) -> tuple[Path, dict[str, Any]]:
    """The root of a small undisturbed run, and what it printed."""
    from small_run import small_run

    root = tmp_path_factory.mktemp("roots") / "first"
    return root, small_run(root, world)
