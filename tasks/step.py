"""The one decorator: a function that makes an artifact becomes a cached Prefect task.

    @step(FeatureSet)
    def extract_features(work: Work, spec: FeatureSpec, images: ImageSet | None) -> Made: ...

    outcome = extract_features(run, spec, images)     # inside a flow; outcome.state is "Cached" or "Completed"

The record is looked up first; when it is there the task ends in a state named `Cached` and the body never runs. Else
the artifact's lease is taken; a run that must wait for it, as another makes the artifact, then finds that one's. The
body streams its files into `work.folder`, and the record is written last. Prefect's own result persistence is off: its
records name their own deserialiser, and it sees neither lost data nor helpers.
"""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, SyncClientContext
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from thinkdiff.schemas.artifact import (
    Artifact,
    Execution,
    FileEntry,
    Parent,
    Spec,
    content_digest,
    fingerprint,
)  # fmt: skip
from thinkdiff.schemas.errors import SpecError, StoreError
from thinkdiff.schemas.plan import Job
from thinkdiff.storage.housekeeping import drop
from thinkdiff.storage.lease import Lease
from thinkdiff.storage.records import INPUTS, RECORD, artifact_folder, read_record, write_inputs, write_record
from thinkdiff.storage.root import Folder
from thinkdiff.tasks import metrics
from thinkdiff.tasks.progress import Progress, run_logger, told
from thinkdiff.tasks.provenance import provenance
from thinkdiff.tasks.relay import relayed
from thinkdiff.tasks.slots import gpu_slot

A = TypeVar("A", bound=Artifact)
P = ParamSpec("P")
R = TypeVar("R")
WATCH_SECONDS = 1.0
AHEAD = 4  # calls for each worker that are submitted before the first of them has ended
REHEARSED: ContextVar[list[Job] | None] = ContextVar("rehearsed", default=None)


@dataclass(frozen=True)
class Made:
    """What a body hands back: the files of the artifact and what is worth knowing about them."""

    files: tuple[FileEntry, ...]
    counts: dict[str, int] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    page: str = ""
    after: Callable[[], object] = bool  # called once the record is written: what is needed until then is removed


@dataclass(frozen=True)
class Work:
    """What a body needs beside its spec and parents."""

    folder: Folder
    run: Execution
    lease: Lease
    log: Any

    def map(
        self,
        function: Callable[..., R],
        calls: Iterable[tuple[Any, ...]],
        watch: Callable[[], object] = bool,
        workers: int = 0,
        gpus: int = 0,
    ) -> Iterator[R]:
        """`function(*call)` for each call, several side by side on the run's task runner; results in their order.

        A generator: what is not asked for does not run, and calls are taken one by one, AHEAD for each worker before
        the first result is there. `watch` is called every second meanwhile. `workers`: how many at a time; by default
        the run's, or as many as there are cores. `gpus`: those that Ray keeps free for each call. Raises what a call
        raised.
        """
        jobs = (functools.partial(function, *call) for call in calls)
        first = list(itertools.islice(jobs, workers or self.run.workers or len(os.sched_getaffinity(0))))
        jobs, workers = itertools.chain(first, jobs), len(first)
        if workers < 2:
            yield from (awaited(in_thread(job), watch) for job in jobs)
            return
        with SyncClientContext.get_or_create():
            pass  # outside of a flow: threads that start Prefect's temporary server together would race
        # a partial: Prefect and the task runners look into collections, and some take a `quote` apart
        piece: Any = task(name=function.__name__, cache_policy=NO_CACHE, persist_result=False)(called)
        with task_runner(self.run, workers) as runner, reserved(self.run, gpus):
            submitted = deque[Any]()
            for job in jobs:
                submitted.append(runner.submit(piece, {"job": job}))
                if len(submitted) == AHEAD * workers:
                    yield awaited(submitted.popleft(), watch)
            while submitted:
                yield awaited(submitted.popleft(), watch)

    def progress(self, total: int, unit: str) -> Progress:
        """A progress bar here and a progress artifact in the UI, with rate and time left."""
        return Progress(self.folder.uri.rsplit("/", 2)[1], total, unit, self.log)


def reserved(run: Execution, gpus: int) -> AbstractContextManager[None]:
    """While calls are submitted that need GPUs, which Ray hides from those that have not asked."""
    if run.runner != "ray" or not gpus:
        return nullcontext()
    return importlib.import_module("prefect_ray.context").remote_options(num_gpus=gpus)


def task_runner(run: Execution, workers: int) -> Any:
    """The run's Prefect task runner. Raises SpecError where the package that it comes from is not installed."""
    if run.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    try:
        module = importlib.import_module(f"prefect_{run.runner}")
    except ModuleNotFoundError as error:
        raise SpecError(
            f"runner: found no package {error.name}, expected it for the runner {run.runner!r}. Install thinkdiff with "
            f"the extra {run.runner}, or take the runner threads."
        ) from None
    if run.runner == "ray":
        return module.RayTaskRunner(address=run.runner_address)
    if run.runner_address is not None:
        return module.DaskTaskRunner(address=run.runner_address)
    return module.DaskTaskRunner(cluster_kwargs={"n_workers": workers, "threads_per_worker": 1})


