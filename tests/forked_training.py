"""Trains in a child that is forked for it, and kills the child: `python forked_training.py RECORD FOLDER SIGNAL TIMES`.

Each child goes on where the last one was killed, at a step drawn anew and a moment in it drawn anew. At last one trains
to the end. Prints as JSON after how many steps each was killed, the newest checkpoints, and the files of the last.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from small_training import Meter, spec, work

from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage.records import read_record
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.models import loading
from thinkdiff.tasks.train_aligner import train_aligner

STEPS = 60


def child(features: FeatureSet, folder: str, out: int) -> None:
    """Trains to the end, and tells each step through `out`."""
    found = work(folder, checkpoint_every=4)

    class Telling(Meter):
        def advance(self, count: int = 1) -> None:
            os.write(out, b".")

    object.__setattr__(found, "progress", lambda total, unit: Telling(None))
    try:
        made = train_aligner.body(found, spec(steps=STEPS, schedule_steps=STEPS), features)
        os.write(out, json.dumps([[entry.path, entry.sha256] for entry in made.files]).encode())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def started(features: FeatureSet, folder: str) -> tuple[int, int]:
    """The number of a child, and the end of its pipe."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ours)
        child(features, folder, theirs)
    os.close(theirs)
    return pid, ours


def read_all(pipe: int) -> str:
    """What else a child says until it ends."""
    with os.fdopen(pipe, "rb") as file:
        return file.read().decode().lstrip(".")


def main() -> None:
    """Kills, then lets one train to the end."""
    record, folder, number, times = sys.argv[1], sys.argv[2], getattr(signal, sys.argv[3]), int(sys.argv[4])
    features = read_record(Folder.at(record), FeatureSet)
    assert features is not None
    importlib.import_module("thinkdiff.tasks.aligner_training")  # before the fork: each child would load it again
    with loading("transformers"):
        importlib.import_module("transformers.models.t5.modeling_t5")
    rng = random.Random(1)
    killed, kept, status = list[int](), list[int](), list[int]()
    for _ in range(times):
        pid, pipe = started(features, folder)
        at = rng.randint(1, 8)
        seen = 0
        while seen < at and (more := os.read(pipe, 1)):
            assert more == b".", "a child ended before it was killed"
            seen += 1
        time.sleep(rng.random() * 0.01)
        os.kill(pid, number)
        read_all(pipe)
        status.append(os.waitpid(pid, 0)[1])
        kept.append(max((int(found.stem) for found in Path(folder, "checkpoints").glob("*.json")), default=0))
        killed.append(at)
    pid, pipe = started(features, folder)
    files: Any = json.loads(read_all(pipe))
    os.waitpid(pid, 0)
    signals = [os.WTERMSIG(one) for one in status]
    print(json.dumps({"killed": killed, "signals": signals, "checkpoints": kept, "files": files}))


if __name__ == "__main__":
    main()
