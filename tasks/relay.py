"""What the package's loggers say while a stage works, the lines of child processes among it, in the run's own log.

In: the run's logger. Out: a context; within it every record of `thinkdiff.*` from any thread of this process is told
there. Prefect by itself knows the loggers of its runs only, and the thread that asks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PACKAGE = logging.getLogger("thinkdiff")


class Relay(logging.Handler):
    """Hands records on to another logger."""

    def __init__(self, log: Any) -> None:
        super().__init__()
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        self.log.log(record.levelno, "%s", record.getMessage())


@contextmanager
def relayed(log: Any) -> Iterator[None]:
    """Until the block ends. Nothing changes within another such block, as each record is told once, or outside of runs,
    where the log is one of the package's own.
    """
    own = isinstance(log, logging.Logger) and log.name.startswith(PACKAGE.name)
    if own or any(isinstance(handler, Relay) for handler in PACKAGE.handlers):
        yield
        return
    handler, level = Relay(log), PACKAGE.level
    PACKAGE.addHandler(handler)
    PACKAGE.setLevel(logging.INFO)
    try:
        yield
    finally:
        PACKAGE.setLevel(level)
        PACKAGE.removeHandler(handler)