@dataclass(frozen=True)
class Outcome(Generic[A]):
    """An artifact and how it came about."""

    artifact: A
    state: str
    seconds: float


class Step(Generic[P, A]):
    """A stage: call it inside a flow with (run, spec, parents…)."""

    def __init__(
        self, body: Callable[Concatenate[Work, P], Made], kind: type[A],
        reopen: Callable[[Execution, A], bool] | None, gpu: bool,
    ) -> None:  # fmt: skip
        self.body, self.kind, self.name, self.gpu = body, kind, body.__name__, gpu
        self.reopen = reopen or (lambda run, artifact: False)
        self.signature = inspect.signature(body)
        functools.update_wrapper(self, body)
        settings: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False, "cache_result_in_memory": True}
        self.task: Any = task(name=self.name, **settings)(self._run)

    def __call__(self, run: Execution, *args: P.args, **kwargs: P.kwargs) -> Outcome[A]:
        """Runs the task and waits. Raises what the body raised."""
        if (jobs := REHEARSED.get()) is not None:
            return self._rehearsed(jobs, run, args, kwargs)
        began = time.monotonic()
        # quoted: Prefect would otherwise walk through every file entry of the parents in search of futures
        state: State[Any] = self.task(quote((run, args, kwargs)), return_state=True)
        name, seconds = state.name or "Completed", time.monotonic() - began
        made = state.result(raise_on_failure=False)
        metrics.ended(self.name, name, seconds, made if name == "Completed" and isinstance(made, self.kind) else None)
        return Outcome(state.result(), name, seconds)

    def lookup(self, run: Execution, *args: P.args, **kwargs: P.kwargs) -> A | None:
        """The artifact if it is there already; never computes."""
        spec, parents = self._inputs(args, kwargs)
        return read_record(self._folder(run, spec, parents), self.kind)

    def _rehearsed(self, jobs: list[Job], run: Execution, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome[A]:
        """What a call would find, noted in `jobs`. A stage that is refreshed is taken to give the same bytes again."""
        spec, parents = self._inputs(args, kwargs)
        roles = {role: id(parent) for role, parent in parents.items()}
        for job in jobs:  # an earlier call's artifact is found by this one
            if job.spec == spec and {role: id(parent) for role, parent in job.parents.items()} == roles:
                return Outcome(cast("A", job.artifact), "Cached", 0.0)
        known = all(parent.digest for parent in parents.values())
        folder = self._folder(run, spec, parents) if known else None
        refresh, found = spec.stage in run.refresh, None
        with suppress(*((StoreError,) if refresh else ())):  # what it cannot read is made again
            found = read_record(folder, self.kind) if folder else None
        done = found is not None and not refresh and not self.reopen(run, found)
        artifact = found or stand_in(self.kind, spec)
        jobs.append(Job(spec, parents, artifact, folder.uri if folder else None, done))
        return Outcome(artifact, "Cached" if done else "Ahead", 0.0)

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Spec, dict[str, Artifact]]:
        bound = self.signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        values = dict(list(bound.arguments.items())[1:])
        spec = values.pop("spec")
        parents: dict[str, Artifact] = {}
        for role, value in values.items():
            if isinstance(value, Artifact):
                parents[role] = value
            elif isinstance(value, dict):
                parents |= {f"{role}/{name}": artifact for name, artifact in value.items()}
            elif value is not None:
                raise TypeError(f"{self.name}: found {role} of type {type(value).__name__}, expected an artifact.")
        return spec, parents

    def _found(self, run: Execution, spec: Spec, folder: Folder) -> A | None:
        """The artifact, unless it is to be made anew: what is refreshed is made once in a flow run."""
        if spec.stage not in run.refresh:
            return read_record(folder, self.kind)
        found, now = None, flow_run()
        with suppress(StoreError):  # what it cannot read is made again
            found = read_record(folder, self.kind) if now else None
        return found if found is not None and found.provenance.flow_run == now else None

    def _folder(self, run: Execution, spec: Spec, parents: dict[str, Artifact]) -> Folder:
        return artifact_folder(run.root, spec.stage, fingerprint(spec, parents))

    def _run(self, call: tuple[Execution, tuple[Any, ...], dict[str, Any]]) -> Any:
        run, args, kwargs = call
        log = run_logger(self.name)
        spec, parents = self._inputs(args, kwargs)
        folder = self._folder(run, spec, parents)
        artifact = self._found(run, spec, folder)
        if artifact is not None and not self.reopen(run, artifact):
            return Completed(name="Cached", data=artifact, message=folder.uri)
        with Lease(folder, run.lease, log.info) as lease:
            artifact = self._found(run, spec, folder)
            if artifact is not None:  # another run may have made it between the look-up and the lease
                if not self.reopen(run, artifact):
                    return Completed(name="Cached", data=artifact, message=folder.uri)
                folder.delete(RECORD)
            elif spec.stage in run.refresh:
                drop(folder)
            if parents:
                write_inputs(folder, parents.values())
            with on_gpu(run, log) if self.gpu else nullcontext():
                began = time.monotonic()
                with relayed(log):
                    made = self.body(Work(folder, run, lease, log), *args, **kwargs)
            artifact = self._record(folder, spec, parents, made, time.monotonic() - began)
            lease.check()
            write_record(artifact)
            if parents:
                folder.delete(INPUTS)
            made.after()
        with told(log):
            create_markdown_artifact(page(artifact, made.page), key=self.name.replace("_", "-"), description=folder.uri)
        log.info("%s: made %s (%s)", self.name, folder.uri, ", ".join(f"{k} {v}" for k, v in made.counts.items()))
        return Completed(data=artifact, message=folder.uri)

    def _record(self, folder: Folder, spec: Spec, parents: dict[str, Artifact], made: Made, seconds: float) -> A:
        files = tuple(sorted(made.files, key=lambda entry: entry.path))
        return self.kind(
            stage=spec.stage,
            fingerprint=fingerprint(spec, parents),
            digest=content_digest(files),
            uri=folder.uri,
            spec=spec.model_dump(mode="json"),
            version=spec.version,
            parents={
                role: Parent(stage=a.stage, fingerprint=a.fingerprint, digest=a.digest, uri=a.uri)
                for role, a in parents.items()
            },
            files=files,
            counts=made.counts,
            stats=made.stats,
            provenance=provenance(seconds, made.note, flow_run()),
        )


