"""What is said to a Qwen-VL and what it answers: requests, answers and the chat around them, for both engines.

In:  a user turn of interleaved text and pictures. Out: the token ids of the whole chat by the model's own template,
     and pictures as PIL images. No model and no vLLM here; `qwen_engine` and `transformers_engine` compute.
"""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from thinkdiff.schemas.errors import InputError, ModelError
from thinkdiff.schemas.features import EndPolicy

LLAVA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
Part = str | bytes | np.ndarray
"""A piece of the user turn: text, an encoded picture (JPEG, PNG, ...) or a picture as uint8 (height, width, 3)."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    end_policy: `stop` ends at the first end token, which keeps its row; `run_on` samples end tokens but goes on to
    `max_tokens`; `forced` never samples an end token and goes on to `max_tokens`. temperature 0 is greedy.
    """

    temperature: float
    top_p: float
    max_tokens: int
    end_policy: EndPolicy = "stop"

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_tokens < 1:
            raise ValueError(f"sampling: found {self}, expected temperature >= 0, 0 < top_p <= 1 and max_tokens >= 1.")


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One user turn. `seed` alone fixes its random draws, whatever else is in the batch."""

    key: str
    content: tuple[Part, ...]
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """What the VLM answered to one request; D is its hidden size.

    token_ids: all sampled ids, end tokens included. text: decoded up to the first end token. features: (n_tokens, D)
    in the compute dtype (float32, or ml_dtypes' bfloat16); (0, D) unless "generated" was asked for. input_features:
    (n_prompt_tokens, D); None unless "input" was asked for. end_index: position of the first end token in token_ids.
    """

    key: str
    token_ids: list[int]
    text: str
    features: np.ndarray
    prompt_token_ids: list[int]
    input_features: np.ndarray | None
    end_index: int | None


def check_requests(requests: Sequence[Request], max_images: int) -> None:
    """Raise InputError for a key used twice (rows are told apart by it), too many pictures, or a seed out of range."""
    twice = [key for key, n in collections.Counter(request.key for request in requests).items() if n > 1]
    if twice:
        raise InputError(f"requests: found the key {twice[0]!r} more than once, expected unique keys within a batch.")
    for request in requests:
        images = sum(not isinstance(part, str) for part in request.content)
        if images > max_images:
            raise InputError(
                f"request {request.key!r}: found {images} pictures, expected at most {max_images}. Raise max_images."
            )
        if not 0 <= request.seed < 2**63:
            raise InputError(f"request {request.key!r}: found the seed {request.seed}, expected 0 <= seed < 2**63.")


def chat_ids(tokenizer: Any, content: Sequence[str | None], *, add_vision_id: bool) -> list[int]:
    """Token ids of one user turn, ready for the answer, with one placeholder token for each picture (None).

    The system message is the template's own. add_vision_id: pictures are introduced by "Picture 1: " and so on.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"tokenizer of {tokenizer.name_or_path}: found no chat template, expected one. "
            "The prompt cannot be written without it. Fetch or build the model again."
        )
    parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in content]
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True, add_generation_prompt=True, return_dict=False, add_vision_id=add_vision_id,
    )  # fmt: skip


def llava_ids(tokenizer: Any, content: Sequence[str | None], image_token: int) -> list[int]:
    """Token ids of one user turn in the conversation of LLaVA v1 (haotian-liu/LLaVA, `llava_v1`), ready for the answer.

    A picture (None) is a line of its own. As in that code the texts around pictures are tokenised each by itself.
    """
    turn = "".join("<image>\n" if part is None else part for part in content)
    texts = f"{LLAVA_SYSTEM} USER: {turn} ASSISTANT:".split("<image>")
    first, *others = (tokenizer(text, add_special_tokens=number == 0)["input_ids"] for number, text in enumerate(texts))
    return [*first, *(token for ids in others for token in (image_token, *ids))]


def shape_of(request: Request) -> tuple[str | None, ...]:
    """The request's content with None for each picture."""
    return tuple(part if isinstance(part, str) else None for part in request.content)


def images_of(request: Request) -> list[Image.Image]:
    """The request's pictures in RGB. Raises InputError for bytes that are no picture."""
    images: list[Image.Image] = []
    for part in request.content:
        if isinstance(part, str):
            continue
        try:
            image = Image.open(io.BytesIO(part)) if isinstance(part, bytes) else Image.fromarray(part)
            images.append(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, TypeError) as error:
            raise InputError(
                f"request {request.key!r}: found a picture that cannot be read ({error}), expected JPEG, PNG or the "
                "like, or uint8 (height, width, 3). Leave it out or fetch it again."
            ) from error
    return images


def end_ids(tokenizer: Any, generation_config: Mapping[str, Any]) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's own and those of the model's generation config."""
    more = generation_config.get("eos_token_id") or []
    own = {tokenizer.eos_token_id} - {None}
    return frozenset(own | {*([more] if isinstance(more, int) else more)})


def first_end(token_ids: Sequence[int], ends: Set[int]) -> int | None:
    """Position of the first end token."""
    return next((i for i, token in enumerate(token_ids) if token in ends), None)


def answer_text(tokenizer: Any, token_ids: Sequence[int], end: int | None) -> str:
    """The answer up to its end token, without special tokens."""
    return tokenizer.decode(token_ids[:end], skip_special_tokens=True)
