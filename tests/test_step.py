"""The step decorator: cached states, refresh, lost data, parents' digests, the lease."""

from __future__ import annotations

import json
import logging
import multiprocessing
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from prefect import flow

from thinkdiff.schemas.aligner import AlignerCheckpoint, AlignerSpec
from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.captions import CaptionSet, CaptionSpec, Collection
from thinkdiff.schemas.errors import TrainingError
from thinkdiff.storage.lease import Lease
from thinkdiff.storage.records import INPUTS, read_inputs
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.progress import told
from thinkdiff.tasks.step import Made, Work, rehearsal, step

SPEC = CaptionSpec(collections=(Collection(name="c", format="cc3m-tsv", url="c.tsv"),), n=1)
CHILD = AlignerSpec(t5=Model(name="t5"))
CALLS: list[str] = []


@step(CaptionSet)
def parent_stage(work: Work, spec: CaptionSpec) -> Made:
    CALLS.append("parent")
    content = Path(work.run.data_root).read_bytes() if work.run.data else b"same"
    return Made(files=(work.folder.write("data.bin", content),), counts={"captions": 1})


@step(AlignerCheckpoint)
def child_stage(work: Work, spec: AlignerSpec, parent: CaptionSet) -> Made:
    CALLS.append("child")
    assert read_inputs(work.folder) == [f"{parent.stage}/{parent.fingerprint}"]
    with work.progress(2, "steps") as progress:
        progress.advance(2)
    return Made(files=(work.folder.write("out.bin", b"child of " + parent.digest.encode()),))


@flow(name="test-step", persist_result=False)
def both(run: Execution) -> list[tuple[str, str, str]]:
    first = parent_stage(run, SPEC)
    second = child_stage(run, CHILD, first.artifact)
    return [(outcome.state, outcome.artifact.fingerprint, outcome.artifact.uri) for outcome in (first, second)]


@pytest.fixture(autouse=True)
def _no_calls():
    CALLS.clear()


def states(run: Execution) -> list[str]:
    return [state for state, _, _ in both(run)]


def test_step_second_run_is_cached_and_computes_nothing(tmp_path):
    run = Execution(root=str(tmp_path))
    assert states(run) == ["Completed", "Completed"]
    assert states(run) == ["Cached", "Cached"]
    assert CALLS == ["parent", "child"]
    assert not list(tmp_path.rglob(INPUTS))


def test_step_refresh_computes_again_and_leaves_children_cached_when_bytes_are_the_same(tmp_path):
    run = Execution(root=str(tmp_path))
    both(run)
    assert states(run.model_copy(update={"refresh": ("sample_captions",)})) == ["Completed", "Cached"]


@flow(name="test-step-twice", persist_result=False)
def twice(run: Execution) -> list[str]:
    return [parent_stage(run, SPEC).state for _ in range(2)] + [parent_stage(run, SPEC.but(n=2)).state]


def test_step_refresh_makes_each_artifact_once_in_a_flow_run(tmp_path):
    run = Execution(root=str(tmp_path), refresh=("sample_captions",))
    for _ in range(2):
        assert twice(run) == ["Completed", "Cached", "Completed"]
        with rehearsal() as jobs:
            twice.fn(run)
        assert [job.done for job in jobs] == [False, False]
    assert [parent_stage(run, SPEC).state for _ in range(2)] == ["Completed", "Completed"]  # each a run of its own


@flow(name="test-step-threads", persist_result=False)
def side_by_side(run: Execution) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(copy_context().run, parent_stage, run, SPEC) for _ in range(4)]
        return sorted(call.result().state for call in calls)


def test_step_refresh_by_calls_side_by_side_is_done_once(tmp_path):
    run = Execution(root=str(tmp_path), refresh=("sample_captions",))
    for _ in range(2):
        assert side_by_side(run) == ["Cached", "Cached", "Cached", "Completed"]


