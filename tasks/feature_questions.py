"""What the VLM is asked: one picture and one text a request, or CoBSAT's interleaved prompts. No engine, no answers.

In: a spec, an ImageSet or the benchmark. Out: a plan, which counts the questions and says for a shard of them where
they are, and from such a place the questions. A plan holds no questions; a place is small, whatever their number.
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
    from thinkdiff.storage.root import Folder

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


@dataclass(frozen=True)
class Pictures:
    """Where questions have their pictures: in the shards of an ImageSet, or in files of a folder."""

    folder: Folder
    in_shards: bool
    _read: dict[str, bytes] = field(default_factory=dict, repr=False)

    def of(self, questions: Sequence[Question]) -> list[list[bytes]]:
        """The pictures of each question."""
        if self.in_shards:
            from thinkdiff.storage.image_shards import read_pictures

            pictures = iter(read_pictures(self.folder, [row for question in questions for row in question.images]))
            return [[next(pictures) for _ in question.images] for question in questions]
        return [[self._file(name) for name in question.images] for question in questions]

    def _file(self, name: str) -> bytes:
        if name not in self._read:
            try:
                self._read[name] = self.folder.read(name)
            except FileNotFoundError:
                raise InputError(
                    f"{self.folder.uri}/{name}: found no such picture, expected the benchmark's data set there. "
                    "Unpack the data set below the data root, or point the recipe's `images` at it."
                ) from None
        return self._read[name]


@dataclass(frozen=True)
class Plan:
    """How many questions there are, with at most how many pictures, and where. pictured: an ImageSet's rows, if any."""

    rows: int
    max_images: int
    pictures: Pictures
    pictured: PicturedRows | None = None

    def place(self, span: range) -> Place:
        """Where some neighbouring questions are: what `questions_at` needs to have them."""
        return span if self.pictured is None else self.pictured.pieces(span)


def planned(spec: FeatureSpec, images: ImageSet | None, run: Execution) -> Plan:
    """The questions of a spec, counted. Raises InputError when there are none."""
    from thinkdiff.storage.image_pieces import PicturedRows
    from thinkdiff.storage.root import Folder, locate

    if isinstance(spec.prompts, CobsatPrompts):
        parent, name = locate(run.data_root, spec.prompts.images)
        asked = benchmark_questions(spec.prompts)
        plan = Plan(len(asked), max((len(q.images) for q in asked), default=0), Pictures(parent / name, False))
    elif images is not None:
        pictured = PicturedRows(images)
        plan = Plan(len(pictured), 1, Pictures(Folder(images.uri), True), pictured)
    else:
        raise InputError("extract_features: found no images, expected those of fetch_images for captioning prompts.")
    if not plan.rows:
        raise InputError("extract_features: found no picture to ask about, expected at least one that was fetched.")
    return plan


def questions_at(spec: FeatureSpec, pictures: Pictures, places: Iterable[Place]) -> Iterator[list[Question]]:
    """The questions at each place. Raises StoreError when what is stored there is lost or altered."""
    if isinstance(spec.prompts, CobsatPrompts):
        asked = benchmark_questions(spec.prompts)
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


def benchmark_questions(prompts: CobsatPrompts) -> list[Question]:
    """CoBSAT's interleaved prompts over a folder of pictures; a thousand or so."""
    from thinkdiff.tasks.cobsat import ImageRef, interleaved
    from thinkdiff.tasks.cobsat import prompts as enumerate_prompts

    questions = []
    for prompt in enumerate_prompts(prompts):
        content = interleaved(prompts, prompt)
        names = tuple(part.path for part in content if isinstance(part, ImageRef))
        numbers = iter(range(len(names)))
        parts = tuple(next(numbers) if isinstance(part, ImageRef) else part for part in content)
        shown = "".join(part if isinstance(part, str) else "<image>" for part in parts)
        questions.append(Question(prompt.name, shown, parts, names))
    return questions
