"""What a fresh service lacks: a bucket; a work pool, deployments, GPU slots and automations at the Prefect server.

    python deploy/provision.py bucket NAME     with the AWS variables of an identity that may make buckets
    python deploy/provision.py prefect         with the variables of client.env, in the repository
    python deploy/provision.py answers         exit code 0 when the server answers
    python deploy/provision.py worker NAME     exit code 0 when that worker of the pool is online

deploy/up.sh and deploy/compose.yaml call it; each command may be repeated and then changes only what differs. The bare
checks use the standard library alone, so that they can be polled. Settings are those of deploy/README.md. It starts
nothing and deletes nothing.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.automations import AutomationCore
    from prefect.client.orchestration import SyncPrefectClient

REPOSITORY = Path(__file__).resolve().parent.parent
POOL = "thinkdiff"
IMAGE = "/app"  # where the images have the package
FOLDERS = 64
SLOT = "gpu"
SILENCE = timedelta(seconds=120)  # four heartbeats of PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30 and none came
START = timedelta(minutes=15)  # from a worker's taking a run to its process; images may have to be pulled
SETTLE = "housekeeping/settle-crashed"
ENDS = ("Completed", "Failed", "Cancelled", "Crashed")


def main(arguments: list[str]) -> int:
    """Runs one command of the list above. Returns the exit code."""
    match arguments:
        case ["bucket", name]:
            make_bucket(name)
        case ["prefect"]:
            provision()
        case ["answers"]:
            ask("/health")
        case ["worker", name]:
            workers = ask(f"/work_pools/{POOL}/workers/filter", {})
            return 0 if any(one["name"] == name and one["status"] == "ONLINE" for one in workers) else 1
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """The server's answer, as JSON, to a GET, or to a POST of `body`. Raises OSError when there is none."""
    request = urllib.request.Request(  # noqa: S310 (the server of the settings)
        os.environ["PREFECT_API_URL"] + path,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", "Basic " + base64.b64encode(secret.encode()).decode())
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def make_bucket(name: str) -> None:
    """Makes the bucket unless it is there and puts bytes into it; a server answers long before it can.

    Into many folders: SeaweedFS keeps their lists in eight databases, of which a full disk can leave one shut.
    """
    from botocore.session import get_session

    client = get_session().create_client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))
    if name not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=name)
    for number in range(FOLDERS):
        client.put_object(Bucket=name, Key=f".ready/{number}/byte", Body=b"")


def provision() -> None:
    """Brings the server's pool, deployments, slots and automations to what this folder says."""
    from prefect.client.orchestration import get_client

    wait_for_server()
    with get_client(sync_client=True) as client:
        make_pool(client)
        deploy(client)
        slots = int(os.environ.get("THINKDIFF_GPU_SLOTS", "1"))
        client.upsert_global_concurrency_limit_by_name(SLOT, slots)
        automate(client)


def automate(client: SyncPrefectClient) -> None:
    """Makes the automations, and changes those that are not as they should be."""
    automations = [crash_automation(), start_automation(), settle_automation(client)]
    if url := os.environ.get("THINKDIFF_ALERT_URL"):
        automations.append(alert_automation(url))
    for automation in automations:
        put_automation(client, automation)


def wait_for_server(seconds: float = 180) -> None:
    """Returns once the server answers. Raises OSError when it has not for so long."""
    end = time.monotonic() + seconds
    while True:
        try:
            ask("/health")
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def make_pool(client: SyncPrefectClient) -> None:
    """A pool of the type THINKDIFF_POOL_TYPE; for Kubernetes its jobs look as deploy/kubernetes.json says.

    One that is there is let be where no type is asked for. Ends in a sentence where it is of another type.
    """
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    asked = os.environ.get("THINKDIFF_POOL_TYPE")
    try:
        kind = client.read_work_pool(POOL).type
    except ObjectNotFound:
        kind = None
    if kind and asked and kind != asked:
        sys.exit(
            f"provision: found the pool {POOL!r} of type {kind}, expected {asked}: a pool keeps its type. Stop its "
            f"workers, run `prefect work-pool delete {POOL}`, and then this again."
        )
    made = kind or asked or "process"
    jobs = json.loads((REPOSITORY / "deploy" / "kubernetes.json").read_text()) if made == "kubernetes" else {}
    if kind is None:
        client.create_work_pool(WorkPoolCreate(name=POOL, type=made, base_job_template=jobs))
    elif jobs:
        client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=jobs))


