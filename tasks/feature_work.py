"""The work on some shards of features: pictures read, questions asked, answers committed. One engine, one process.

In: the artifact's folder, the spec, numbers of shards and where their questions are. Out: a committed part for each
shard, and figures. It knows no Prefect and takes plain values only, so that any task runner can call it in a thread, a
process or on another machine. A shard is one call of the engine and one commit: which shards a call is given changes no
byte, and a shard that two calls are given is committed once.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.features import FeatureSpec, PictureTokens
from thinkdiff.tasks.ahead import ahead
from thinkdiff.tasks.engines import borrowed_engine
from thinkdiff.tasks.extraction_meter import Meter
from thinkdiff.tasks.feature_questions import Pictures, Question, keyed_number, questions_at, second_question
from thinkdiff.tasks.vlm_context import CONTEXT

if TYPE_CHECKING:
    from thinkdiff.storage.feature_store import EncodedShard, FeatureRow, FeatureWriter
    from thinkdiff.storage.root import Folder
    from thinkdiff.tasks.engines import Engine
    from thinkdiff.tasks.feature_questions import Place
    from thinkdiff.tasks.qwen_chat import Generation, Request

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extraction:
    """What all shards of a store have in common. rows and width: N and D of it; model: the VLM's local path or name;
    max_images: pictures per question at most; max_model_len: tokens of one and its answer at most."""

    folder: Folder
    spec: FeatureSpec
    run: Execution
    model: str
    pictures: Pictures
    rows: int
    width: int
    max_images: int
    max_model_len: int = CONTEXT

    def writer(self) -> FeatureWriter:
        """A writer of the store."""
        from thinkdiff.storage.feature_store import FeatureWriter

        return FeatureWriter(
            self.folder,
            rows=self.rows,
            tokens=self.spec.max_tokens,
            width=self.width,
            dtype=self.spec.dtype,
            codec=self.spec.codec,
            shard_size=self.spec.shard_size,
            input_tokens=self.spec.max_input_tokens if "input" in self.spec.tokens else 0,
        )


def extract_shards(work: Extraction, shards: Sequence[int], places: Sequence[Place]) -> dict[str, float]:
    """Makes some shards of the questions at these places, and says where the time went (`Meter`)."""
    writer, meter = work.writer(), Meter()
    with closing(ahead(answered(work, shards, places, meter))) as made:
        store(writer, made, meter)
    return meter.figures()


def store(writer: FeatureWriter, shards: Iterator[tuple[int, list[FeatureRow]]], meter: Meter) -> None:
    """Commits shards; each is encoded while the one before it is hashed, and the one before that stored."""

    def encoded() -> Generator[EncodedShard]:
        for shard, rows in shards:
            with meter.writing():
                done = writer.encode(shard, rows)
            yield done

    def hashed() -> Generator[EncodedShard]:
        with closing(ahead(encoded())) as made:
            for shard in made:
                with meter.writing():
                    assert shard.digest
                yield shard

    with closing(ahead(hashed())) as ready:
        for shard in ready:
            with meter.writing():
                writer.put(shard)


def answered(
    work: Extraction, shards: Sequence[int], places: Sequence[Place], meter: Meter
) -> Generator[tuple[int, list[FeatureRow]]]:
    """Runs an engine over the shards, in order; questions and pictures are read ahead of it."""
    prompts = work.spec.prompts
    benchmark = isinstance(prompts, CobsatPrompts)
    thought = benchmark and prompts.prompt_type == "cot"
    asked = deque[list[Question]]()

    def requests() -> Generator[list[Request]]:
        for batch in questions_at(work.spec, work.pictures, places):
            asked.append(batch)
            yield requests_of(work, batch, "analysis" if thought else "sampling")

    with (
        borrowed_engine(
            work.run,
            work.spec,
            work.model,
            add_vision_id=benchmark,
            max_images=work.max_images,
            log=log.info,
            max_model_len=work.max_model_len,
        ) as engine,
        closing(ahead(requests())) as batches,
    ):
        meter.start(engine.statistics())
        answers = thought_out(work, engine, batches, asked) if thought else engine.stream(batches)
        for shard, made in zip(shards, answers, strict=True):
            meter.count(made)
            yield shard, [feature_row(work.spec, q, g) for q, g in zip(asked.popleft(), made, strict=True)]
        meter.stop(engine.statistics())


def thought_out(
    work: Extraction, engine: Engine, batches: Iterator[list[Request]], asked: deque[list[Question]]
) -> Iterator[list[Generation]]:
    """The answers of a chain of thought, batch by batch: those to second questions, which take the firsts' place."""
    prompts = work.spec.prompts
    assert isinstance(prompts, CobsatPrompts)
    for batch in batches:
        (analyses,) = engine.stream([batch])
        asked[0] = [second_question(prompts, q, a.text) for q, a in zip(asked[0], analyses, strict=True)]
        yield from engine.stream([requests_of(work, asked[0])])


def requests_of(work: Extraction, questions: Sequence[Question], use: str = "sampling") -> list[Request]:
    """Some questions with their pictures; `use` keeps the draws of two questions of one key apart."""
    from thinkdiff.tasks.qwen_chat import Request

    return [
        Request(
            key=question.key,
            content=tuple(part if isinstance(part, str) else pictures[part] for part in question.parts),
            seed=keyed_number(work.spec.seed, question.key, use),
        )
        for question, pictures in zip(questions, work.pictures.of(questions), strict=True)
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
    if isinstance(spec.prompts, PictureTokens):
        return FeatureRow(question.key, "", (), -1, question.prompt, made.features, inputs)
    return FeatureRow(
        key=question.key, prompt=question.prompt, token_ids=tuple(made.token_ids),
        eos=-1 if made.end_index is None else made.end_index, text=made.text,
        features=made.features, input_features=inputs,
    )  # fmt: skip
