"""The flow behind `housekeeping/settle-crashed`: task runs of flow runs that are Crashed become Crashed, too.

A process that died says nothing of its tasks, and the server asks for them only when a run was cancelled. An automation
of deploy/provision.py starts this flow when a run crashes. It looks at all crashed runs, so that one that was missed,
as when the server itself had died, is settled with the next. Runs in any other state are left alone. No artifact is
read or made.
"""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, State, StateType, TaskRun

PAGE = 200
MESSAGE = "The process of its flow run died. What was committed is kept: start the same run again."


@flow(name="housekeeping", flow_run_name="settle crashed runs", persist_result=False)
def settle() -> int:
    """Sets the task runs of crashed flow runs that have not ended to Crashed. Returns how many there were."""
    count = 0
    with get_client(sync_client=True) as client:
        while left := unsettled(client):
            for run in left:
                client.set_task_run_state(run.id, State(type=StateType.CRASHED, message=MESSAGE), force=True)
            count += len(left)
    get_run_logger().info("%d task runs of crashed runs are set to Crashed", count)
    return count


def unsettled(client: SyncPrefectClient) -> list[TaskRun]:
    """A page of the task runs that have not ended and whose flow run is Crashed."""
    going = [kind.value for kind in StateType if kind not in TERMINAL_STATES]
    return client.read_task_runs(
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": ["CRASHED"]}, "name": None}}),
        task_run_filter=TaskRunFilter.model_validate({"state": {"type": {"any_": going}, "name": None}}),
        limit=PAGE,
    )
