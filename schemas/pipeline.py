"""A whole experiment as one value: the spec of each stage, and the variants of an ablation.

The run form of a deployment is built from this.
"""

from __future__ import annotations

from pydantic import Field

from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.artifact import Frozen
from thinkdiff.schemas.captions import CaptionSpec
from thinkdiff.schemas.features import FeatureSpec
from thinkdiff.schemas.gallery import GalleryPlan
from thinkdiff.schemas.images import ImageSpec
from thinkdiff.schemas.media import MediaSpec
from thinkdiff.schemas.report import ReportSpec
from thinkdiff.schemas.scores import ScoreSpec


class World(Frozen):
    """The miniature's data, written below the data root when they are not there yet."""

    folder: str = Field(description="below the data root; its name carries the seeds")
    seed: int = Field(default=0, ge=0, description="of the collections")
    rows: int = Field(default=9000, ge=30, description="rows in the three collections together")
    benchmark_seed: int = Field(default=0, ge=0, description="of the benchmark's pictures")
    url_base: str | None = Field(default=None, description="where the pictures' URLs lead; none: nowhere")


class Variant(Frozen):
    """One cell of an ablation: another aligner, perhaps another decoder."""

    name: str = Field(description="the condition, e.g. 'no masking'; variants of one name differ by seed")
    aligner: AlignerSpec
    media: MediaSpec | None = Field(default=None, description="none: the aligner's losses are all that is looked at")
    features: FeatureSpec | None = Field(default=None, description="what it is trained on; none: the pipeline's own")
    queries: FeatureSpec | None = Field(
        default=None, description="the benchmark's prompts through the VLM; none: the pipeline's own"
    )


class PipelineSpec(Frozen):
    """captions -> images -> features -> aligner -> media -> scores -> report, and the variants beside it."""

    name: str
    world: World | None = None
    captions: CaptionSpec
    images: ImageSpec
    features: FeatureSpec
    aligner: AlignerSpec
    queries: FeatureSpec | None = Field(default=None, description="the benchmark's prompts through the VLM")
    media: MediaSpec | None = Field(default=None, description="none: the pipeline ends with train_aligner")
    scores: ScoreSpec | None = Field(default=None, description="none: the pipeline ends with generate_media")
    report: ReportSpec = ReportSpec()
    gallery: GalleryPlan | None = Field(default=None, description="for `thinkdiff gallery`; none: it has none")
    variants: tuple[Variant, ...] = ()
    others: tuple[str, ...] = Field(
        default=(),
        description="pictures of other systems to score beside the own ones: names that `thinkdiff import-media` gave "
        "them, or starts of their fingerprints",
    )
