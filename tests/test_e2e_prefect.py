"""A real Prefect server, a process worker, `prefect deploy --all`, `prefect deployment run`: all on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, TypeVar

import pytest
from small_benchmark import REAL, data_set, tile, write_files
from small_run import SETTINGS

from thinkdiff.flows.cli import assign
from thinkdiff.flows.recipes import MINI_INSTRUCTION, mini
from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.scores import Scorecard, ScoreSpec, VlmJudge
from thinkdiff.storage.judge_answers import answer_key
from thinkdiff.storage.media_files import iterate
from thinkdiff.storage.records import find_artifacts
from thinkdiff.storage.root import Folder
from thinkdiff.storage.score_tables import read_prompts, read_verdicts
from thinkdiff.tasks.cobsat import COBSAT_FAMILIES
from thinkdiff.tasks.judge_questions import questions

REPOSITORY = Path(__file__).resolve().parents[1]
DEPLOYMENTS = {
    "sample-captions", "fetch-images", "extract-features", "train-aligner", "generate-media", "evaluate-cobsat",
    "pipeline", "ablations", "gallery", "settle-crashed",
}  # fmt: skip
Made = TypeVar("Made", MediaSet, Scorecard)


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


def small_values(run: Execution) -> dict[str, Any]:
    """The small run of the miniature as values of a spec, and `run` among them."""
    values = mini().model_dump(mode="json") | {"run": run.model_dump(mode="json")}
    for name, value in SETTINGS.items():
        assign(values, f"{name}={value}")
    return values


def order(name: str, values: dict[str, Any], **more: Any) -> list[str]:
    """The arguments of `prefect` that run a deployment and watch it."""
    spec = {key: value for key, value in values.items() if key != "run"}
    parameters = json.dumps({"run": values["run"], "spec": spec, **more})
    return ["deployment", "run", f"thinkdiff/{name}", "--params", parameters, "--watch"]


def task_states(env: dict[str, str], *deployments: str) -> list[list[tuple[str, str]]]:
    """The stages of every run of some deployments with the names of their states, all in the order of their start.

    The plan comes before each.
    """
    chosen = {"deployments": {"name": {"any_": list(deployments)}}}
    runs = api(env, "/flow_runs/filter", {**chosen, "sort": "START_TIME_ASC"})
    found = []
    for run in runs:
        tasks = {"flow_runs": {"id": {"any_": [run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        states = api(env, "/task_runs/filter", tasks)
        plan, *stages = [(task["name"].rsplit("-", 1)[0], task["state"]["name"]) for task in states]
        assert plan == ("plan", "Completed")
        found.append(stages)
    return found


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
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def test_e2e_prefect_deployments_differ_only_in_parameters(service):
    found = {d["name"]: d for d in api(service, "/deployments/filter")}
    assert set(found) == DEPLOYMENTS
    assert len({d["entrypoint"] for d in found.values()}) == 3
    form = found["gallery"]["parameter_openapi_schema"]
    assert {"recipe", "folder", "beside", "spec", "run", "refresh"} <= set(form["properties"])
    form = found["pipeline"]["parameter_openapi_schema"]
    assert {"recipe", "target", "spec", "run", "refresh"} <= set(form["properties"])
    assert "AlignerSpec" in form["definitions"]


def test_e2e_prefect_stages_are_found_cached_and_the_next_one_trains_in_two_processes(service, first, world, tmp_path):
    for stage in ("sample_captions", "fetch_images", "extract_features"):
        shutil.copytree(first[0] / stage, tmp_path / "root" / stage)
    values = small_values(Execution(root=str(tmp_path / "root"), data=str(world), ranks=2, device="cpu"))
    done = prefect(*order("train-aligner", values), env=service, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    cached = [(stage, "Cached") for stage in ("sample_captions", "fetch_images", "extract_features")]
    assert task_states(service, "train-aligner") == [[*cached, ("train_aligner", "Completed")]]
    kinds = {artifact["key"] for artifact in api(service, "/artifacts/filter") if artifact["key"]}
    assert {"train-aligner", "train-aligner-readings"} <= kinds
    told = [line["message"] for line in api(service, "/logs/filter", {"limit": 200, "sort": "TIMESTAMP_DESC"})]
    assert "train_aligner: from step 0 in 2 processes" in told
    assert any("24 of 24 steps" in line and "tokens/s" in line and "validation" in line for line in told)
    (progress,) = [one for one in api(service, "/artifacts/filter") if one["key"] == "train-aligner-progress"]
    assert "of the matrix rate" in progress["description"]


def test_e2e_prefect_refuses_a_bad_value_before_a_run_exists(service):
    bad = json.dumps({"run": {"root": "x", "nonsense": 1}})
    done = prefect("deployment", "run", "thinkdiff/pipeline", "--params", bad, env=service)
    assert done.returncode != 0


def flow_process(env: dict[str, str]) -> int:
    """The process of the one flow run that this service's worker has started."""
    ours = f"PREFECT_API_URL={env['PREFECT_API_URL']}".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command, names = (Path(place, file).read_bytes().split(b"\0") for file in ("cmdline", "environ"))
        except OSError:
            continue
        if b"prefect.engine" in command and ours in names:
            found.append(int(place.name))
    (pid,) = found
    return pid


