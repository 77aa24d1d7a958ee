"""Stage 7. Everything above -> one self-contained HTML file, and its tables for the UI, for notes and for papers.

`report_reader` reads; what is computed from it and how it looks is in the nouns `report_*`. The page shows when and
where its ancestors were made, which its fingerprint does not know: a parent rebuilt to the same bytes leaves the report
cached.
"""

from __future__ import annotations

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.captions import CaptionSet
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.schemas.images import ImageSet
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.report import Report, ReportSpec
from thinkdiff.schemas.scores import Scorecard, ScoreSpec
from thinkdiff.tasks.step import Made, Work, step


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
    others: dict[str, Scorecard],
) -> Made:
    """Reads what the page shows and writes the page.

    `variants` are scorecards by `condition, seed N`, `trained` the aligners; of some there are no pictures. `others`
    are the scorecards of other systems by name.
    """
    from thinkdiff.storage.records import checked_object, spec_of
    from thinkdiff.tasks.cobsat import tasks
    from thinkdiff.tasks.published import comparable
    from thinkdiff.tasks.report_confusion import confusions
    from thinkdiff.tasks.report_failures import by_shots
    from thinkdiff.tasks.report_losses import grouped
    from thinkdiff.tasks.report_numbers import chance, conditions
    from thinkdiff.tasks.report_page import Content, page
    from thinkdiff.tasks.report_reader import (
        Cards,
        benchmark,
        parent,
        read_answers,
        read_cards,
        read_evidence,
        read_losses,
        read_scores,
        read_statistics,
    )
    from thinkdiff.tasks.report_tables import latex, tables

    queries = parent(work.run.root, media, "queries", FeatureSet)
    asked = benchmark(queries)
    order = [task.name for task in tasks(asked)]
    losses = checked_object(aligner, "losses.json")
    evidence = read_evidence(media, scores)
    cards = Cards(work.run.root, work.run.data_root, asked, media, evidence, work.log)
    cards.join(others)
    content = Content(
        title=spec.title,
        fingerprint=work.folder.uri.rsplit("/", 1)[1],
        scores=read_scores(scores, order).joined(read_cards(others, order)),
        chance=chance(asked),
        examples=list(cards.shown(spec.examples, spec.failures)),
        answers=read_answers(features, images, spec.answers),
        statistics=read_statistics(features),
        training=losses["training"],
        validation=losses["validation"],
        conditions=conditions(read_cards(variants, order)),
        artifacts={
            "captions": captions,
            "images": images,
            "features": features,
            "aligner": aligner,
            "queries": queries,
            "media": media,
            "scores": scores,
        },
        variants={**variants, **others},
        readings=losses["readings"][-1]["rows"] if losses.get("readings") else [],
        trained=grouped({name: read_losses(one) for name, one in trained.items()}),
        comparable=comparable(asked, spec_of(scores, ScoreSpec)),
        failed=by_shots(cards.causes, evidence.prompts),
        confused=confusions(list(evidence.verdicts.values()), asked.families, "aligned"),
        second=bool(evidence.second),
        read_back=bool(evidence.readings),
    )
    data, notes = page(content), tables(content)
    return Made(
        files=(
            work.folder.write("report.html", data),
            work.folder.write("tables.md", notes.encode()),
            work.folder.write("tables.tex", latex(content.scores, content.comparable).encode()),
        ),
        counts={
            "bytes": len(data),
            "examples": len(content.examples),
            "answers": len(content.answers),
            "variants": len(variants),
            "others": len(others),
        },
        stats={
            "scores": scores.stats["scores"],
            "failures": {str(shots): dict(causes) for shots, causes in content.failed.items()},
        },
        page=notes,
    )
