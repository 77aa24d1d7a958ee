"""Reads what the report shows: scores, verdicts, pictures, losses, records.

In: artifacts. Out: the values of the nouns `report_*`. What it reads is checked against the records; nothing
is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import Artifact
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import InputError, StoreError
from thinkdiff.schemas.features import STATISTICS, FeatureSet, FeatureSpec, FeatureStatistics
from thinkdiff.schemas.images import ImageSet
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.scores import Scorecard
from thinkdiff.storage.feature_store import FeatureReader
from thinkdiff.storage.image_pieces import PicturedRows, PieceReader
from thinkdiff.storage.image_shards import read_pictures
from thinkdiff.storage.media_files import MediaReader
from thinkdiff.storage.records import artifact_folder, checked_bytes, checked_object, foreign, read_record, spec_of
from thinkdiff.storage.root import Folder
from thinkdiff.storage.score_tables import Verdict, read_prompts, read_readings, read_second_verdicts, read_verdicts
from thinkdiff.tasks.cobsat import Prompt, display, image_path, prompts
from thinkdiff.tasks.cobsat_data import find_data
from thinkdiff.tasks.failures import Cause, Evidence, causes
from thinkdiff.tasks.report_examples import Answer, Example, choose, choose_failures
from thinkdiff.tasks.report_failures import BLAMED
from thinkdiff.tasks.report_features import Spoken
from thinkdiff.tasks.report_numbers import Cell, Scores

A = TypeVar("A", bound=Artifact)
GROUPS = {"mean": "mean", "seen": "seen", "held_out": "held-out"}


def parent(root: str, child: Artifact, role: str, kind: type[A]) -> A:
    """An artifact's parent, looked up in this root. Raises StoreError when it is not there."""
    named = child.parents[role]
    found = read_record(artifact_folder(root, named.stage, named.fingerprint), kind)
    if found is None:
        raise StoreError(
            f"{child.uri}: found its {role} {named.stage}/{named.fingerprint} missing from {root}, expected "
            "it there. The report needs the questions; run the stages before it again."
        )
    return found


def benchmark(queries: FeatureSet) -> CobsatPrompts:
    """The questions that were asked. Raises InputError when the features are of captioning prompts."""
    asked = spec_of(queries, FeatureSpec).prompts
    if not isinstance(asked, CobsatPrompts):
        raise InputError(f"{queries.uri}: found captioning prompts, expected those of the benchmark.")
    return asked


def read_scores(card: Scorecard, order: list[str]) -> Scores:
    """A scorecard's `scores.json` as cells, its tasks in the order of the benchmark. Raises StoreError."""
    try:
        return cells_of(checked_object(card, "scores.json"), order)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise foreign(card, "scores.json") from None


def cells_of(stored: dict[str, Any], order: list[str]) -> Scores:
    """What `scores.json` holds, as cells."""
    cells: dict[tuple[str, int, str], Cell] = {}
    tasks: set[str] = set()
    shots_found: set[int] = set()
    for method, by_shots in stored["methods"].items():
        for shots, groups in by_shots.items():
            shots_found.add(int(shots))
            tasks |= set(groups["tasks"])
            named: dict[str, Any] = {GROUPS[key]: groups[key] for key in GROUPS} | groups["tasks"]
            for group, cell in named.items():
                if cell["pictures"]:
                    cells[method, int(shots), group] = Cell(**cell)
    ordered = tuple(task for task in order if task in tasks)
    return Scores(tuple(stored["methods"]), tuple(sorted(shots_found)), ordered, stored["confidence"], cells)


def read_losses(aligner: AlignerCheckpoint) -> dict[str, list[float]]:
    """The losses of every step, and those on held-out rows. Raises StoreError."""
    found = checked_object(aligner, "losses.json")
    try:
        return {"training": found["training"], "validation": [loss for _, loss in found["validation"]]}
    except (LookupError, TypeError, ValueError):
        raise foreign(aligner, "losses.json") from None


def read_answers(features: FeatureSet, images: ImageSet, count: int) -> list[Spoken]:
    """The first rows of a feature set with their pictures."""
    reader = FeatureReader(features)
    rows = reader.rows(range(min(count, len(reader))), inputs=False)
    folder, pieces = Folder(images.uri), PicturedRows(images).pieces(range(len(rows)))  # rows are those with a picture
    pictured = PieceReader(folder).rows(pieces)
    pictures = {row.key: data for row, data in zip(pictured, read_pictures(folder, pictured), strict=True)}
    return [Spoken(row.key, pictures.get(row.key), row.prompt, row.text) for row in rows]


