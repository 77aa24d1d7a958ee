"""The flow behind `thinkdiff/gallery`: ThinkDiff-CLIP on a folder of pictures and prompts, to tables and a page.

It trains the recipe's aligner if the root has none, gathers the folder, draws it, also by the controls that the recipe
asks for, takes in the pictures of other systems, measures and shows all of them. What is in the store ends in `Cached`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import flow

from thinkdiff.flows import planning, recipes
from thinkdiff.flows.thinkdiff_flow import Ledger
from thinkdiff.schemas.aligner import AlignerCheckpoint, AlignerSpec
from thinkdiff.schemas.artifact import Artifact, Execution, Stage
from thinkdiff.schemas.errors import SpecError
from thinkdiff.schemas.gallery import GalleryInputs, GalleryPlan, GalleryPrompt, GallerySource
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.pipeline import PipelineSpec
from thinkdiff.schemas.plan import Finding, Plan
from thinkdiff.tasks.draw_gallery import draw_gallery
from thinkdiff.tasks.extract_features import extract_features
from thinkdiff.tasks.fetch_images import fetch_images
from thinkdiff.tasks.gather_gallery import gather_gallery
from thinkdiff.tasks.import_gallery import import_gallery
from thinkdiff.tasks.render_gallery import render_gallery
from thinkdiff.tasks.sample_captions import sample_captions
from thinkdiff.tasks.score_gallery import score_gallery
from thinkdiff.tasks.train_aligner import train_aligner

OURS, UNTRAINED, WORDS = "ThinkDiff-CLIP", "untrained aligner", "words alone"


class Others:
    """Other systems' pictures of a gallery: a folder, and what each system has in it now.

    Raises SpecError for a system of a name that is ours, InputError where there is no system or one without pictures.
    """

    def __init__(self, folder: str, prompts: Sequence[GalleryPrompt]) -> None:
        from thinkdiff.tasks.gallery_files import given_gallery, systems

        self.folder, names = folder, systems(folder)
        if taken := sorted({OURS, UNTRAINED, WORDS} & set(names)):
            raise SpecError(f"{folder}: found a system called {taken[0]!r}, expected another name. It is taken.")
        self.specs = {name: given_gallery(folder, name, prompts) for name in names}

    def imported(self, run: Execution, ledger: Ledger, inputs: GalleryInputs) -> dict[str, MediaSet]:
        """The systems as artifacts, by their names."""
        place = run.model_copy(update={"given": self.folder})
        return {
            name: ledger.add(import_gallery(place, spec, inputs), role=f"pictures of {name}")
            for name, spec in self.specs.items()
        }


@flow(name="thinkdiff", flow_run_name="{recipe}: gallery", persist_result=False, validate_parameters=True)
def gallery(
    recipe: str = "mini-clip",
    folder: str | None = None,
    beside: str | None = None,
    spec: PipelineSpec | None = None,
    run: Execution = Execution(),  # noqa: B008 (frozen)
    refresh: list[Stage] | None = None,
) -> dict[str, Any]:
    """Draws, measures and shows a gallery under `run.root`.

    Args:
        recipe: a named experiment with a gallery, as mini-clip and clip-paper. Only a label when `spec` is given.
        folder: the gallery, with `prompts.jsonl`, a path or URL; none: the miniature's own.
        beside: a folder of other systems' pictures, `<system>/<prompt>.png` or `.jpg`.
        spec: a whole pipeline instead of the recipe's.
        run: where and how fast to run; never changes a result.
        refresh: stages to compute again although their records are there.
    """
    from thinkdiff.storage.root import Folder
    from thinkdiff.tasks.gallery_files import gallery_files

    spec = spec or recipes.recipe(recipe)
    side = asked(spec).longest_side
    if refresh:
        run = run.model_copy(update={"refresh": tuple(refresh)})
    run = recipes.execution(run, spec)
    recipes.prepare(spec, run)
    folder, ledger = folder or recipes.gallery_folder(spec, run), Ledger()
    files = gallery_files(Folder.source(folder))  # a folder that cannot be used ends it before it trains
    source = GallerySource(digest=files.digest, longest_side=side)
    others = Others(beside, files.prompts) if beside else None
    run = run.model_copy(update={"given": folder})
    planning.must_be_possible(lambda: stages(spec, run, source, others, Ledger()), spec, run)
    scores, page = stages(spec, run, source, others, ledger)
    result = ledger.result().model_dump(mode="json")
    return result | {"scores": scores.stats["scores"], "report": page.path("gallery.html")}


def asked(spec: PipelineSpec) -> GalleryPlan:
    """The gallery of a spec. Raises SpecError where it has none."""
    if spec.gallery is None:
        raise SpecError(f"{spec.name}: found no gallery in the recipe, expected one. Take mini-clip or clip-paper.")
    return spec.gallery


def planned(spec: PipelineSpec, run: Execution, folder: str | None, price: float | None = None) -> Plan:
    """What the flow would need for a gallery in `folder`; nothing is made. price: of a GPU hour."""
    from thinkdiff.tasks.gallery_files import gallery_source

    side = asked(spec).longest_side
    source = gallery_source(folder, side) if folder else GallerySource(digest="0" * 64, longest_side=side)
    run = recipes.execution(run, spec)
    plan = planning.rehearsed(lambda: stages(spec, run, source, None, Ledger()), spec, run, price)
    if folder or spec.world is not None:  # the miniature writes its own
        return plan
    lacking = Finding(
        stage="gather_gallery", what="gallery", level="blocks", found="no folder",
        expected="one with pictures and prompts.jsonl", todo="Name it with --folder.",
    )  # fmt: skip
    return plan.model_copy(update={"findings": (lacking, *plan.findings)})


def stages(
    spec: PipelineSpec, run: Execution, source: GallerySource, others: Others | None, ledger: Ledger
) -> tuple[Artifact, Artifact]:
    """All stages up to the gallery's scores and its page."""
    plan, trained = asked(spec), aligners(spec, run, ledger)
    inputs = ledger.add(gather_gallery(run, source))
    systems = drawn(plan, run, ledger, inputs, trained)
    if others is not None:
        systems |= others.imported(run, ledger, inputs)
    scores = ledger.add(score_gallery(run, plan.scores, inputs, systems))
    return scores, ledger.add(render_gallery(run, plan.page, inputs, systems, scores))


