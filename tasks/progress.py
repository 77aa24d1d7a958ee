"""Progress of a stage: a bar in a terminal, plain lines in a log, a progress artifact in the Prefect UI."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from httpx import HTTPError
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from thinkdiff.tasks import metrics

ARTIFACT_SECONDS = 3.0
LINE_SECONDS = 15.0


def run_logger(name: str) -> Any:
    """Prefect's logger of the current run, or a plain one outside of any run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(f"thinkdiff.{name}")


@contextmanager
def told(log: Any) -> Iterator[None]:
    """A stage does not fail because the Prefect server cannot be told how far it is; the log says so."""
    try:
        yield
    except HTTPError as error:
        log.warning("the Prefect server was not told: %s", error)


class Progress:
    """Counts `done` of `total` units; use as a context manager and call `advance`."""

    def __init__(self, stage: str, total: int, unit: str, log: Any) -> None:
        self.stage, self.total, self.unit, self.log = stage, total, unit, log
        self.done, self._resumed = 0, 0
        self.note: Callable[[], str] = str  # what else there is to say, asked for when it is shown
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._began = self._last_line = self._last_artifact = time.monotonic()
        self._artifact: Any = None
        if FlowRunContext.get():
            key = f"{self.stage.replace('_', '-')}-progress"
            with told(self.log):
                self._artifact = create_progress_artifact(0.0, key=key, description=f"{self.total} {self.unit}")
        if self._terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(), transient=True,
            )  # fmt: skip
            self._bar.start()
            self._row = self._bar.add_task(self.stage, total=self.total, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if error is None:
            self._show_artifact()
            self.log.info("%s", self.line())

    def resume(self, done: int) -> None:
        """Counts units that an earlier run left; they do not enter the rate."""
        self._resumed += done
        self._count(done)

    def advance(self, count: int = 1) -> None:
        """Counts units done."""
        metrics.advanced(self.stage, self.unit, count)
        self._count(count)

    def _count(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._row, completed=self.done, rate=f"{self.rate():.1f} {self.unit}/s")
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.log.info("%s", self.line())
        if now - self._last_artifact >= ARTIFACT_SECONDS:
            self._last_artifact = now
            self._show_artifact()

    def page(self, name: str, markdown: str) -> None:
        """Shows a page beside the progress in the UI, in the place of an earlier one of that name."""
        if self._artifact is not None:
            key = f"{self.stage.replace('_', '-')}-{name}"
            with told(self.log):
                create_markdown_artifact(markdown, key=key, description=self.line())

    def rate(self) -> float:
        """Units per second of this run."""
        return (self.done - self._resumed) / max(time.monotonic() - self._began, 1e-9)

    def line(self) -> str:
        """One line: done, total, rate and time left."""
        rate = self.rate()
        left = f", {max(self.total - self.done, 0) / rate:.0f} s left" if rate > 0 and self.done < self.total else ""
        note = f"; {note}" if (note := self.note()) else ""
        return f"{self.stage}: {self.done} of {self.total} {self.unit}, {rate:.1f}/s{left}{note}"

    def _show_artifact(self) -> None:
        if self._artifact is not None:
            share = min(100.0, 100.0 * self.done / max(self.total, 1))
            with told(self.log):
                update_progress_artifact(self._artifact, progress=share, description=self.line())