def read_statistics(features: FeatureSet) -> FeatureStatistics | None:
    """The statistics beside a feature set; None where it was made before there were any. Raises StoreError."""
    if not features.names(STATISTICS):
        return None
    try:
        return FeatureStatistics.model_validate_json(checked_bytes(features, STATISTICS))
    except ValidationError:
        raise foreign(features, STATISTICS) from None


def read_evidence(media: MediaSet, scores: Scorecard) -> Evidence:
    """What is known of every prompt: the VLM's words, the verdicts, what is read back."""
    second = read_second_verdicts(scores)
    return Evidence(
        prompts={row.name: row for row in read_prompts(media)},
        verdicts={(row.method, row.name): row for row in read_verdicts(scores)},
        second={(row.method, row.name): row for row in second},
        readings=read_readings(media),
    )


class Cards:
    """Makes the questions that are shown, with their demonstrations, drawn pictures, verdicts and texts.

    Shown are the methods that were judged, and other systems by their names; an answer in words has a verdict and no
    picture.
    """

    def __init__(
        self, root: str, data: str, asked: CobsatPrompts, media: MediaSet, evidence: Evidence, log: Any
    ) -> None:
        self.root, self.asked, self.evidence, self.log = root, asked, evidence, log
        self.verdicts: dict[tuple[str, str], Verdict] = dict(evidence.verdicts)
        reader = MediaReader(media)
        self.readers = {method: (reader, method) for method, _ in evidence.verdicts}
        self.causes: dict[str, Cause] = causes(evidence)
        try:
            self.files = find_data(data, asked.images, asked)
        except InputError as error:
            log.warning("render_report: %s", error)
            self.files = None

    def join(self, others: Mapping[str, Scorecard]) -> None:
        """Takes the pictures of other systems in."""
        for name, card in others.items():
            media = parent(self.root, card, "media", MediaSet)
            rows = read_verdicts(card)
            (method,) = {row.method for row in rows}
            self.readers[name] = MediaReader(media), method
            self.verdicts |= {(name, row.name): row for row in rows}

    def shown(self, count: int, failed: int) -> Iterator[Example]:
        """`count` questions and `failed` more that failed, in the order of the benchmark."""
        every = prompts(self.asked)
        chosen = {prompt.name for prompt in choose(every, count)}
        left = [prompt for prompt in every if prompt.name not in chosen]
        chosen |= {prompt.name for prompt in choose_failures(left, self.causes, failed)}
        return (self.example(prompt) for prompt in every if prompt.name in chosen)

    def example(self, prompt: Prompt) -> Example:
        """One question with everything that its card shows."""
        blamed = self.causes.get(prompt.name)
        return Example(
            prompt=prompt,
            expected=f"{display(prompt.target_value)} {display(prompt.target_thing)}",
            demos=tuple(
                (d.word, self.demonstration(image_path(prompt.family, d.value, d.thing))) for d in prompt.demos
            ),
            text=self.evidence.prompts[prompt.name].answer,
            answers=tuple(self.answers(prompt)),
            reading=self.evidence.readings.get(prompt.name),
            blamed=BLAMED[blamed] if blamed else "",
        )

    def answers(self, prompt: Prompt) -> Iterator[Answer]:
        """What each system drew; of one that drew nothing the place stays empty."""
        for name, (reader, method) in self.readers.items():
            seen = self.verdicts[name, prompt.name]
            picture = reader.read(method, prompt.name) if reader.has(method, prompt.name) else None
            yield Answer(name, picture, seen.right, f"{display(seen.value)} {display(seen.thing)}".strip() or "nothing")

    def demonstration(self, path: str) -> bytes | None:
        """A picture of the data set, None when it is not there."""
        found = self.files.read([path]) if self.files else {}
        if path not in found:
            self.log.warning("render_report: found no %s in %s; its place stays empty.", path, self.asked.images)
        return found.get(path)


def read_cards(cards: Mapping[str, Scorecard], order: Sequence[str]) -> dict[str, Scores]:
    """Scorecards by their names."""
    return {name: read_scores(card, list(order)) for name, card in cards.items()}
