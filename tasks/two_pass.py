"""A Qwen-VL's features by vLLM's public interface alone: one engine generates, a second one embeds what was said.

In the child process of `qwen_engine`, in place of the tap. Slower and twice the memory, as the model is loaded twice
and every answer is read again; it is for versions of vLLM whose inner names the tap does not know. The embedding
engine returns the final-norm state of every token, so rows are the same positions as the tap's.

It has not yet run on CUDA, where the two passes need not agree to the bit: kernels depend on the batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from thinkdiff.schemas.errors import EngineError
from thinkdiff.tasks.qwen_chat import Request, Sampling
from thinkdiff.tasks.qwen_engine import EngineOptions
from thinkdiff.tasks.vllm_engine import Rows, VllmEngine, llm_arguments

SHARE = 0.45  # of a GPU's memory, for each of the two


class TwoPassEngine(VllmEngine):
    """Two `vllm.LLM`s of one model."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        from vllm import LLM
        from vllm.config import PoolerConfig

        pooling = {
            "runner": "pooling",
            "convert": "embed",
            "pooler_config": PoolerConfig(task="token_embed", use_activation=False),
            "enable_prefix_caching": False,
        }
        self.embedder = LLM(**self.arguments(self.versions["device"] == "cpu") | pooling)
        self.embedding_seconds = 0.0

    def arguments(self, on_cpu: bool) -> dict[str, Any]:
        share = {} if on_cpu or "gpu_memory_utilization" in self.options.vllm else {"gpu_memory_utilization": SHARE}
        return llm_arguments(self.options, self.config, on_cpu, share)

    def parameters(self, request: Request, wanted: Sampling) -> Any:
        parameters = super().parameters(request, wanted)
        parameters.extra_args = None
        return parameters

    def rows(self, requests: Sequence[Request], outputs: Sequence[Any]) -> dict[str, Rows]:
        import torch
        from vllm import PoolingParams

        if not outputs:
            return {}
        began = time.thread_time()
        answers = [output.outputs[0].token_ids for output in outputs]
        embedded = self.embedder.encode(
            [self.prompt(*pair) for pair in zip(requests, answers, strict=True)],
            pooling_params=PoolingParams(use_activation=False), pooling_task="token_embed", use_tqdm=False,
        )  # fmt: skip
        rows: dict[str, Rows] = {}
        for request, output, answer, found in zip(requests, outputs, answers, embedded, strict=True):
            states_ND = found.outputs.data.to(getattr(torch, self.options.dtype))
            prompt = len(output.prompt_token_ids)
            if len(states_ND) != prompt + len(answer):
                raise EngineError(
                    f"request {request.key!r}: found {len(states_ND)} states, expected one for each of "
                    f"{prompt + len(answer)} tokens. This vLLM embeds in another way than 0.32; use the engine vllm."
                )
            inputs_ND = states_ND[:prompt].clone() if "input" in self.options.features else None
            count = len(answer) if "generated" in self.options.features else 0
            rows[request.key] = states_ND[prompt - 1 : prompt - 1 + count].clone(), inputs_ND
        self.embedding_seconds += time.thread_time() - began
        return rows

    def statistics(self) -> dict[str, float]:
        return {**self.process_statistics(), "embedding_seconds": self.embedding_seconds}
