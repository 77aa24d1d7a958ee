"""The reference engine: the same questions and answers as `qwen_engine`, by plain transformers, one request at a time.

In:  as `qwen_engine.QwenEngine`. Out: the same `Generation`s, greedy only.
It is slow and obvious: `generate(output_hidden_states=True)` in this process. The vLLM engine is checked against it,
and it stands in for it where vLLM is not installed. The last entry of transformers' hidden states is the one after
the final norm; at step i its last row predicts generated token i.

Shapes: T generated tokens, P prompt tokens, D hidden size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from thinkdiff.schemas.errors import EngineError, ModelError
from thinkdiff.schemas.features import TokenKind
from thinkdiff.tasks.models import SAFE, loading
from thinkdiff.tasks.qwen_chat import (
    Generation,
    Request,
    Sampling,
    answer_text,
    chat_ids,
    check_requests,
    end_ids,
    first_end,
    images_of,
    shape_of,
)
from thinkdiff.tasks.qwen_engine import ComputeDtype, check_model, prepare_torchvision, to_numpy


class TransformersEngine:
    """A Qwen-VL in transformers; use as a context manager. Arguments and errors are those of `QwenEngine`."""

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        dtype: ComputeDtype,
        sampling: Sampling,
        add_vision_id: bool = False,
        features: frozenset[TokenKind] = frozenset({"generated"}),
        max_images: int = 1,
        device: str = "auto",
        revision: str | None = None,
    ) -> None:
        check_greedy(sampling)
        check_model(model_path)
        self.model_path, self.revision, self.dtype = os.fspath(model_path), revision, dtype
        self.sampling, self.add_vision_id, self.features = sampling, add_vision_id, features
        self.max_images, self.device = max_images, device

    def __enter__(self) -> Self:
        prepare_torchvision()
        import torch
        import transformers

        where: dict[str, Any] = {"revision": self.revision, "local_files_only": Path(self.model_path).is_dir()}
        with loading(self.model_path):
            self._processor: Any = transformers.AutoProcessor.from_pretrained(
                self.model_path, **where, trust_remote_code=False
            )
            model = transformers.AutoModelForImageTextToText.from_pretrained(
                self.model_path, dtype=getattr(torch, self.dtype), attn_implementation="sdpa", **where, **SAFE
            )
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = model.eval()
        self._model.to(self.device)
        self.hidden_size: int = model.config.get_text_config().hidden_size
        generation = model.generation_config
        assert generation is not None
        self.eos_token_ids = end_ids(self._processor.tokenizer, generation.to_dict())
        model.generation_config = transformers.GenerationConfig()  # its penalties and top-k would be merged in
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__, "device": self.device}
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the model go."""
        del self._model, self._processor

    def generate(self, requests: Sequence[Request], sampling: Sampling | None = None) -> list[Generation]:
        """Answer a batch, one request after the other."""
        check_requests(requests, self.max_images)
        chosen = sampling or self.sampling
        check_greedy(chosen)
        return [self._answer(request, chosen) for request in requests]

    def stream(self, batches: Iterable[Sequence[Request]]) -> Iterator[list[Generation]]:
        """The answers to batches, one after the other."""
        return map(self.generate, batches)

    def statistics(self) -> dict[str, float]:
        """This engine counts nothing."""
        return {}

    def _answer(self, request: Request, sampling: Sampling) -> Generation:
        import torch

        tokenizer = self._processor.tokenizer
        inputs = self._inputs(request)
        prompt_ids: list[int] = inputs["input_ids"][0].tolist()
        with torch.inference_mode():
            result = self._model.generate(**inputs, generation_config=self._generation_config(sampling))
        ids: list[int] = result.sequences[0, len(prompt_ids) :].tolist()
        features_TD = np.zeros((0, self.hidden_size), to_numpy(result.hidden_states[0][-1][0, :0]).dtype)
        if "generated" in self.features:
            features_TD = to_numpy(torch.stack([step[-1][0, -1] for step in result.hidden_states]))
            assert len(features_TD) == len(ids)
        inputs_PD = to_numpy(result.hidden_states[0][-1][0]) if "input" in self.features else None
        end = first_end(ids, self.eos_token_ids)
        return Generation(request.key, ids, answer_text(tokenizer, ids, end), features_TD, prompt_ids, inputs_PD, end)

    def _inputs(self, request: Request) -> dict[str, Any]:
        """Model inputs: the chat with each picture's placeholder repeated for each of its tokens, and the pixels."""
        import torch

        ids = chat_ids(self._processor.tokenizer, shape_of(request), add_vision_id=self.add_vision_id)
        placeholder: int = self._model.config.image_token_id
        images = images_of(request)
        inputs: dict[str, Any] = {}
        tokens: list[int] = []
        if images:
            pixels = self._processor.image_processor(images=images, return_tensors="pt")
            inputs = {name: value.to(self.device) for name, value in pixels.items()}
            merged: int = self._processor.image_processor.merge_size**2
            tokens = (inputs["image_grid_thw"].prod(-1) // merged).tolist()
        if ids.count(placeholder) != len(tokens):
            raise ModelError(
                f"chat template of {self.model_path}: found {ids.count(placeholder)} picture placeholders for "
                f"{len(tokens)} pictures, expected as many. Pictures would be lost. Use the model's own template."
            )
        count = iter(tokens)
        whole = [token for i in ids for token in ([i] * next(count) if i == placeholder else [i])]
        input_ids = torch.tensor([whole], device=self.device)
        # without it transformers 5 would number the picture's positions like text
        inputs["mm_token_type_ids"] = (input_ids == placeholder).int()
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **inputs}

    def _generation_config(self, sampling: Sampling) -> Any:
        from transformers import GenerationConfig

        policy, limit = sampling.end_policy, sampling.max_tokens
        ends = sorted(self.eos_token_ids)
        return GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=limit, pad_token_id=ends[0], use_cache=True,
            output_hidden_states=True, return_dict_in_generate=True,
            eos_token_id=ends if policy == "stop" else None,
            suppress_tokens=ends if policy == "forced" else None,
        )  # fmt: skip


def check_greedy(sampling: Sampling) -> None:
    """Raise EngineError for a temperature: this engine has no seed per request."""
    if sampling.temperature > 0:
        raise EngineError(
            f"transformers engine: found temperature {sampling.temperature}, expected 0. It is the greedy "
            "reference and has no seed per request. Use the vLLM engine to sample."
        )
