"""One of the processes that train an aligner together: `torchrun … -m thinkdiff.tasks.training_process ORDER`.

In:  an `Order` as JSON; it ends when its standard input does, which is when the process that asked for it has ended.
Out: on standard output one line of JSON for each event, which the first rank tells, and for an error, which all tell.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback

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
    sys.stdout.write("\n" + json.dumps(event) + "\n")  # another's unfinished line may stand before it
    sys.stdout.flush()


def main() -> int:
    """Trains one rank's share."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    order = Order.model_validate_json(sys.argv[-1])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        ranks = Ranks.from_torchrun(compute_device(order.run))
        features = FeatureStore.open(order.features)
        job = prepared(order.spec, order.run, features, Folder.at(order.folder), ranks)
        with stop_signal() as stopping:
            train(job, ranks, tell, stopping)
            ranks.leave()
    except ThinkDiffError as error:
        tell({"event": "error", "kind": type(error).__name__, "message": str(error)})
        return 1
    except Exception as error:
        traceback.print_exc()
        # That the others are gone is a consequence of what one of them has met.
        lost = isinstance(error, torch.distributed.DistError) or "onnection" in str(error)
        message = (
            f"train_aligner: found {type(error).__name__} in process {os.environ.get('RANK', '0')} "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given':.300}), expected it to "
            "train to the end. The last checkpoint stands; run it again when that is mended."
        )
        tell({"event": "error", "kind": "TrainingError", "message": message, "consequence": lost})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
