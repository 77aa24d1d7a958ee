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

LAST_LINES = 30
MARK = '{"event": '


def train_together(order: str, world: int, threads: int, report: Callable[[dict[str, Any]], None], log: Any) -> None:
    """Runs `world` processes to their end. SIGTERM is handed on to them.

    Raises the error that the first rank has told, or TrainingError with their last words when they died otherwise.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}",
        "--module", "thinkdiff.tasks.training_process", order,
    ]  # fmt: skip
    threads = threads or max(len(os.sched_getaffinity(0)) // world, 1)
    said, told = deque[str](maxlen=LAST_LINES), deque[ThinkDiffError](maxlen=1)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    ) as process, stop_signal(process.terminate):  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if not line.startswith(MARK):
                    said.append(line.rstrip())
                    log.debug("%s", line.rstrip())
                elif (event := json.loads(line))["event"] == "error":
                    told.append(getattr(errors, event["kind"])(event["message"]))
                else:
                    report(event)
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        if told:
            raise told.pop()
        if code:
            last = next((line for line in reversed(said) if "Error" in line), said[-1] if said else "nothing")
            raise TrainingError(
                f"train_aligner: found its {world} processes ended with code {code} ({last.strip():.300}), expected "
                "them to train to the end. Run it again; it goes on from the last checkpoint."
            )