def deploy(client: SyncPrefectClient) -> None:
    """`prefect deploy --all`; then these deployments' artifacts go to THINKDIFF_ROOT unless a run says otherwise.

    In a pool of Kubernetes they run where the image has the package, not in this folder.
    """
    from prefect.client.schemas.actions import DeploymentUpdate

    file = "deploy/prefect.yaml"
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", file, "--all"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"provision: found that `prefect deploy` failed, expected it to end well.\n{done.stdout}{done.stderr}")
    ours = set(re.findall(r"^    name: (\S+)$", (REPOSITORY / file).read_text(), re.MULTILINE))
    root, kubernetes = os.environ.get("THINKDIFF_ROOT"), client.read_work_pool(POOL).type == "kubernetes"
    for made in client.read_deployments(limit=200):
        if made.name not in ours or made.work_pool_name != POOL:
            continue
        change = DeploymentUpdate()
        if root and "run" in (made.parameter_openapi_schema or {}).get("properties", {}):
            change.parameters = made.parameters | {"run": {"root": root}}
        if kubernetes:
            change.pull_steps = [{"prefect.deployments.steps.set_working_directory": {"directory": IMAGE}}]
        if change.model_fields_set:
            client.update_deployment(made.id, change)


def crash_automation() -> AutomationCore:
    """A flow run whose process has died, and whose worker has not said so, becomes Crashed."""
    from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, ResourceSpecification
    from prefect.client.schemas.objects import StateType

    beat = "prefect.flow-run.heartbeat"
    message = f"No heartbeat for {SILENCE.seconds} s. What was committed is kept: start the same run again."
    actions: list[Any] = [ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=message, force=False)]
    return AutomationCore(
        name="thinkdiff: silent runs crash",
        description=f"No heartbeat for {SILENCE.seconds} s: the process or its machine is gone.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            after={beat},
            expect={beat, *(f"prefect.flow-run.{end}" for end in ENDS)},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=actions,
    )


def start_automation() -> AutomationCore:
    """A flow run whose worker died before it had a process, and so a heartbeat, becomes Crashed."""
    from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, ResourceSpecification
    from prefect.client.schemas.objects import StateType

    message = f"Taken by a worker and not begun within {START.seconds} s. Start the same run again."
    actions: list[Any] = [ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=message, force=False)]
    return AutomationCore(
        name="thinkdiff: runs that do not begin crash",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.Pending", "prefect.flow-run.Submitting"},
            expect={f"prefect.flow-run.{name}" for name in ("Running", "Scheduled", "Cancelling", *ENDS)},
            posture=Posture.Proactive,
            threshold=1,
            within=START,
        ),
        actions=actions,
    )


def settle_automation(client: SyncPrefectClient) -> AutomationCore:
    """A run that crashes has its task runs set to Crashed, by a deployment; not a run of that deployment itself."""
    from prefect.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification, RunDeployment

    made = client.read_deployment_by_name(SETTLE)
    actions: list[Any] = [RunDeployment(source="selected", deployment_id=made.id, parameters=None, job_variables=None)]
    return AutomationCore(
        name="thinkdiff: tasks of crashed runs crash",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "flow", "prefect.resource.name": f"!{SETTLE.split('/')[0]}"}
            ),
            for_each={"prefect.resource.id"},
            expect={"prefect.flow-run.Crashed"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=actions,
    )


def alert_automation(url: str) -> AutomationCore:
    """A run that fails or crashes is told to THINKDIFF_ALERT_URL, as JSON with the key `text`."""
    from prefect.automations import AutomationCore, CallWebhook, EventTrigger, Posture, ResourceSpecification
    from prefect.blocks.webhook import Webhook

    block: Any = {"url": url, "headers": {"Content-Type": "application/json"}}
    hook: Any = Webhook(**block).save("thinkdiff-alert", overwrite=True)
    told = '{"text": "thinkdiff: {{ flow_run.name }} is {{ flow_run.state.name }}: {{ flow_run | ui_url }}"}'
    actions: list[Any] = [CallWebhook(block_document_id=hook, payload=told)]
    return AutomationCore(
        name="thinkdiff: tell of failures",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=actions,
    )


def put_automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Makes it, or brings the one of that name to it, whether it is paused or not.

    One that is so already is let be: with an update, a server forgets of which runs it has heard.
    """
    found, aside = client.find_automation(automation.name), {"id", "enabled"}
    if found is None:
        client.create_automation(automation)
    elif found.model_dump(exclude=aside) != automation.model_dump(exclude=aside):
        client.update_automation(found.id, automation.model_copy(update={"enabled": found.enabled}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