class Large:
    """Lies in a cycle, as models do."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("initialized", [True, False])
def test_step_on_a_gpu_hands_its_memory_back_at_its_end(tmp_path, monkeypatch, fails, initialized):
    left: list[int] = []
    loaded = weakref.WeakSet[Large]()

    @step(AlignerCheckpoint, gpu=True)
    def large_stage(work: Work, spec: AlignerSpec) -> Made:
        model = Large()
        loaded.add(model)
        if fails:
            raise TrainingError("large_stage: found a loss of inf, expected a number.")
        return Made(files=(work.folder.write("out.bin", b""),))

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(len(loaded)))
    with pytest.raises(TrainingError) if fails else nullcontext():
        flow(name="test-large", persist_result=False)(lambda: large_stage(Execution(root=str(tmp_path)), CHILD))()
    assert left == [int(fails)] * initialized  # an error holds the frames that it came through
    assert fails or not loaded


def test_step_parent_of_other_bytes_rebuilds_the_child(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"one")
    run = Execution(root=str(tmp_path / "root"), data=str(source))
    both(run)
    source.write_bytes(b"two")
    assert states(run.model_copy(update={"refresh": ("sample_captions",)})) == ["Completed", "Completed"]


@pytest.mark.parametrize("harm", ["delete", "truncate", "record"])
def test_step_lost_data_is_a_miss_with_a_warning(tmp_path, caplog, harm):
    run = Execution(root=str(tmp_path))
    uri = Path(both(run)[0][2])
    if harm == "delete":
        (uri / "data.bin").unlink()
    elif harm == "truncate":
        (uri / "data.bin").write_bytes(b"s")
    else:
        record = (uri / "artifact.json").read_bytes()
        (uri / "artifact.json").write_bytes(record[: len(record) // 2])
    with caplog.at_level(logging.WARNING, "thinkdiff.storage.records"):
        assert states(run) == ["Completed", "Cached"]
    assert "is run again" in caplog.text


def test_step_record_of_another_artifact_is_not_used(tmp_path):
    run = Execution(root=str(tmp_path))
    (_, _, first), (_, _, second) = both(run)
    record = json.loads((Path(first) / "artifact.json").read_text())
    record["files"][0]["path"] = "../../../outside"
    (Path(first) / "artifact.json").write_text(json.dumps(record))
    assert states(run) == ["Completed", "Cached"]
    assert Path(second).exists()


def test_step_root_that_was_moved_is_still_cached(tmp_path):
    both(Execution(root=str(tmp_path / "here")))
    (tmp_path / "here").rename(tmp_path / "there")
    assert states(Execution(root=str(tmp_path / "there"))) == ["Cached", "Cached"]


def hold(folder: str, seconds: float, ready, go) -> None:
    place = Folder.at(folder)
    record = place.read("artifact.json")
    place.delete("artifact.json")
    with Lease(place, seconds):
        ready.set()
        go.wait(60)
        place.write("artifact.json", record)


@pytest.mark.parametrize(("end", "parent"), [("killed", "Completed"), ("done", "Cached")])
def test_step_second_run_at_once_waits_for_the_first(tmp_path, end, parent):
    class Ends(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if f"waits for process {holder.pid}" in record.getMessage():
                heard.append(record)
                holder.kill() if end == "killed" else go.set()

    run = Execution(root=str(tmp_path))
    uri = both(run)[0][2]
    spawn = multiprocessing.get_context("spawn")
    ready, go = spawn.Event(), spawn.Event()
    heard: list[logging.LogRecord] = []
    ends = Ends()
    holder = spawn.Process(target=hold, args=(uri, 30.0, ready, go))
    holder.start()
    logging.getLogger("prefect.task_runs").addHandler(ends)
    try:
        assert ready.wait(60)
        CALLS.clear()
        assert states(run) == [parent, "Cached"]
    finally:
        logging.getLogger("prefect.task_runs").removeHandler(ends)
        holder.kill()
        holder.join()
    assert len(heard) == 1
    assert CALLS == ["parent"] * (end == "killed")


@step(CaptionSet)
def talking_stage(work: Work, spec: CaptionSpec) -> Made:
    told = logging.getLogger("thinkdiff.tasks.qwen_engine").warning
    talker = threading.Thread(target=told, args=("a line of a %s", "child"))
    talker.start()
    talker.join()
    assert list(work.map(said, [("one",), ("two",)], workers=2)) == [3, 3]
    return Made(files=(work.folder.write("data.bin", b""),))


def said(word: str) -> int:
    logging.getLogger("thinkdiff.storage.parts").warning("part %s", word)
    return len(word)


def test_step_tells_the_runs_log_what_the_package_says_in_any_thread_once(tmp_path, caplog):
    flow(name="test-talking", persist_result=False)(lambda: talking_stage(Execution(root=str(tmp_path)), SPEC))()
    told = [record.getMessage() for record in caplog.records if record.name == "prefect.task_runs"]
    assert sorted(line for line in told if line in ("a line of a child", "part one", "part two")) == [
        "a line of a child", "part one", "part two"
    ]  # fmt: skip


def test_told_stage_goes_on_when_the_server_does_not_answer_and_fails_for_all_else(caplog):
    log = logging.getLogger("thinkdiff.test")
    with told(log):
        httpx.get("http://127.0.0.1:9/api")
    assert "the Prefect server was not told: " in caplog.text
    with pytest.raises(ZeroDivisionError), told(log):
        _ = 1 / 0


@pytest.mark.parametrize("workers", [1, 2])
def test_map_takes_calls_as_results_are_asked_for(tmp_path, workers):
    taken: list[int] = []
    calls = ((number, 2) for number in range(1000) if not taken.append(number))
    work = Work(Folder(str(tmp_path)), Execution(), SimpleNamespace(), logging.getLogger("test"))  # pyright: ignore[reportArgumentType]
    results = work.map(pow, calls, workers=workers)
    assert [next(results) for _ in range(20)] == [number**2 for number in range(20)]
    assert len(taken) <= 20 + 4 * workers
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
