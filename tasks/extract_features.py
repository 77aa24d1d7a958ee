"""Stage 3. Pictures (or benchmark prompts) -> the VLM's tokens and their final-norm states, in a Zarr store.

Requests are in the order of their keys and cut into shards; a shard is one call of the engine and one commit, so that a
killed run loses at most the shard in hand and the batch that a request ran in does not depend on where a run resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.features import CaptionPrompts, FeatureSet, FeatureSpec
from thinkdiff.schemas.images import ImageSet
from thinkdiff.tasks.ahead import ahead
from thinkdiff.tasks.engines import open_engine
from thinkdiff.tasks.extraction_meter import Meter
from thinkdiff.tasks.models import hidden_size, model_path
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    from thinkdiff.storage.feature_store import FeatureRow
    from thinkdiff.tasks.qwen_chat import Generation, Request


def keyed_number(seed: int, key: str, use: str) -> int:
    """A 63-bit number that depends on (seed, key, use) alone."""
    digest = hashlib.blake2b(f"{seed}\n{use}\n{key}".encode(), digest_size=8, person=b"thinkdiff-draw").digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Question:
    """One request before its pictures are read: a key, what is asked as text, and the pictures' places."""

    key: str
    prompt: str
    parts: tuple[str | int, ...]  # text, or an index into `images`
    images: tuple[Any, ...]  # index rows of an ImageSet, or names below the benchmark's folder


class CaptionQuestions:
    """One picture and one of the spec's texts per request."""

    def __init__(self, spec: FeatureSpec, prompts: CaptionPrompts, images: ImageSet) -> None:
        from thinkdiff.storage.image_shards import ImageReader

        self.spec, self.prompts, self.reader = spec, prompts, ImageReader(images)

    def plan(self) -> list[Question]:
        texts = self.prompts.texts
        chosen = [(row, texts[keyed_number(self.spec.seed, row.key, "prompt") % len(texts)]) for row in self.reader.ok]
        return [Question(row.key, text, (0, text), (row,)) for row, text in chosen]

    def read(self, questions: list[Question]) -> list[list[bytes]]:
        pictures = self.reader.read([question.images[0] for question in questions])
        return [[picture] for picture in pictures]


class BenchmarkQuestions:
    """CoBSAT's interleaved prompts over a folder of pictures."""

    def __init__(self, prompts: CobsatPrompts, run: Execution) -> None:
        from thinkdiff.storage.root import locate

        self.prompts = prompts
        parent, name = locate(run.data_root, prompts.images)
        self.folder = parent / name
        self._cache: dict[str, bytes] = {}

    def plan(self) -> list[Question]:
        from thinkdiff.tasks.cobsat import ImageRef, interleaved
        from thinkdiff.tasks.cobsat import prompts as enumerate_prompts

        questions = []
        for prompt in enumerate_prompts(self.prompts):
            content = interleaved(self.prompts, prompt)
            names = tuple(part.path for part in content if isinstance(part, ImageRef))
            numbers = iter(range(len(names)))
            parts = tuple(next(numbers) if isinstance(part, ImageRef) else part for part in content)
            shown = "".join(part if isinstance(part, str) else "<image>" for part in parts)
            questions.append(Question(prompt.name, shown, parts, names))
        return questions

    def read(self, questions: list[Question]) -> list[list[bytes]]:
        return [[self._picture(name) for name in question.images] for question in questions]

    def _picture(self, name: str) -> bytes:
        if name not in self._cache:
            try:
                self._cache[name] = self.folder.read(name)
            except FileNotFoundError:
                raise InputError(
                    f"{self.folder.uri}/{name}: found no such picture, expected the benchmark's data set there. "
                    "Unpack the data set below the data root, or point the recipe's `images` at it."
                ) from None
        return self._cache[name]


