"""Stage 7. Everything above -> one self-contained HTML file, and its tables for the Prefect UI.

This file reads: scores, verdicts, pictures, losses, records. What is computed from them and how it looks is in the
nouns `report_*`. The page shows when and where its ancestors were made, which its fingerprint does not know: a parent
rebuilt to the same bytes leaves the report cached.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import Artifact
from thinkdiff.schemas.captions import CaptionSet
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import InputError, StoreError
from thinkdiff.schemas.features import STATISTICS, FeatureSet, FeatureSpec, FeatureStatistics
from thinkdiff.schemas.images import ImageSet
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.report import Report, ReportSpec
from thinkdiff.schemas.scores import Scorecard
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    from thinkdiff.tasks.report_examples import Example
    from thinkdiff.tasks.report_features import Spoken
    from thinkdiff.tasks.report_numbers import Scores

A = TypeVar("A", bound=Artifact)
GROUPS = {"mean": "mean", "seen": "seen", "held_out": "held-out"}


@step(Report)
def render_report(
    work: Work,
    spec: ReportSpec,
    captions: CaptionSet,
    images: ImageSet,
    features: FeatureSet,
    aligner: AlignerCheckpoint,
    media: MediaSet,
    scores: Scorecard,
    variants: dict[str, Scorecard],
    trained: dict[str, AlignerCheckpoint],
) -> Made:
    """Reads what the page shows and writes the page.

    `variants` are scorecards by `condition, seed N`, `trained` the aligners; of some there are no pictures.
    """
    from thinkdiff.storage.records import checked_bytes
    from thinkdiff.tasks.cobsat import tasks
    from thinkdiff.tasks.report_ablations import markdown as ablation_tables
    from thinkdiff.tasks.report_accuracy import markdown as accuracy_tables
    from thinkdiff.tasks.report_losses import grouped
    from thinkdiff.tasks.report_losses import markdown as loss_tables
    from thinkdiff.tasks.report_numbers import chance, conditions
    from thinkdiff.tasks.report_page import Content, page

    queries = parent(work, media, "queries", FeatureSet)
    asked = benchmark(queries)
    order = [task.name for task in tasks(asked)]
    losses = json.loads(checked_bytes(aligner, "losses.json"))
    content = Content(
        title=spec.title,
        fingerprint=work.folder.uri.rsplit("/", 1)[1],
        scores=read_scores(scores, order),
        chance=chance(asked),
        examples=list(read_examples(work, asked, spec.examples, media, scores)),
        answers=read_answers(features, images, spec.answers),
        statistics=read_statistics(features),
        training=losses["training"],
        validation=losses["validation"],
        conditions=conditions({name: read_scores(card, order) for name, card in variants.items()}),
        artifacts={
            "captions": captions,
            "images": images,
            "features": features,
            "aligner": aligner,
            "queries": queries,
            "media": media,
            "scores": scores,
        },
        variants=variants,
        readings=losses["readings"][-1]["rows"] if losses.get("readings") else [],
        trained=grouped({name: read_losses(one) for name, one in trained.items()}),
    )
    data = page(content)
    return Made(
        files=(work.folder.write("report.html", data),),
        counts={
            "bytes": len(data),
            "examples": len(content.examples),
            "answers": len(content.answers),
            "variants": len(variants),
        },
        stats={"scores": scores.stats["scores"]},
        page="\n\n".join(
            (
                accuracy_tables(content.scores, content.chance),
                ablation_tables(content.conditions),
                loss_tables(content.trained),
            )
        ),
    )


def parent(work: Work, child: Artifact, role: str, kind: type[A]) -> A:
    """An artifact's parent, looked up in this root. Raises StoreError when it is not there."""
    from thinkdiff.storage.records import artifact_folder, read_record

    named = child.parents[role]
    found = read_record(artifact_folder(work.run.root, named.stage, named.fingerprint), kind)
    if found is None:
        raise StoreError(
            f"{child.uri}: found its {role} {named.stage}/{named.fingerprint} missing from {work.run.root}, expected "
            "it there. The report needs the questions; run the stages before it again."
        )
    return found