def aligners(spec: PipelineSpec, run: Execution, ledger: Ledger) -> dict[str, AlignerCheckpoint]:
    """The recipe's aligner, and the one that was never trained if it is asked for."""
    captions = ledger.add(sample_captions(run, spec.captions))
    images = ledger.add(fetch_images(run, spec.images, captions))
    features = ledger.add(extract_features(run, spec.features, images))
    wanted: dict[str, AlignerSpec] = {OURS: spec.aligner}
    if asked(spec).untrained:
        wanted[UNTRAINED] = spec.aligner.but(steps=0)
    return {name: ledger.add(train_aligner(run, one, features), role=name) for name, one in wanted.items()}


def drawn(
    plan: GalleryPlan, run: Execution, ledger: Ledger, inputs: GalleryInputs, trained: dict[str, AlignerCheckpoint]
) -> dict[str, MediaSet]:
    """The gallery by each aligner, and by the words alone where that is asked for and any prompt has words."""
    systems = {
        name: ledger.add(draw_gallery(run, plan.draw, inputs, aligner), role=f"pictures of {name}")
        for name, aligner in trained.items()
    }
    if plan.text_alone and inputs.counts.get("with_words", 1):  # not there yet: taken to have some
        said = plan.draw.but(reads="text")
        systems[WORDS] = ledger.add(draw_gallery(run, said, inputs, None), role=f"pictures of {WORDS}")
    return systems
