"""Which engine answers, by the run's choice: vLLM with the tap, vLLM in two passes, or transformers, the reference.

In: where to run, how to sample, a model's folder. Out: an engine, used as a context manager.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.features import FeatureSpec

if TYPE_CHECKING:
    from thinkdiff.tasks.qwen_engine import QwenEngine
    from thinkdiff.tasks.transformers_engine import TransformersEngine


def open_engine(
    run: Execution, spec: FeatureSpec, path: str, *, add_vision_id: bool, max_images: int, log: Callable[[str], None]
) -> QwenEngine | TransformersEngine:
    """The engine that the run asks for, not yet started.

    add_vision_id: pictures are introduced by "Picture 1: " and so on; max_images: pictures per request at most; log
    receives what the engine's process prints.
    """
    from thinkdiff.tasks.models import compute_device
    from thinkdiff.tasks.qwen_chat import Sampling

    sampling = Sampling(spec.temperature, spec.top_p, spec.max_tokens, spec.end_policy)
    kinds = frozenset(spec.tokens)
    if run.engine == "transformers":
        from thinkdiff.tasks.transformers_engine import TransformersEngine

        device = "cuda" if compute_device(run) == "cuda" else "cpu"
        return TransformersEngine(
            path, dtype=spec.compute_dtype, sampling=sampling, add_vision_id=add_vision_id, features=kinds,
            max_images=max_images, device=device,
        )  # fmt: skip
    from thinkdiff.tasks.qwen_engine import QwenEngine

    return QwenEngine(
        path, dtype=spec.compute_dtype, sampling=sampling, add_vision_id=add_vision_id, features=kinds,
        max_images=max_images, device=run.device, max_num_seqs=run.max_num_seqs,
        threads=run.threads or None, two_pass=run.engine == "two-pass", log=log,
    )  # fmt: skip
