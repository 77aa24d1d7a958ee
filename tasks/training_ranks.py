"""Starting the processes that train together, with torchrun, and hearing what the first of them reports.

In: an order for `training_process`. Out: its events. The processes end with this one, however it ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from thinkdiff.schemas import errors
from thinkdiff.schemas.errors import ThinkDiffError, TrainingError
from thinkdiff.tasks.ranks import stop_signal

LAST_LINES = 200
MARK = '{"event": '


def train_together(order: str, world: int, threads: int, report: Callable[[dict[str, Any]], None], log: Any) -> None:
    """Runs `world` processes to their end. SIGTERM is handed on to them.

    Raises the error that was told first, or TrainingError with their last words when they died otherwise.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}",
        "--module", "thinkdiff.tasks.training_process", order,
    ]  # fmt: skip
    threads = threads or max(len(os.sched_getaffinity(0)) // world, 1)
    said, told = deque[str](maxlen=LAST_LINES), list[ThinkDiffError]()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    ) as process, stop_signal(process.terminate):  # fmt: skip
        assert process.stdout is not None
        try:
            for line in filter(str.strip, process.stdout):
                event = event_of(line)
                if event is None:
                    said.append(line.rstrip())
                    log.info("%s", line.rstrip())
                elif event["event"] == "error":
                    told.insert(len(told) if event.get("consequence") else 0, the_error(event))
                else:
                    report(event)
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        if told:
            raise told[0]
        if code:
            last = next((line for line in reversed(said) if "exitcode" in line or "Signal" in line), "no last words")
            raise TrainingError(
                f"train_aligner: found its {world} processes ended with code {code} ({last.strip():.300}), expected "
                "them to train to the end. Run it again; it goes on from the last checkpoint."
            )


def event_of(line: str) -> dict[str, Any] | None:
    """What a line tells, None when it is no event, or half of one."""
    if not line.startswith(MARK):
        return None
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def the_error(event: dict[str, Any]) -> ThinkDiffError:
    """An error of the tree that was told as an event."""
    return getattr(errors, event["kind"])(event["message"])
