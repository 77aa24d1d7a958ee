"""One of the processes that train an aligner together: `torchrun … -m thinkdiff.tasks.training_process ORDER`.

In:  an `Order` as JSON; it ends when its standard input does, which is when the process that asked for it has ended.
Out: on the first rank's standard output one line of JSON for each event of the training, or for the error that ends it.
"""

from __future__ import annotations

import json
import os
import sys
import threading

import torch

from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.artifact import Execution, Frozen
from thinkdiff.schemas.errors import ThinkDiffError
from thinkdiff.storage.feature_store import FeatureStore
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.aligner_training import Event, prepared, train
from thinkdiff.tasks.models import compute_device
from thinkdiff.tasks.ranks import Ranks, stop_signal


class Order(Frozen):
    """What to train: on the features at `features`, with checkpoints in `folder`."""

    spec: AlignerSpec
    run: Execution
    features: str
    folder: str


def end_with_parent() -> None:
    """Ends this process, even in the middle of a step, when nobody holds the other end of its input any more."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def tell(event: Event) -> None:
    """One line for the process that asked."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Trains one rank's share."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    order = Order.model_validate_json(sys.argv[-1])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with stop_signal() as stopping:
        ranks = Ranks.from_torchrun(compute_device(order.run))
        try:
            features = FeatureStore.open(order.features)
            job = prepared(order.spec, order.run, features, Folder.at(order.folder), ranks)
            train(job, ranks, tell, stopping)
        except ThinkDiffError as error:
            if ranks.first:
                tell({"event": "error", "kind": type(error).__name__, "message": str(error)})
            return 1
        ranks.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
