"""The flow `thinkdiff`: builds a stage and whatever it needs; what is in the store already ends in a state `Cached`.

Every deployment is this flow with other parameters. It returns what `thinkdiff run --json` prints.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from pydantic import Field

from thinkdiff.flows import planning, recipes
from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import STAGES, Artifact, Execution, Frozen, PipelineStage, Stage
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import SpecError
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.pipeline import PipelineSpec, Variant
from thinkdiff.schemas.plan import Plan
from thinkdiff.schemas.scores import Scorecard
from thinkdiff.tasks.extract_features import extract_features
from thinkdiff.tasks.fetch_images import fetch_images
from thinkdiff.tasks.generate_media import generate_media
from thinkdiff.tasks.render_report import render_report
from thinkdiff.tasks.sample_captions import sample_captions
from thinkdiff.tasks.score_cobsat import score_cobsat
from thinkdiff.tasks.step import Outcome
from thinkdiff.tasks.train_aligner import train_aligner


class StageResult(Frozen):
    """One line of a run: which stage, how it ended, where its artifact is."""

    stage: Stage
    role: str = Field(description="what the stage was run for; the seven stages of the pipeline have their own name")
    state: str
    fingerprint: str
    digest: str
    uri: str
    seconds: float


class RunResult(Frozen):
    """What a run leaves: its stages in order, the scores if they were made, the report if it was."""

    stages: list[StageResult]
    scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    others: dict[str, dict[str, float]] = Field(default_factory=dict, description="by other system, by shots")
    report: str | None = None


class Ledger:
    """Collects outcomes in order."""

    def __init__(self) -> None:
        self.lines: list[StageResult] = []

    def add(self, outcome: Outcome[Any], role: str = "") -> Any:
        """Notes an outcome and hands its artifact on."""
        artifact: Artifact = outcome.artifact
        self.lines.append(
            StageResult(
                stage=artifact.stage, role=role or artifact.stage, state=outcome.state,
                fingerprint=artifact.fingerprint, digest=artifact.digest, uri=artifact.uri,
                seconds=round(outcome.seconds, 3),
            )
        )  # fmt: skip
        return artifact

    def result(
        self,
        scores: Scorecard | None = None,
        others: dict[str, Scorecard] | None = None,
        report: Artifact | None = None,
    ) -> RunResult:
        """The run as a value."""
        told = {name: card.stats.get("scores", {}) for name, card in (others or {}).items()}
        return RunResult(
            stages=self.lines,
            scores=scores.stats.get("scores", {}) if scores else {},
            others={name: by_shots for name, methods in told.items() for by_shots in methods.values()},
            report=report.path("report.html") if report else None,
        )


@flow(name="thinkdiff", flow_run_name="{recipe}: {target}", persist_result=False, validate_parameters=True)
def thinkdiff(
    recipe: str = "mini",
    target: PipelineStage = "render_report",
    spec: PipelineSpec | None = None,
    run: Execution = Execution(),  # noqa: B008 (frozen)
    refresh: list[PipelineStage] | None = None,
    others: list[str] | None = None,
) -> dict[str, Any]:
    """Builds `target` of a recipe, or of a spec of one's own, under `run.root`.

    Args:
        recipe: a named experiment; see `thinkdiff recipes`. Only a label when `spec` is given.
        target: the last stage to build.
        spec: a whole pipeline instead of the recipe's.
        run: where and how fast to run; never changes a result.
        refresh: stages to compute again although their records are there.
        others: imported pictures of other systems to score, too, beside those that the spec names.
    """
    spec = spec or recipes.recipe(recipe)
    spec = spec.model_copy(update={"others": (*spec.others, *(others or ()))})
    if refresh:
        run = run.model_copy(update={"refresh": tuple(refresh)})
    must_reach(spec, target)
    run, last = recipes.execution(run, spec), STAGES.index(target)
    planning.must_be_possible(lambda: pipeline(spec, last, run), spec, run)
    recipes.prepare(spec, run)
    return pipeline(spec, last, run).model_dump(mode="json")


def planned(spec: PipelineSpec, target: PipelineStage, run: Execution, price: float | None = None) -> Plan:
    """What the flow would need for `target`; nothing is made. price: of a GPU hour."""
    must_reach(spec, target)
    run, last = recipes.execution(run, spec), STAGES.index(target)
    return planning.rehearsed(lambda: pipeline(spec, last, run), spec, run, price)


def last_stage(spec: PipelineSpec) -> PipelineStage:
    """The last stage that a spec has."""
    if spec.queries is None or spec.media is None:
        return "train_aligner"
    return "generate_media" if spec.scores is None else "render_report"


def must_reach(spec: PipelineSpec, target: PipelineStage) -> None:
    """Raises SpecError when a spec lacks what a target needs."""
    if (spec.queries is None or spec.media is None) and STAGES.index(target) > STAGES.index("train_aligner"):
        raise SpecError(
            f"{spec.name}: found no benchmark in the spec, expected `queries` and `media` for {target}. "
            "Build up to train_aligner, or give a spec with both."
        )
    if spec.scores is None and STAGES.index(target) > STAGES.index("generate_media"):
        raise SpecError(
            f"{spec.name}: found no judge in the spec, expected one for {target}. "
            "Build up to generate_media, or give a spec with `scores`."
        )


def pipeline(spec: PipelineSpec, last: int, run: Execution) -> RunResult:
    """The stages in order, up to number `last` of STAGES."""
    rivals = imported_media(spec, run) if last >= STAGES.index("score_cobsat") else {}
    ledger = Ledger()
    captions = ledger.add(sample_captions(run, spec.captions))
    if last < STAGES.index("fetch_images"):
        return ledger.result()
    images = ledger.add(fetch_images(run, spec.images, captions))
    if last < STAGES.index("extract_features"):
        return ledger.result()
    features = ledger.add(extract_features(run, spec.features, images))
    if last < STAGES.index("train_aligner"):
        return ledger.result()
    aligner = ledger.add(train_aligner(run, spec.aligner, features))
    if last < STAGES.index("generate_media"):
        built_variants(spec, last, run, ledger, images, features, None)
        return ledger.result()
    assert spec.queries is not None
    assert spec.media is not None
    queries = ledger.add(extract_features(run, spec.queries, None), role="benchmark prompts")
    media = ledger.add(generate_media(run, spec.media, queries, aligner))
    scores, others = None, dict[str, Scorecard]()
    if last >= STAGES.index("score_cobsat"):
        assert spec.scores is not None
        scores = ledger.add(score_cobsat(run, spec.scores, media))
        for name, rival in rivals.items():
            others[name] = ledger.add(score_cobsat(run, spec.scores, rival), role=f"scores of {name}")
    variants = built_variants(spec, last, run, ledger, images, features, queries)
    if scores is None or last < STAGES.index("render_report"):
        return ledger.result(scores, others)
    cards, trained = variants if spec.variants else found_variants(spec.name, run, images)
    report = ledger.add(
        render_report(run, spec.report, captions, images, features, aligner, media, scores, cards, trained, others)
    )
    return ledger.result(scores, others, report)


def imported_media(spec: PipelineSpec, run: Execution) -> dict[str, MediaSet]:
    """The pictures of other systems that a spec names, by name. Raises SpecError for those that are not there."""
    from thinkdiff.tasks.given_pictures import imported

    asked, found = spec.queries.prompts if spec.queries else None, dict[str, MediaSet]()
    if not isinstance(asked, CobsatPrompts):
        return found
    for reference in spec.others:
        media = imported(run.root, reference, asked)
        name = str(media.spec["name"])
        found[f"{name} {media.fingerprint[:12]}" if name in found else name] = media
    return found


def built_variants(
    spec: PipelineSpec, last: int, run: Execution, ledger: Ledger, images: Any, features: Any, queries: Any
) -> tuple[dict[str, Scorecard], dict[str, AlignerCheckpoint]]:
    """The variants as far as stage `last`: their scorecards, if it is so far, and aligners, by condition and seed."""
    cards: dict[str, Scorecard] = {}
    trained: dict[str, AlignerCheckpoint] = {}
    for variant in spec.variants:
        name, seen, asked = variant_name(variant), features, queries
        if variant.features is not None:
            seen = ledger.add(extract_features(run, variant.features, images), role=f"features of {variant.name}")
        aligner = trained[name] = ledger.add(train_aligner(run, variant.aligner, seen), role=name)
        if variant.media is None or last < STAGES.index("generate_media"):
            continue
        if variant.queries is not None:
            asked = ledger.add(extract_features(run, variant.queries, None), role=f"prompts of {variant.name}")
        media = ledger.add(generate_media(run, variant.media, asked, aligner), role=name)
        if spec.scores is not None and last >= STAGES.index("score_cobsat"):
            cards[name] = ledger.add(score_cobsat(run, spec.scores, media), role=name)
    return cards, trained


def found_variants(name: str, run: Execution, images: Any) -> tuple[dict[str, Scorecard], dict[str, AlignerCheckpoint]]:
    """What `built_variants` would give of a recipe's ablations that are under the root; nothing is computed."""
    found: dict[str, Scorecard] = {}
    trained: dict[str, AlignerCheckpoint] = {}
    study = recipes.study(name)
    if study is None:
        return found, trained
    for variant in study.variants:
        features = extract_features.lookup(run, variant.features or study.features, images)
        aligner = train_aligner.lookup(run, variant.aligner, features) if features else None
        if aligner is None:
            continue
        trained[variant_name(variant)] = aligner
        asked = variant.queries or study.queries
        queries = extract_features.lookup(run, asked, None) if asked else None
        media = generate_media.lookup(run, variant.media, queries, aligner) if variant.media and queries else None
        scores = score_cobsat.lookup(run, study.scores, media) if media and study.scores else None
        if scores is not None:
            found[variant_name(variant)] = scores
    return found, trained


def variant_name(variant: Variant) -> str:
    """As the report groups them."""
    return f"{variant.name}, seed {variant.aligner.seed}"