def benchmark(queries: FeatureSet) -> CobsatPrompts:
    """The questions that were asked. Raises InputError when the features are of captioning prompts."""
    asked = FeatureSpec.model_validate(queries.spec).prompts
    if not isinstance(asked, CobsatPrompts):
        raise InputError(f"{queries.uri}: found captioning prompts, expected those of the benchmark.")
    return asked


def read_scores(card: Scorecard, order: list[str]) -> Scores:
    """A scorecard's `scores.json` as cells, its tasks in the order of the benchmark."""
    from thinkdiff.storage.records import checked_bytes
    from thinkdiff.tasks.report_numbers import Cell, Scores

    stored = json.loads(checked_bytes(card, "scores.json"))
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
    """The losses of every step, and those on held-out rows."""
    from thinkdiff.storage.records import checked_bytes

    found = json.loads(checked_bytes(aligner, "losses.json"))
    return {"training": found["training"], "validation": [loss for _, loss in found["validation"]]}


def read_answers(features: FeatureSet, images: ImageSet, count: int) -> list[Spoken]:
    """The first rows of a feature set with their pictures."""
    from thinkdiff.storage.feature_store import FeatureReader
    from thinkdiff.storage.image_pieces import PicturedRows, PieceReader
    from thinkdiff.storage.image_shards import read_pictures
    from thinkdiff.storage.root import Folder
    from thinkdiff.tasks.report_features import Spoken

    reader = FeatureReader(features)
    rows = reader.rows(range(min(count, len(reader))), inputs=False)
    folder, pieces = Folder(images.uri), PicturedRows(images).pieces(range(len(rows)))  # rows are those with a picture
    pictured = PieceReader(folder).rows(pieces)
    pictures = {row.key: data for row, data in zip(pictured, read_pictures(folder, pictured), strict=True)}
    return [Spoken(row.key, pictures.get(row.key), row.prompt, row.text) for row in rows]


def read_statistics(features: FeatureSet) -> FeatureStatistics | None:
    """The statistics beside a feature set; None where it was made before there were any."""
    from thinkdiff.storage.records import checked_bytes

    if not features.names(STATISTICS):
        return None
    return FeatureStatistics.model_validate_json(checked_bytes(features, STATISTICS))


def read_examples(
    work: Work, asked: CobsatPrompts, count: int, media: MediaSet, scores: Scorecard
) -> Iterator[Example]:
    """The chosen prompts with their demonstrations, drawn pictures, verdicts and texts."""
    from thinkdiff.storage.media_files import MediaReader
    from thinkdiff.storage.score_tables import read_prompts, read_verdicts
    from thinkdiff.tasks.cobsat import display, image_path, prompts
    from thinkdiff.tasks.cobsat_data import find_data
    from thinkdiff.tasks.report_examples import Answer, Example, choose

    reader = MediaReader(media)
    answers = {row.name: row.answer for row in read_prompts(media)}
    verdicts = {(row.method, row.name): row for row in read_verdicts(scores)}
    methods = [str(method) for method in media.stats["methods"]]

    try:
        files = find_data(work.run.data_root, asked.images, asked)
    except InputError as error:
        work.log.warning("render_report: %s", error)
        files = None

    def demonstration(path: str) -> bytes | None:
        found = files.read([path]) if files else {}
        if path not in found:
            work.log.warning("render_report: found no %s in %s; its place stays empty.", path, asked.images)
        return found.get(path)

    for prompt in choose(prompts(asked), count):
        seen = [verdicts[method, prompt.name] for method in methods]
        yield Example(
            prompt=prompt,
            expected=f"{display(prompt.target_value)} {display(prompt.target_thing)}",
            demos=tuple((d.word, demonstration(image_path(prompt.family, d.value, d.thing))) for d in prompt.demos),
            text=answers[prompt.name],
            answers=tuple(
                Answer(v.method, reader.read(v.method, prompt.name), v.right, f"{display(v.value)} {display(v.thing)}")
                for v in seen
            ),
        )
