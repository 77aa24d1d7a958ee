"""GPU slots: a global concurrency limit of the Prefect server that keeps two stages off one worker's GPUs.

In: a run, whose `gpu_slot` or whose worker's THINKDIFF_GPU_SLOT names the limit. Out: a context that holds one slot of
it. Leases are the server's own; it makes no limit and chooses no GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.errors import SpecError

SLOT = "THINKDIFF_GPU_SLOT"
LEASE = 60.0  # seconds, and the least that a Prefect server grants


@contextmanager
def gpu_slot(run: Execution, log: Any) -> Iterator[None]:
    """One slot of the run's limit, waited for, and renewed until the block ends; nothing where no limit is named.

    A holder that was killed frees its slot within LEASE and the interval at which the server looks at leases. While
    the server is away the block goes on; its slot then counts as free once the lease has run out. Raises SpecError
    where the server has no such limit, or there is no server.
    """
    name = run.gpu_slot or os.environ.get(SLOT)
    with ExitStack() as stack:
        if name:
            log.info("waits for a slot of %s", name)
            held = concurrency(name, lease_duration=LEASE, strict=True, raise_on_lease_renewal_failure=False)
            try:
                stack.enter_context(held)
            except ConcurrencySlotAcquisitionError as error:
                raise SpecError(
                    f"gpu_slot: found no slot of {name!r} ({error.__cause__ or error}), expected a limit of that name "
                    f"at the Prefect server. Make it with `prefect gcl create {name} --limit 1`, or name another."
                ) from error
            log.info("has a slot of %s", name)
        yield