def killed_when(arguments: list[str], env: dict[str, str], ready: Any) -> None:
    """Runs a deployment and sends SIGKILL to its flow run as soon as something is there."""
    watching = subprocess.Popen(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    end = time.monotonic() + 500
    while not ready():
        assert watching.poll() is None, watching.communicate()[0][-4000:]
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(flow_process(env), signal.SIGKILL)
    watching.communicate(timeout=300)
    assert watching.returncode != 0


@pytest.fixture
def benchmark(first, world, tmp_path) -> dict[str, Any]:
    """The small run, trained, with CoBSAT's own words, 500 tiles as its pictures and a random LLaVA as its judge."""
    from tiny_judges import make_tiny_llava

    later = shutil.ignore_patterns("generate_media", "score_cobsat", "render_report")
    shutil.copytree(first[0], tmp_path / "root", ignore=later)
    write_files(Folder.at(str(tmp_path / "datasets")), tiles := data_set(REAL, tile))
    assert len(set(tiles.values())) == 500 + len(COBSAT_FAMILIES)
    asked = {"images": str(tmp_path / "datasets"), "instruction": MINI_INSTRUCTION, "per_task": 1, "shots": (2, 4)}
    judge = VlmJudge(model=Model(name=str(make_tiny_llava(tmp_path / "llava"))), max_tokens=12, compute_dtype="float32")
    run = Execution(
        root=str(tmp_path / "root"), data=str(world), device="cpu", engine="transformers", batch=8, max_num_seqs=16
    )
    values = small_values(run)
    values["queries"]["prompts"] = REAL.model_copy(update=asked).model_dump(mode="json")
    values["scores"] = ScoreSpec(judge=judge, families=COBSAT_FAMILIES).model_dump(mode="json")
    return values


def test_e2e_prefect_evaluation_killed_while_judging_goes_on_and_asks_nothing_twice(service, benchmark, tmp_path):
    """All ten tasks with two and four shots. The judge is random: its verdicts say nothing of pictures or judges."""
    root = tmp_path / "root"

    def answers() -> dict[str, bytes]:
        files = root.glob("judge_answers/*/*.json")
        return {file.name: file.read_bytes() for file in files if file.name != "judge.json"}

    killed_when(order("evaluate-cobsat", benchmark), service, answers)
    early = answers()
    assert made(root, MediaSet)
    assert not made(root, Scorecard)
    done = prefect(*order("evaluate-cobsat", benchmark), env=service, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (media,), (card,), late = made(root, MediaSet), made(root, Scorecard), answers()
    assert late.items() > early.items()
    keys = [key for file in late.values() for key in json.loads(file)]
    assert sorted(keys) == sorted(asked_of(media))
    hasty = benchmark | {"run": benchmark["run"] | {"judge_seconds": 1e-3}}  # a judge that is asked now fails
    done = prefect(*order("evaluate-cobsat", hasty, refresh=["score_cobsat"]), env=service, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert answers() == late
    (again,) = made(root, Scorecard)
    assert (again.digest, again.stats) == (card.digest, card.stats)
    assert again.provenance.created > card.provenance.created
    assert {(v.task, v.shots) for v in read_verdicts(again)} == {(row.task, row.shots) for row in read_prompts(media)}
    assert len({row.task for row in read_prompts(media)}) == 10
    cached = [(name, "Cached") for name in ("sample_captions", "fetch_images", "extract_features", "train_aligner")]
    first, *others = task_states(service, "evaluate-cobsat")
    assert first[:6] == [*cached, ("extract_features", "Completed"), ("generate_media", "Completed")]
    assert ("score_cobsat", "Completed") not in first
    whole = [*cached, ("extract_features", "Cached"), ("generate_media", "Cached"), ("score_cobsat", "Completed")]
    assert others == [whole, whole]


def made(root: Path, kind: type[Made]) -> list[Made]:
    """The artifacts of a kind under a root."""
    stage = "score_cobsat" if kind is Scorecard else "generate_media"
    return [kind.model_validate(one.model_dump()) for one in find_artifacts(str(root), (stage,))]


def asked_of(media: MediaSet) -> set[str]:
    """The keys of all questions about a set's pictures."""
    family = {one.name: one for one in COBSAT_FAMILIES}
    asked = {row.name: family[row.family] for row in read_prompts(media)}
    return {
        answer_key(data, question)
        for method in media.stats["methods"]
        for name, data in iterate(media, method)
        for question in questions(asked[name], None)
    }
