"""Which engine answers, by the run's choice: vLLM with the tap, vLLM in two passes, or transformers, the reference.

In: where to run, how to sample, a model's folder. Out: an engine, used as a context manager. Engines that are borrowed
stay loaded for the next borrower of this process, until `close_engines`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.features import FeatureSpec, PictureTokens
from thinkdiff.tasks.vlm_context import CONTEXT

if TYPE_CHECKING:
    from thinkdiff.tasks.qwen_engine import QwenEngine
    from thinkdiff.tasks.transformers_engine import TransformersEngine
    from thinkdiff.tasks.vision_tower import TowerEngine

    Engine = QwenEngine | TransformersEngine | TowerEngine


class Idle:
    """Engines of this process that nobody uses now, by what they were opened with; and places on GPUs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: list[tuple[str, int, Any]] = []
        self._places: set[int] = set()

    def take(self, kind: str) -> tuple[int, Any]:
        """A place, and an idle engine of that kind on it or None. Engines of other kinds are closed."""
        with self._lock:
            others = [entry for entry in self._engines if entry[0] != kind]
            same = [entry for entry in self._engines if entry[0] == kind]
            found = same.pop() if same else None
            self._engines = same
            for _, place, engine in others:
                engine.close()
                self._places.discard(place)
            if found:
                return found[1], found[2]
            place = next(number for number in range(len(self._places) + 1) if number not in self._places)
            self._places.add(place)
            return place, None

    def give(self, kind: str, place: int, engine: Any) -> None:
        """An engine that can be used again."""
        with self._lock:
            self._engines.append((kind, place, engine))

    def free(self, place: int) -> None:
        """A place whose engine is closed."""
        with self._lock:
            self._places.discard(place)

    def close(self) -> None:
        """Close all engines that are idle."""
        with self._lock:
            for _, place, engine in self._engines:
                engine.close()
                self._places.discard(place)
            self._engines = []


IDLE = Idle()


def close_engines() -> None:
    """Close the engines of this process that nobody uses."""
    IDLE.close()


@contextmanager
def borrowed_engine(
    run: Execution, spec: FeatureSpec, path: str, *, add_vision_id: bool, max_images: int, log: Callable[[str], None],
    max_model_len: int = CONTEXT,
) -> Iterator[Engine]:  # fmt: skip
    """A started engine as `open_engine` describes it, kept for the next borrower unless something is raised here."""
    length = run.max_model_len or max_model_len
    kind = repr((path, spec, run.engine, run.device, run.max_num_seqs, run.threads, add_vision_id, max_images, length))
    place, engine = IDLE.take(kind)
    try:
        if engine is None:
            engine = open_engine(
                run, spec, path, add_vision_id=add_vision_id, max_images=max_images, log=log, place=place,
                max_model_len=max_model_len,
            ).__enter__()  # fmt: skip
        yield engine
    except BaseException:
        if engine is not None:
            engine.close()
        IDLE.free(place)
        raise
    IDLE.give(kind, place, engine)


def gpus(run: Execution) -> list[str]:
    """The GPUs that engines may use, as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
    from thinkdiff.tasks.models import compute_device

    if compute_device(run) != "cuda":
        return []
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def device_at(place: int, run: Execution) -> str:
    """The GPU of an engine in this process, as torch names it, or the processor."""
    from thinkdiff.tasks.models import compute_device

    if compute_device(run) != "cuda":
        return "cpu"
    import torch

    return f"cuda:{place % torch.cuda.device_count()}"


def open_engine(
    run: Execution, spec: FeatureSpec, path: str, *, add_vision_id: bool, max_images: int, log: Callable[[str], None],
    place: int = 0, max_model_len: int = CONTEXT,
) -> Engine:  # fmt: skip
    """The engine that the run asks for, not yet started.

    add_vision_id: pictures are introduced by "Picture 1: " and so on; max_images: pictures per request at most; log
    receives what the engine's process prints; place: the how-manieth engine it is, which picks its GPU; max_model_len:
    tokens of a request and its answer (vLLM only), unless the run says how many.
    """
    from thinkdiff.tasks.qwen_chat import Sampling

    if isinstance(spec.prompts, PictureTokens):
        from thinkdiff.tasks.vision_tower import TowerEngine

        return TowerEngine(path, device_at(place, run), spec.compute_dtype)
    sampling = Sampling(spec.temperature, spec.top_p, spec.max_tokens, spec.end_policy)
    kinds = frozenset(spec.tokens)
    if run.engine == "transformers":
        from thinkdiff.tasks.transformers_engine import TransformersEngine

        return TransformersEngine(
            path, dtype=spec.compute_dtype, sampling=sampling, add_vision_id=add_vision_id, features=kinds,
            max_images=max_images, device=device_at(place, run),
        )  # fmt: skip
    from thinkdiff.tasks.qwen_engine import QwenEngine

    devices = gpus(run)
    return QwenEngine(
        path, dtype=spec.compute_dtype, sampling=sampling, add_vision_id=add_vision_id, features=kinds,
        max_images=max_images, device=run.device, max_num_seqs=run.max_num_seqs,
        max_model_len=run.max_model_len or max_model_len, threads=run.threads or None,
        two_pass=run.engine == "two-pass", gpu=devices[place % len(devices)] if devices else None, log=log,
    )  # fmt: skip
