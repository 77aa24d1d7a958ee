"""What the VLM is asked: one picture and one text a request, or CoBSAT's interleaved prompts. No engine.

In: a spec, an ImageSet or the benchmark. Out: a plan, which counts the questions and says for a shard of them where
they are, and from such a place the questions. A plan holds no questions; a place is small, whatever their number.
A chain of thought is two questions under one key: the second one quotes the answer to the first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.features import CaptionPrompts, FeatureSpec, PictureTokens
from thinkdiff.schemas.images import ImageSet

if TYPE_CHECKING:
    from thinkdiff.storage.image_pieces import PicturedRows, Piece
    from thinkdiff.storage.picture_files import PictureFiles
    from thinkdiff.storage.root import Folder
    from thinkdiff.tasks.cobsat import Content, Prompt

    Place = range | tuple[Piece, ...]


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
    asked: Prompt | None = None  # the benchmark's prompt that it is made from


@dataclass(frozen=True)
class Pictures:
    """Where questions have their pictures: in the shards of an ImageSet, or in the files of the benchmark."""

    folder: Folder
    files: PictureFiles | None = None
    _read: dict[str, bytes] = field(default_factory=dict, repr=False)

    def of(self, questions: Sequence[Question]) -> list[list[bytes]]:
        """The pictures of each question. Raises InputError for one that the benchmark's files lack."""
        if self.files is None:
            from thinkdiff.storage.image_shards import read_pictures

            pictures = iter(read_pictures(self.folder, [row for question in questions for row in question.images]))
            return [[next(pictures) for _ in question.images] for question in questions]
        names = dict.fromkeys(name for question in questions for name in question.images)
        self._read.update(self.files.read(name for name in names if name not in self._read))
        if lost := [name for name in names if name not in self._read]:
            raise InputError(
                f"{self.files.uri}/{lost[0]}: found no such picture, expected the benchmark's data set there. It has "
                "gone since it was verified; unpack the data set again."
            )
        return [[self._read[name] for name in question.images] for question in questions]


@dataclass(frozen=True)
class Plan:
    """How many questions there are, with at most how many pictures, and where. pictured: an ImageSet's rows, if any;
    images_digest: of the benchmark's files that they are made from; words: bytes of a question's text at most."""

    rows: int
    max_images: int
    pictures: Pictures
    pictured: PicturedRows | None = None
    images_digest: str | None = None
    words: int = 0

    def place(self, span: range) -> Place:
        """Where some neighbouring questions are: what `questions_at` needs to have them."""
        return span if self.pictured is None else self.pictured.pieces(span)


def planned(spec: FeatureSpec, images: ImageSet | None, run: Execution) -> Plan:
    """The questions of a spec, counted; the benchmark's files are verified.

    Raises InputError when there are none, or when the benchmark's data set is not whole or not the expected one.
    """
    from thinkdiff.storage.image_pieces import PicturedRows
    from thinkdiff.storage.root import Folder

    if isinstance(spec.prompts, CobsatPrompts):
        from thinkdiff.tasks.cobsat_data import verified

        files, digest = verified(spec.prompts, run)
        asked = benchmark_questions(spec.prompts, files)
        most = max((len(question.images) for question in asked), default=0)
        words = max((longest(spec, spec.prompts, question) for question in asked), default=0)
        plan = Plan(len(asked), max(most, 1), Pictures(files.folder, files), images_digest=digest, words=words)
    elif images is not None:
        pictured = PicturedRows(images)
        texts = spec.prompts.texts if isinstance(spec.prompts, CaptionPrompts) else ("",)
        words = max(len(text.encode()) for text in texts)
        plan = Plan(len(pictured), 1, Pictures(Folder(images.uri)), pictured, words=words)
    else:
        raise InputError("extract_features: found no images, expected those of fetch_images for captioning prompts.")
    if not plan.rows:
        raise InputError("extract_features: found no picture to ask about, expected at least one that was fetched.")
    return plan


def questions_at(spec: FeatureSpec, pictures: Pictures, places: Iterable[Place]) -> Iterator[list[Question]]:
    """The questions at each place. Raises StoreError when what is stored there is lost or altered."""
    if isinstance(spec.prompts, CobsatPrompts):
        assert pictures.files is not None
        asked = benchmark_questions(spec.prompts, pictures.files)
        for place in places:
            assert isinstance(place, range)
            yield asked[place.start : place.stop]
        return
    from thinkdiff.storage.image_pieces import PieceReader

    reader = PieceReader(pictures.folder)
    for place in places:
        assert isinstance(place, tuple)
        rows = reader.rows(place)
        if isinstance(spec.prompts, PictureTokens):
            yield [Question(row.key, row.caption, (0,), (row,)) for row in rows]
        else:
            yield [caption_question(spec, spec.prompts, row) for row in rows]


def caption_question(spec: FeatureSpec, prompts: CaptionPrompts, row: Any) -> Question:
    """One picture, by its row of the index, and one of the spec's texts."""
    text = prompts.texts[keyed_number(spec.seed, row.key, "prompt") % len(prompts.texts)]
    return Question(row.key, text, (0, text), (row,))


def benchmark_questions(prompts: CobsatPrompts, files: PictureFiles) -> list[Question]:
    """CoBSAT's prompts in the words of the spec's prompt type; a thousand or so."""
    from thinkdiff.tasks.cobsat import prompts as enumerate_prompts
    from thinkdiff.tasks.cobsat_data import read_captions
    from thinkdiff.tasks.cobsat_prompts import content

    captions = read_captions(files, prompts)[0] if prompts.prompt_type == "caption" else {}
    return [benchmark_question(asked, content(prompts, asked, captions)) for asked in enumerate_prompts(prompts)]


def benchmark_question(asked: Prompt, content: Content) -> Question:
    """The question that some content makes."""
    names = tuple(part.path for part in content if not isinstance(part, str))
    numbers = iter(range(len(names)))
    parts = tuple(part if isinstance(part, str) else next(numbers) for part in content)
    shown = "".join(part if isinstance(part, str) else "<image>" for part in parts)
    return Question(asked.name, shown, parts, names, asked)


def second_question(prompts: CobsatPrompts, first: Question, analysis: str) -> Question:
    """What a chain of thought asks once the first question is answered."""
    from thinkdiff.tasks.cobsat_prompts import cot_answer

    assert first.asked is not None
    return benchmark_question(first.asked, cot_answer(prompts, first.asked, analysis))


def longest(spec: FeatureSpec, prompts: CobsatPrompts, question: Question) -> int:
    """Bytes of a question's text; of a chain of thought those of the second, whose analysis counts by its tokens."""
    if prompts.prompt_type != "cot":
        return len(question.prompt.encode())
    quoting = len(second_question(prompts, question, "").prompt.encode()) + spec.max_tokens
    return max(quoting, len(question.prompt.encode()))
