"""The feature tap: a vLLM worker that keeps the final-norm hidden states of generated (and prompt) tokens.

`vllm.LLM(worker_cls="thinkdiff.tasks.feature_tap.FeatureCPUWorker" | "...FeatureGPUWorker",
          additional_config={"features": {"max_tokens": 64}})`, then per request
`SamplingParams(n=1, extra_args={"feature_key": <unique>, "feature_kinds": ["generated", "input"]})`, and
after the requests have ended `llm.collective_rpc("take_features", args=(keys,))`.

Between `execute_model` and `sample_tokens` the model runner holds the states of all tokens of the step, after
the final norm. The state at position p predicts token p + 1, so generated token i owns position
prompt_length - 1 + i. Rows are written by absolute position and never appended: positions that come round again
(after a preemption, say) overwrite themselves, and chunked prompts need no care. Works with vLLM's model runners
V1 (CPU) and V2 (GPU) on one device. Names that vLLM does not promise are used; `check_internals` looks for them
when the model is loaded.

Shapes: S slots, T generated tokens at most, D hidden size, N tokens of a step, F = S T rows of the buffer, B requests.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from thinkdiff.schemas.errors import EngineError
from thinkdiff.tasks.vision_clock import VisionClock

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_worker import Worker
else:
    Worker = object

TESTED = "0.32 on CPU; 0.33 was read but not run"
EXPECTED = {
    "SchedulerOutput": {
        "scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens", "finished_req_ids",
        "preempted_req_ids",
    },
    "NewRequestData": {"req_id", "prompt_token_ids", "num_computed_tokens", "sampling_params"},
    "CachedRequestData": {"req_ids", "num_computed_tokens"},
    "ExecuteModelState (V1)": {"hidden_states"},
    "ExecuteModelState (V2)": {"hidden_states", "input_batch"},
}  # fmt: skip


@dataclasses.dataclass(slots=True)
class LiveRequest:
    """Rows of a request that is still being decoded."""

    key: str
    prompt_length: int
    limit: int  # generated rows wanted
    slot: int  # its row of the buffer
    rows: int = 0  # generated rows written
    step: int = 0  # the last step that computes some of its positions, and which
    begin: int = 0
    end: int = 0
    inputs_ND: torch.Tensor | None = None
    input_rows: int = 0


@dataclasses.dataclass(slots=True)
class SteadySteps:
    """Steps in which the same requests decode one token each: all that changes is one number.

    `done` of them are not yet counted in the requests, `left` may follow before one of these has all its rows.
    """

    ids: list[str]  # in the order of the batch
    requests: list[LiveRequest]
    target_B: torch.Tensor  # where the last step's rows went in the buffer
    left: int
    cached_ids: list[str]  # in the scheduler's order, and the position that it is to announce next for each
    positions: list[int]
    done: int = 0
    announced: bool = False  # the schedule of a step was read, its rows are not copied yet


@dataclasses.dataclass(slots=True)
class TakenRows:
    """Rows of a request that has ended, on the host once `ready` has passed."""

    features_TD: torch.Tensor
    inputs_ND: torch.Tensor | None
    input_rows: int
    ready: torch.cuda.Event | None = None


class FeatureTap(Worker):
    """Mixed into vLLM's worker classes by `__getattr__` below."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, check vLLM's internals and allocate the row buffer (before memory is profiled)."""
        super().load_model(*args, **kwargs)
        self._v2: bool = self.vllm_config.use_v2_model_runner
        check_internals(self)
        additional: Any = self.vllm_config.additional_config
        self._limit: int = additional["features"]["max_tokens"]
        slots = self.scheduler_config.max_num_seqs + 8
        shape = (slots, self._limit, self.model_config.get_hidden_size())
        self._buffer_STD = torch.empty(shape, dtype=self.model_config.dtype, device=self.device)
        self._free = list(range(slots))
        self._live: dict[str, LiveRequest] = {}
        self._ended: dict[str, TakenRows] = {}
        self._number = 0  # of the step, from 1
        self._count = {"steps": 0, "steady": 0, "rows": 0, "recomputed": 0, "preempted": 0}
        self._seconds = 0.0
        self._step = {"prefill_seconds": 0.0, "decode_seconds": 0.0}
        self._vision = VisionClock(self.model_runner.get_model())
        self._reads_prompts = False
        self._steady: SteadySteps | None = None
        self._cached: tuple[list[str], list[int]] = [], []
        self._step_began = 0.0

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._step_began, began = time.perf_counter(), time.thread_time()
        self._read_schedule(scheduler_output)
        self._seconds += time.thread_time() - began
        return super().execute_model(scheduler_output, *args, **kwargs)

    def sample_tokens(self, grammar_output: Any) -> Any:
        state: Any = self.model_runner.execute_model_state
        began = time.thread_time()
        if state is not None and self._live:
            self._copy_rows(state)
        aside = {} if self._v2 or state is None else self._set_generators_aside()
        self._seconds += time.thread_time() - began
        try:
            return super().sample_tokens(grammar_output)
        finally:
            if aside:
                self.model_runner.input_batch.generators.update(aside)
            kind = "prefill_seconds" if self._reads_prompts else "decode_seconds"
            self._step[kind] += time.perf_counter() - self._step_began

    def _read_schedule(self, scheduled: Any) -> None:
        """Note which positions each live request computes in this step; begin and end requests."""
        if self._goes_on(scheduled):
            return
        self._leave_steady()
        for request_id in scheduled.finished_req_ids:  # ended and aborted ones
            self._end(request_id)
        self._count["preempted"] += len(scheduled.preempted_req_ids or ())
        tokens, live = scheduled.num_scheduled_tokens, self._live
        self._number += 1
        self._reads_prompts = any(count > 1 for count in tokens.values())
        cached = scheduled.scheduled_cached_reqs
        starts = list(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        self._cached = list(cached.req_ids), list(cached.num_computed_tokens)
        for new in scheduled.scheduled_new_reqs:
            starts.append((new.req_id, new.num_computed_tokens))
            extra = (new.sampling_params.extra_args if new.sampling_params else None) or {}
            # V2 announces a resumed request again
            if "feature_key" in extra and new.req_id not in live:
                live[new.req_id] = self._begin(new, extra)
        for request_id, start in starts:
            request = live.get(request_id)
            if request is not None and request_id in tokens:
                request.step, request.begin, request.end = self._number, start, start + tokens[request_id]

    def _goes_on(self, scheduled: Any) -> bool:
        """Whether this is one more of the steady steps, which is noted."""
        steady, cached = self._steady, scheduled.scheduled_cached_reqs
        if (
            steady is None
            or steady.announced
            or not steady.left
            or scheduled.finished_req_ids
            or scheduled.preempted_req_ids
            or scheduled.scheduled_new_reqs
            or sum(scheduled.num_scheduled_tokens.values()) != len(steady.ids)
            or cached.req_ids != steady.cached_ids
            or cached.num_computed_tokens != steady.positions
        ):
            return False
        self._number += 1
        self._reads_prompts = False
        steady.positions = [position + 1 for position in steady.positions]
        steady.announced = True
        return True

    def _leave_steady(self) -> None:
        """Count what the steady steps have done in their requests."""
        steady, self._steady = self._steady, None
        if steady is None:
            return
        for request in steady.requests:
            request.rows += steady.done
            request.begin += steady.done + steady.announced
            request.end += steady.done + steady.announced
            request.step = self._number

    def _begin(self, new: Any, extra: Mapping[str, Any]) -> LiveRequest:
        if not self._free:  # preempted requests hold their slots, so more may be live than run
            slots = len(self._buffer_STD)
            self._buffer_STD = torch.cat([self._buffer_STD, torch.empty_like(self._buffer_STD)])
            self._free.extend(range(slots, 2 * slots))
        kinds = extra["feature_kinds"]
        limit = min(self._limit, new.sampling_params.max_tokens) if "generated" in kinds else 0
        request = LiveRequest(extra["feature_key"], len(new.prompt_token_ids), limit, self._free.pop())
        if "input" in kinds:
            request.inputs_ND = self._buffer_STD.new_empty(request.prompt_length, self._buffer_STD.shape[2])
        return request

    def _end(self, request_id: str) -> None:
        request = self._live.pop(request_id, None)
        if request is None:
            return
        rows_TD = self._buffer_STD[request.slot, : request.rows]
        taken = TakenRows(to_host(rows_TD), None, request.input_rows)
        if request.inputs_ND is not None:
            taken.inputs_ND = to_host(request.inputs_ND)
        if rows_TD.is_cuda:  # the stream orders copies, so the next request may have the slot at once
            taken.ready = torch.cuda.Event()
            taken.ready.record()
        self._ended[request.key] = taken
        self._free.append(request.slot)

    def _copy_rows(self, state: Any) -> None:
        states_ND: torch.Tensor = state.hidden_states
        runner: Any = self.model_runner
        batch = state.input_batch if self._v2 else runner.input_batch
        rows_FD = self._buffer_STD.flatten(0, 1)
        if self._steady is not None:
            steady = self._steady
            if steady.announced and batch.req_ids == steady.ids:
                steady.target_B += 1
                rows_FD.index_copy_(0, steady.target_B, states_ND[: len(steady.ids)])
                steady.done, steady.left, steady.announced = steady.done + 1, steady.left - 1, False
                self._count["rows"] += len(steady.ids)
                self._count["steps"] += 1
                self._count["steady"] += 1
                return
            self._leave_steady()
        live, number, size = self._live, self._number, self._buffer_STD.shape[1]
        first_rows = (batch.query_start_loc_np if self._v2 else runner.query_start_loc.np).tolist()
        source: list[int] = []
        target: list[int] = []  # slot * T + row
        ones: list[LiveRequest] = []  # that decode one token
        for i, request_id in enumerate(batch.req_ids):
            request = live.get(request_id)
            if request is None or request.step != number:
                continue
            begin, end, row, last = request.begin, request.end, first_rows[i], request.prompt_length - 1
            if first_rows[i + 1] - row != end - begin:
                raise EngineError(f"feature tap: found {request_id} out of step with vLLM's batch. Report this.")
            first, beyond = begin - last, end - last
            if first == request.rows > 0 and beyond == first + 1 <= request.limit:  # one token more, as nearly always
                source.append(row)
                target.append(request.slot * size + first)
                request.rows = beyond
                ones.append(request)
                continue
            self._copy_inputs(request, states_ND, row)
            # async scheduling may run one position beyond the limit
            first, beyond = max(first, 0), min(beyond, request.limit)
            if first >= beyond:
                continue
            if first > request.rows:
                raise EngineError(f"feature tap: found row {first} of {request.key!r}, expected {request.rows}.")
            self._count["recomputed"] += min(request.rows, beyond) - first
            request.rows = max(request.rows, beyond)
            source += range(row + last + first - begin, row + last + beyond - begin)
            target += range(request.slot * size + first, request.slot * size + beyond)
        if source:
            index = torch.from_numpy(np.array([source, target]))  # half the time of torch.tensor
            if states_ND.is_cuda:  # all on the stream of the forward pass; nothing waits for the device
                index = index.pin_memory().to(states_ND.device, non_blocking=True)
            rows_FD.index_copy_(0, index[1], states_ND.index_select(0, index[0]))
            if len(ones) == len(source) == len(batch.req_ids) == first_rows[len(source)]:
                self._enter_steady(list(batch.req_ids), ones, index[1])
        self._count["rows"] += len(source)
        self._count["steps"] += 1

    def _enter_steady(self, ids: list[str], requests: list[LiveRequest], target_B: torch.Tensor) -> None:
        """Expect the next step to be like this one."""
        order, positions = self._cached
        if len(order) == len(ids):
            left = min(request.limit - request.rows for request in requests)
            self._steady = SteadySteps(ids, requests, target_B, left, order, [position + 1 for position in positions])

    def _copy_inputs(self, request: LiveRequest, states_ND: torch.Tensor, row: int) -> None:
        """Keep the states of the prompt's positions in this step, the first of which is `row` of the states."""
        a, b = request.input_rows, min(request.end, request.prompt_length)
        if request.inputs_ND is not None and request.begin <= a < b:
            request.inputs_ND[a:b] = states_ND[row + a - request.begin : row + b - request.begin]
            request.input_rows = b

    def _set_generators_aside(self) -> dict[int, torch.Generator]:
        """Take away the generators of requests whose prompt is not read to its end (their sample is discarded).

        V1 rewinds such a generator by its offset, which CPU generators do not have (vLLM 0.32 raises "CPU
        Generator does not use offset"). Without one the discarded token is drawn from the global generator.
        """
        runner: Any = self.model_runner
        generators: dict[int, torch.Generator] = runner.input_batch.generators
        if not generators or self.device is None or self.device.type != "cpu":
            return {}
        partial = runner.discard_request_mask.np[: runner.input_batch.num_reqs].nonzero()[0].tolist()
        return {i: generators.pop(i) for i in partial if i in generators}

    def take_features(self, keys: Sequence[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
        """Return and forget (generated rows, input rows or None) of each key. Requests may not be in flight.

        There may be one row more than tokens (async scheduling). Incomplete input rows are None.
        """
        self._leave_steady()
        wanted = set(keys)
        for request_id in [i for i, request in self._live.items() if request.key in wanted]:
            self._end(request_id)  # the scheduler reports the end of a request with its next step only
        taken: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        for key in keys:
            rows = self._ended.pop(key, None)
            if rows is None:
                continue
            if rows.ready is not None:
                rows.ready.synchronize()
            whole = rows.inputs_ND is not None and rows.input_rows == len(rows.inputs_ND)
            taken[key] = rows.features_TD, rows.inputs_ND if whole else None
        return taken

    def feature_statistics(self) -> dict[str, float]:
        """Counters since the start; `tap_seconds` is the thread time spent in this class.

        prefill_seconds and decode_seconds are wall time of steps that read prompts and of the others, as the worker
        sees it: where sampling runs behind (async scheduling on a GPU), a step's end is counted with a later one.
        vision_seconds are those of pictures (`VisionClock`), on a CPU a part of prefill_seconds; vLLM's own warming up
        counts.
        """
        held = {"live": len(self._live), "ended": len(self._ended), "free_slots": len(self._free)}
        return {
            **self._count,
            **self._step,
            **held,
            "tap_seconds": self._seconds,
            "vision_seconds": self._vision.seconds(),
        }


def to_host(rows: torch.Tensor) -> torch.Tensor:
    """A copy in host memory; from a GPU it may still be under way."""
    if not rows.is_cuda:
        return rows.clone()
    return torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)


def check_internals(worker: Any) -> None:
    """Raise EngineError where vLLM or its settings are not those the tap was written for."""
    import vllm
    from vllm.v1.core.sched import output

    if worker.vllm_config.speculative_config is not None:
        raise EngineError("feature tap: found speculative decoding, expected one row per token. Turn it off.")
    devices = worker.parallel_config.world_size
    if devices != 1:
        raise EngineError(f"feature tap: found {devices} devices, expected 1. Start one engine per device.")
    if worker.vllm_config.use_v2_model_runner:
        from vllm.v1.worker.gpu.model_runner import ExecuteModelState

        runner, state = "V2", "ExecuteModelState (V2)"
    else:
        from vllm.v1.worker.gpu_model_runner import ExecuteModelState

        runner, state = "V1", "ExecuteModelState (V1)"
    found: dict[str, set[str]] = {
        name: {field.name for field in dataclasses.fields(getattr(output, name))}
        for name in ("SchedulerOutput", "NewRequestData", "CachedRequestData")
    }
    found[state] = set(ExecuteModelState._fields)
    missing = [f"{name}.{field}" for name in found for field in sorted(EXPECTED[name] - found[name])]
    more = () if runner == "V2" else ("query_start_loc", "input_batch", "discard_request_mask")
    needed = ("execute_model_state", *more)
    missing += [f"model runner {runner}.{name}" for name in needed if not hasattr(worker.model_runner, name)]
    if missing:
        raise EngineError(
            f"feature tap: found vLLM {vllm.__version__} without {', '.join(missing)}, expected them. The tap "
            f"reads names that vLLM does not promise (tested: {TESTED}). Install a tested vLLM, or take the engine "
            "two-pass, which uses public interfaces alone (--set run.engine=two-pass)."
        )


def __getattr__(name: str) -> Any:
    """FeatureCPUWorker and FeatureGPUWorker, made on first use: vLLM wants a dotted name and is heavy."""
    if name == "FeatureCPUWorker":
        from vllm.v1.worker.cpu_worker import CPUWorker as Base
    elif name == "FeatureGPUWorker":
        from vllm.v1.worker.gpu_worker import Worker as Base
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = type(name, (FeatureTap, Base), {"__module__": __name__})
    globals()[name] = made
    return made