@step(FeatureSet)
def extract_features(work: Work, spec: FeatureSpec, images: ImageSet | None) -> Made:
    """Asks the VLM shard by shard; shards that are committed already are kept."""
    from thinkdiff.storage.feature_store import FeatureWriter

    if isinstance(spec.prompts, CobsatPrompts):
        source = BenchmarkQuestions(spec.prompts, work.run)
    elif images is not None:
        source = CaptionQuestions(spec, spec.prompts, images)
    else:
        raise InputError("extract_features: found no images, expected those of fetch_images for captioning prompts.")
    questions = source.plan()
    if not questions:
        raise InputError("extract_features: found no picture to ask about, expected at least one that was fetched.")
    path = model_path(spec.vlm, work.run)
    width = hidden_size(path)
    writer = FeatureWriter(
        work.folder,
        rows=len(questions),
        tokens=spec.max_tokens,
        width=width,
        dtype=spec.dtype,
        shard_size=spec.shard_size,
        input_tokens=spec.max_input_tokens if "input" in spec.tokens else 0,
    )
    kept = set(writer.prepare())
    missing = [shard for shard in range(writer.shards) if shard not in kept]
    meter = Meter()
    with work.progress(len(questions), "requests") as progress:
        progress.resume(len(questions) - sum(len(shard_of(questions, spec, s)) for s in missing))
        if missing:
            for shard, answers in ahead(answered(work, spec, source, questions, missing, path, meter)):
                with meter.writing():
                    writer.commit(shard, answers)
                progress.advance(len(answers))
    if kept and missing:
        work.log.info(
            "extract_features: kept %d committed shards, made %d; children of another content are rebuilt.",
            len(kept), len(missing),
        )  # fmt: skip
    if missing:
        work.log.info("extract_features: %s", meter.sentence())
    parts = writer.committed().values()
    tokens, ended, characters = (sum(part.info[name] for part in parts) for name in ("tokens", "ended", "characters"))
    return Made(
        files=writer.files(),
        counts={"rows": len(questions), "shards": writer.shards, "tokens": tokens},
        stats={
            "hidden_size": width,
            "shape": [len(questions), spec.max_tokens, width],
            "shard_size": spec.shard_size,
            "ended": ended / len(questions),
            "tokens_per_row": tokens / len(questions),
            "characters_per_row": characters / len(questions),
            "run": meter.figures(),
        },
        note=f"kept {len(kept)} shards of an earlier run" if kept else "",
        page="\n".join(f"- {question.prompt!r:.200}" for question in questions[:5]),
    )


def shard_of(questions: list[Question], spec: FeatureSpec, shard: int) -> list[Question]:
    """The requests of one shard."""
    return questions[shard * spec.shard_size : (shard + 1) * spec.shard_size]


def answered(
    work: Work, spec: FeatureSpec, source: CaptionQuestions | BenchmarkQuestions, questions: list[Question],
    shards: list[int], path: str, meter: Meter,
) -> Generator[tuple[int, list[FeatureRow]]]:  # fmt: skip
    """Runs the engine over the shards, in order; pictures are read ahead of it."""
    benchmark = isinstance(spec.prompts, CobsatPrompts)
    most = max(len(question.images) for question in questions)
    batches = [shard_of(questions, spec, shard) for shard in shards]
    with open_engine(work.run, spec, path, add_vision_id=benchmark, max_images=most, log=work.log.debug) as engine:
        meter.start()
        made = engine.stream(ahead(requests_of(spec, source, batch) for batch in batches))
        for shard, batch, answers in zip(shards, batches, made, strict=True):
            meter.count(answers)
            yield shard, [feature_row(spec, q, g) for q, g in zip(batch, answers, strict=True)]
        meter.stop(engine.statistics())


def requests_of(
    spec: FeatureSpec, source: CaptionQuestions | BenchmarkQuestions, batch: list[Question]
) -> list[Request]:
    """Some questions with their pictures."""
    from thinkdiff.tasks.qwen_chat import Request

    return [
        Request(
            key=question.key,
            content=tuple(part if isinstance(part, str) else pictures[part] for part in question.parts),
            seed=keyed_number(spec.seed, question.key, "sampling"),
        )
        for question, pictures in zip(batch, source.read(batch), strict=True)
    ]


def feature_row(spec: FeatureSpec, question: Question, made: Generation) -> FeatureRow:
    """A generation as a row of the store. Raises InputError when the prompt is longer than the rows kept for it."""
    from thinkdiff.storage.feature_store import FeatureRow

    inputs = made.input_features
    if inputs is not None and len(inputs) > spec.max_input_tokens:
        raise InputError(
            f"{question.key}: found a prompt of {len(inputs)} tokens, expected at most max_input_tokens = "
            f"{spec.max_input_tokens}. Raise max_input_tokens."
        )
    return FeatureRow(
        key=question.key, prompt=question.prompt, token_ids=tuple(made.token_ids),
        eos=-1 if made.end_index is None else made.end_index, text=made.text,
        features=made.features, input_features=inputs,
    )  # fmt: skip
