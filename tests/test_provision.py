"""What provisioning makes of a server: pools of either type, and deployments that are this repository's alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.flows import flow

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


@pytest.fixture(scope="module")
def provision() -> ModuleType:
    spec = importlib.util.spec_from_file_location("provision", DEPLOY / "provision.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """Of a server without a pool."""
    monkeypatch.delenv("THINKDIFF_POOL_TYPE", raising=False)
    with get_client(sync_client=True) as client:
        monkeypatch.setenv("PREFECT_API_URL", str(client.api_url))
        for pool in client.read_work_pools():
            client.delete_work_pool(pool.name)
        yield client


@flow(name="another")
def another(run: str = "x") -> None: ...


def test_pool_keeps_its_type_and_another_one_is_refused(
    provision: ModuleType, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    provision.make_pool(client)
    assert client.read_work_pool("thinkdiff").type == "process"
    monkeypatch.setenv("THINKDIFF_POOL_TYPE", "kubernetes")
    with pytest.raises(SystemExit, match="found the pool 'thinkdiff' of type process, expected kubernetes"):
        provision.make_pool(client)
    client.delete_work_pool("thinkdiff")
    provision.make_pool(client)
    client.update_work_pool(
        "thinkdiff", WorkPoolUpdate(base_job_template={"variables": {"x": 1}, "job_configuration": {"x": 1}})
    )
    monkeypatch.delenv("THINKDIFF_POOL_TYPE")
    provision.make_pool(client)
    made = client.read_work_pool("thinkdiff")
    assert made.type == "kubernetes"
    assert "namespace" in made.base_job_template["variables"]["properties"]


def test_deployments_are_changed_as_the_pool_wants_and_those_of_others_are_not(
    provision: ModuleType, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THINKDIFF_POOL_TYPE", "kubernetes")
    monkeypatch.setenv("THINKDIFF_ROOT", "s3://bucket/runs")
    provision.make_pool(client)
    flow_id = client.create_flow(another)
    theirs = client.create_deployment(
        flow_id, "paper", parameters={"run": "mine"}, work_pool_name="thinkdiff",
        parameter_openapi_schema={"type": "object", "properties": {"run": {"type": "string"}}},
    )  # fmt: skip
    provision.deploy(client)
    assert client.read_deployment(theirs).parameters == {"run": "mine"}
    made = {one.name: one for one in client.read_deployments(limit=200)}
    assert len(made) == 11
    for name, one in made.items():
        if name != "paper":
            assert one.parameters.get("run") == (None if name == "settle-crashed" else {"root": "s3://bucket/runs"})
            assert [list(step.values()) for step in one.pull_steps or ()] == [[{"directory": "/app"}]]
