"""What the miniature VLM is asked while it trains: the chats of its own processor, and in-context tasks as CoBSAT has.

The token ids are those of the saved chat template and image processor, so that training and the pipeline agree to the
token (`tests/test_mini_world.py` compares). An in-context task shows words with pictures and asks for the picture that
belongs to the last word; either the object or the attribute has to be inferred.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thinkdiff.mini import words, world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MINI_INSTRUCTION = "I give you several words and pictures. Describe the next picture."
IMAGE_TOKENS = 4  # 32 / 8 / 2 squared
_HOLE = "<|unknown|>"


@dataclass(frozen=True)
class InContextTask:
    """Words and pictures of the demonstrations, the word asked for, and the picture that answers."""

    words: tuple[str, ...]
    demos: tuple[tuple[int, ...], ...]
    query: str
    answer: world.Attributes
    family: str


def caption_chat(prompt: str) -> list[dict[str, Any]]:
    """One picture and one of the paper's prompts."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


def in_context_chat(said: tuple[str, ...], query: str, instruction: str = MINI_INSTRUCTION) -> list[dict[str, Any]]:
    """The instruction, then word and picture by turns, then the word asked for."""
    content = [{"type": "text", "text": instruction + "\n\n"}]
    for number, word in enumerate(said, start=1):
        content.append({"type": "text", "text": f"{_gap(number)}Word {number}: {word}, "})
        content.append({"type": "image"})
    last = len(said) + 1
    content.append({"type": "text", "text": f"{_gap(last)}Word {last}: {query}, "})
    return [{"role": "user", "content": content}]


def _gap(number: int) -> str:
    return "" if number == 1 else "\n\n"


class ChatIds:
    """Token ids of chats, the image token repeated for every merged patch; templates are rendered once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._in_context: dict[int, np.ndarray] = {}
        self._hole = tokenizer.unk_token_id

    def caption(self, prompt: str) -> list[int]:
        return self._render(caption_chat(prompt), vision_ids=False)

    def in_context(self, task: InContextTask) -> list[int]:
        shots = len(task.words)
        if shots not in self._in_context:
            chat = in_context_chat((_HOLE,) * shots, _HOLE)
            self._in_context[shots] = np.array(self._render(chat, vision_ids=True))
        ids = self._in_context[shots].copy()
        ids[ids == self._hole] = words.ids_of(self._tokenizer, [*task.words, task.query])
        return ids.tolist()

    def _render(self, chat: list[dict[str, Any]], vision_ids: bool) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, add_vision_id=vision_ids
        )
        assert isinstance(text, str)
        return self._tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * IMAGE_TOKENS)).input_ids


def draw_task(rng: np.random.Generator, shots: int, distractors: bool, all_pairs: bool = False) -> InContextTask:
    """One task of a random family and kind.

    Without `all_pairs` no demonstration, distractor or answer is a held-out pair; where that leaves too few values, a
    demonstration's word comes twice. `distractors` gives half the tasks' pictures a second, unmentioned attribute.
    """
    family = int(rng.integers(len(world.FAMILIES)))
    values = world.FAMILIES[world.FAMILY_NAMES[family]]
    infer_object = rng.random() < 0.5
    if infer_object:
        obj = int(rng.integers(len(world.OBJECTS)))
        pairs = [(obj, v) for v in rng.permutation(len(values)) + 1 if all_pairs or not world.HELD_OUT[obj, family, v]]
    else:
        v = int(rng.integers(len(values))) + 1
        objects = rng.permutation(len(world.OBJECTS))
        pairs = [(o, v) for o in objects if all_pairs or not world.HELD_OUT[o, family, v]]
    target, demos = pairs[0], pairs[1 : shots + 1]
    while len(demos) < shots:
        demos.append(demos[int(rng.integers(len(demos)))])
    say = (lambda pair: values[pair[1] - 1]) if infer_object else (lambda pair: world.OBJECTS[pair[0]])
    distracted = distractors and rng.random() < 0.5
    rows = [picture(pair, family, rng, distracted, all_pairs) for pair in demos]
    return InContextTask(
        words=tuple(say(pair) for pair in demos),
        demos=tuple(rows),
        query=say(target),
        answer=np.array(picture(target, family, rng, False, all_pairs)),
        family=world.FAMILY_NAMES[family],
    )


def picture(
    pair: tuple[int, int], family: int, rng: np.random.Generator, distracted: bool, all_pairs: bool
) -> tuple[int, ...]:
    row = [int(pair[0]), 0, 0, 0, 0, 0]
    row[1 + family] = int(pair[1])
    if distracted:
        other = int(rng.choice([f for f in range(len(world.FAMILIES)) if f != family]))
        count = len(world.FAMILIES[world.FAMILY_NAMES[other]])
        free = [v for v in range(1, count + 1) if all_pairs or not world.HELD_OUT[row[0], other, v]]
        row[1 + other] = int(rng.choice(free))
    return tuple(row)
