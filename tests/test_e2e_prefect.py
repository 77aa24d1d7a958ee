"""A real Prefect server, a process worker, `prefect deploy --all`, `prefect deployment run`: all on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from small_run import SETTINGS

from thinkdiff.flows.cli import assign
from thinkdiff.flows.recipes import mini
from thinkdiff.schemas.artifact import Execution

REPOSITORY = Path(__file__).resolve().parents[1]
DEPLOYMENTS = {
    "sample-captions", "fetch-images", "extract-features", "train-aligner", "generate-media", "evaluate-cobsat",
    "pipeline", "ablations",
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def prefect(*arguments: str, env: dict[str, str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def api(env: dict[str, str], path: str, body: dict | None = None) -> list[dict]:
    request = urllib.request.Request(
        f"{env['PREFECT_API_URL']}{path}",
        json.dumps(body or {}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A server and a worker; yields the environment of their clients."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    env = os.environ | {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    log = (home / "server.log").open("w")
    start = [sys.executable, "-m", "prefect"]
    server = subprocess.Popen(
        [*start, "server", "start", "--host", "127.0.0.1", "--port", str(port)], env=env, stdout=log, stderr=log
    )
    worker = None
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{env['PREFECT_API_URL']}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        assert prefect("work-pool", "create", "thinkdiff", "--type", "process", env=env).returncode == 0
        deployed = prefect("deploy", "--prefect-file", "deploy/prefect.yaml", "--all", env=env)
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        worker = subprocess.Popen(
            [*start, "worker", "start", "--pool", "thinkdiff", "--type", "process"], env=env, stdout=log, stderr=log
        )
        yield env
    finally:
        for process in (worker, server):
            if process is not None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def test_e2e_prefect_deployments_differ_only_in_parameters(service):
    found = {d["name"]: d for d in api(service, "/deployments/filter")}
    assert set(found) == DEPLOYMENTS
    assert len({d["entrypoint"] for d in found.values()}) == 1
    form = found["pipeline"]["parameter_openapi_schema"]
    assert {"recipe", "target", "spec", "run", "refresh"} <= set(form["properties"])
    assert "AlignerSpec" in form["definitions"]


def test_e2e_prefect_deployment_runs_and_the_next_stage_finds_it_cached_and_trains_in_two_processes(service, tmp_path):
    run = Execution(root=str(tmp_path / "root"), ranks=2, device="cpu")
    values = mini().model_dump(mode="json") | {"run": run.model_dump(mode="json")}
    for name, value in SETTINGS.items():
        assign(values, f"{name}={value}")
    parameters = json.dumps({"run": values.pop("run"), "spec": values})
    for name in ("extract-features", "train-aligner"):
        done = prefect(
            "deployment", "run", f"thinkdiff/{name}", "--params", parameters, "--watch", env=service, timeout=500
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    tasks = api(service, "/task_runs/filter", {"sort": "EXPECTED_START_TIME_ASC"})
    seen = [(task["name"].rsplit("-", 1)[0], task["state"]["name"]) for task in tasks]
    assert seen == [
        ("sample_captions", "Completed"), ("fetch_images", "Completed"), ("extract_features", "Completed"),
        ("sample_captions", "Cached"), ("fetch_images", "Cached"), ("extract_features", "Cached"),
        ("train_aligner", "Completed"),
    ]  # fmt: skip
    kinds = {artifact["key"] for artifact in api(service, "/artifacts/filter") if artifact["key"]}
    assert {"extract-features", "extract-features-progress", "train-aligner", "train-aligner-readings"} <= kinds
    told = [line["message"] for line in api(service, "/logs/filter", {"limit": 200, "sort": "TIMESTAMP_DESC"})]
    assert "train_aligner: from step 0 in 2 processes" in told
    assert any("24 of 24 steps" in line and "tokens/s" in line and "validation" in line for line in told)
    (progress,) = [one for one in api(service, "/artifacts/filter") if one["key"] == "train-aligner-progress"]
    assert "of the matrix rate" in progress["description"]


def test_e2e_prefect_refuses_a_bad_value_before_a_run_exists(service):
    bad = json.dumps({"run": {"root": "x", "nonsense": 1}})
    done = prefect("deployment", "run", "thinkdiff/pipeline", "--params", bad, env=service)
    assert done.returncode != 0