def step(
    kind: type[A], reopen: Callable[[Execution, A], bool] | None = None, gpu: bool = False
) -> Callable[[Callable[Concatenate[Work, P], Made]], Step[P, A]]:
    """Makes a body a stage whose artifact is of type `kind`.

    `reopen` says whether a whole artifact is to be worked on again with its parts kept; its record is dropped then.
    `gpu` says that the body may use one, so that it takes a slot.
    """
    return lambda body: Step(body, kind, reopen, gpu)


@contextmanager
def rehearsal() -> Iterator[list[Job]]:
    """Inside, stages look for their artifacts and make none; the list says what each was asked for.

    What is not there is stood in for by an artifact without a digest, whose children are not looked for.
    """
    jobs: list[Job] = []
    token = REHEARSED.set(jobs)
    try:
        yield jobs
    finally:
        REHEARSED.reset(token)


@contextmanager
def on_gpu(run: Execution, log: Any) -> Iterator[None]:
    """A slot of the GPU, whose memory is handed back at the end: the next stage's vLLM is a process of its own."""
    with gpu_slot(run, log):
        try:
            yield
        finally:
            gc.collect()  # models lie in cycles
            torch = sys.modules.get("torch")
            if torch is not None and torch.cuda.is_initialized():
                torch.cuda.empty_cache()


def flow_run() -> str | None:
    """The id of the flow run that this is part of; None outside of one."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else None


def stand_in(kind: type[A], spec: Spec) -> A:
    """An artifact that is not there yet: it knows what it is asked for, and has no digest and no file."""
    return kind.model_construct(
        stage=spec.stage, fingerprint="", digest="", uri="", spec=spec.model_dump(mode="json"), version=spec.version,
        parents={}, files=(), counts={}, stats={},
    )  # fmt: skip


def awaited(future: Any, watch: Callable[[], object]) -> Any:
    """The result of a `called` future, `watch` being called every second until then and once more at the end."""
    while True:
        try:
            result = future.result(timeout=WATCH_SECONDS)
            break
        except TimeoutError:
            watch()
    watch()
    return result.pop()


def called(job: functools.partial[R]) -> list[R]:
    """Does a job. A TimeoutError of its own is named, as `Work.map` waits with one.

    The result comes in a list, to be taken out of it: Prefect keeps what its tasks return until the flow ends.
    """
    try:
        with relayed(run_logger(job.func.__name__)):
            return [job()]
    except TimeoutError as error:
        raise StoreError(
            f"{job.func.__name__}: found a store that does not answer ({error}), expected it to. Nothing committed is "
            "lost; run the stage again."
        ) from error


def in_thread(job: functools.partial[R]) -> Future[list[R]]:
    """The future of a job (`called`) in a thread of its own, which does not keep an interrupted program alive."""
    future: Future[list[R]] = Future()

    def work() -> None:
        try:
            future.set_result(called(job))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name=f"thinkdiff-{job.func.__name__}", daemon=True).start()
    return future


def page(artifact: Artifact, text: str) -> str:
    """The markdown that the Prefect UI shows for an artifact."""
    rows = [f"| {name} | {value} |" for name, value in artifact.counts.items()]
    table = "\n".join(["| count | value |", "|---|---|", *rows]) if rows else ""
    identity = f"fingerprint `{artifact.fingerprint}`, digest `{artifact.digest[:16]}…`"
    return "\n\n".join(p for p in (f"# {artifact.stage}", f"`{artifact.uri}`", identity, table, text) if p)
