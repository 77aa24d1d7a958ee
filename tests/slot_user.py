"""A run of stages that use a GPU, one after the other, for tests of slots: `python slot_user.py ROOT SLOT NAME…`.

The stage NAME leaves `NAME.computes` below the root when its body begins, and ends once there is a `NAME.go`. Each
stage that has ended is a line, `NAME STATE`. SLOT is `run.gpu_slot`; `-` is none.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from prefect import flow

from thinkdiff.schemas.aligner import AlignerCheckpoint, AlignerSpec
from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.tasks.step import Made, Work, step


@step(AlignerCheckpoint, gpu=True)
def train_aligner(work: Work, spec: AlignerSpec) -> Made:
    root = Path(work.run.root)
    (root / f"{spec.t5.name}.computes").touch()
    while not (root / f"{spec.t5.name}.go").exists():
        time.sleep(0.1)
    return Made(files=(work.folder.write("data.bin", b""),))


@flow(name="slots", flow_run_name="{names}", persist_result=False)
def slots(root: str, slot: str | None, names: list[str]) -> None:
    for name in names:
        outcome = train_aligner(Execution(root=root, gpu_slot=slot), AlignerSpec(t5=Model(name=name)))
        print(name, outcome.state, flush=True)


if __name__ == "__main__":
    slots(sys.argv[1], None if sys.argv[2] == "-" else sys.argv[2], sys.argv[3:])
