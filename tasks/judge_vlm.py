"""A judge that is a VLM on vLLM: two questions of each picture, ten options each; no answer is asked for twice.

In: PNG pictures or texts. Out: what the VLM names. Answers are kept under the root by picture, question and judge
(`judge_answers`); the engine starts when there is something to ask. The questions and the reading of replies are the
benchmark's (`judge_questions`), and so are LLaVA's conversation and the padding of pictures.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.cobsat import Family
from thinkdiff.schemas.scores import VlmJudge
from thinkdiff.storage.judge_answers import JudgeAnswers, answer_key
from thinkdiff.tasks.judge import Seen, Subject, Wanted, family_of, picture
from thinkdiff.tasks.judge_questions import chosen_word, questions
from thinkdiff.tasks.models import DIGEST, compute_device, folder_revision, model_path

if TYPE_CHECKING:
    from PIL import Image

    from thinkdiff.tasks.qwen_chat import Request
    from thinkdiff.tasks.qwen_engine import QwenEngine

MEAN_COLOR = (122, 116, 104)  # CLIP's mean pixel of 255, rounded down: what LLaVA pads with
CONTEXT = 4096  # tokens, of LLaVA-1.5


class AskingJudge:
    """Use as a context manager. Raises EngineError when vLLM does not start, dies, or takes longer than allowed; what
    was answered until then is kept."""

    def __init__(self, spec: VlmJudge, families: dict[str, Family], run: Execution, log: logging.Logger) -> None:
        self.spec, self.families, self.run, self.log = spec, families, run, log
        self.path = model_path(spec.model, run)
        self.answers = JudgeAnswers(run.root, identity(spec, self.path))
        self._engine: QwenEngine | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._engine is not None:
            self._engine.close()

    def see(self, subjects: Sequence[Subject], wanted: Sequence[Wanted]) -> list[Seen]:
        """What the VLM names in each subject. A subject that comes again, now or later, is not asked about again."""
        asked: list[tuple[str, str]] = []
        missing: dict[str, tuple[Subject, str]] = {}
        for subject, want in zip(subjects, wanted, strict=True):
            family, text = family_of(self.families, want.family), subject if isinstance(subject, str) else None
            data = subject if isinstance(subject, bytes) else subject.encode()
            pair = questions(family, text)
            keys = (answer_key(data, pair[0]), answer_key(data, pair[1]))
            asked.append(keys)
            missing |= {
                key: (subject, question)
                for key, question in zip(keys, pair, strict=True)
                if self.answers.get(key) is None
            }
        self.answers.add(self._replies(missing))
        return [
            Seen(
                chosen_word(self.answers.get(value) or "", self.families[want.family].values),
                chosen_word(self.answers.get(thing) or "", self.families[want.family].things),
            )
            for (thing, value), want in zip(asked, wanted, strict=True)
        ]

    def _replies(self, missing: Mapping[str, tuple[Subject, str]]) -> dict[str, str]:
        from thinkdiff.tasks.qwen_chat import Request

        if not missing:
            return {}
        requests: list[Request] = []
        pictures = {subject for subject, _ in missing.values() if isinstance(subject, bytes)}
        decoded = {data: self._pixels(data) for data in pictures}
        for key, (subject, question) in missing.items():
            content = (question,) if isinstance(subject, str) else (decoded[subject], question)
            requests.append(Request(key, content))
        return {answer.key: answer.text for answer in self.engine.generate(requests)}

    def _pixels(self, subject: Subject) -> Any:
        import numpy as np

        image = picture(subject)
        return np.asarray(squared(image) if self.spec.pad else image)

    @property
    def engine(self) -> QwenEngine:
        """The engine, started when it is first needed."""
        if self._engine is None:
            from thinkdiff.tasks.qwen_chat import Sampling
            from thinkdiff.tasks.qwen_engine import QwenEngine

            run = self.run
            self._engine = QwenEngine(
                self.path, dtype=self.spec.compute_dtype, sampling=Sampling(0.0, 1.0, self.spec.max_tokens),
                features=frozenset(), device="cuda" if compute_device(run) == "cuda" else "cpu",
                max_num_seqs=run.max_num_seqs, max_model_len=run.max_model_len or CONTEXT, threads=run.threads or None,
                log=self.log.info, conversation=self.spec.conversation, timeout=run.judge_seconds, prefix_caching=True,
            ).__enter__()  # fmt: skip
        return self._engine


def identity(spec: VlmJudge, path: str) -> str:
    """All that a judge's answers depend on, as JSON.

    A hub name without revision is told by the snapshot it led to, a local folder by the digest of its files.
    """
    folder = Path(path)
    snapshot = folder.name if folder.parent.name == "snapshots" else None
    if snapshot is None and not (spec.model.revision or "").startswith(DIGEST):
        snapshot = folder_revision(folder)
    return json.dumps(spec.model_dump(mode="json") | {"snapshot": snapshot}, indent=1, sort_keys=True)


def squared(image: Image.Image) -> Image.Image:
    """A picture in the middle of a square as large as its longer side."""
    from PIL import Image

    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), MEAN_COLOR)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
