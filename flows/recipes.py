"""Named experiments as functions that return a PipelineSpec; nothing here runs or reads data.

`mini` is the miniature that ships with the package; `ablations` is mini with the paper's ablations beside it;
`mini-clip` is ThinkDiff-CLIP on the miniature. `lvlm-paper` and `clip-paper` are the paper's settings, with models from
the hub; `lvlm-paper-ablations` trains its variants.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.captions import CaptionSpec, Collection, CollectionFormat
from thinkdiff.schemas.cobsat import CobsatPrompts, Family
from thinkdiff.schemas.errors import SpecError
from thinkdiff.schemas.features import CaptionPrompts, FeatureSpec, PictureTokens
from thinkdiff.schemas.gallery import GalleryPageSpec, GalleryPlan, GallerySpec, SimilaritySpec
from thinkdiff.schemas.images import ImageSpec, TarSource
from thinkdiff.schemas.media import MediaSpec
from thinkdiff.schemas.pipeline import PipelineSpec, Variant, World
from thinkdiff.schemas.report import ReportSpec
from thinkdiff.schemas.scores import ClassifierJudge, ClipJudge, ScoreSpec, VlmJudge

MINI_INSTRUCTION = "I give you several words and pictures. Describe the next picture."
MINI_PROMPT_ROWS = 30  # the world's longest caption and its end token: the longest prompt that mini-flux has learnt
MINI_CLIP_STEPS = 5000  # after 1,000 the tables' losses tell variants apart, but drawn pictures lack what was shown
CLIP_L = Model(name="openai/clip-vit-large-patch14")
# of these `main` has pickles alone, and a request to pull has the same weights as safetensors
CLIP_B = Model(name="openai/clip-vit-base-patch32", revision="refs/pr/32")
DINO = Model(name="facebook/dino-vits16", revision="a7a4d161f5c0bd70478c05ca5777ec7cd8848021")
T5_V1_1 = Model(name="google/t5-v1_1-xxl", revision="refs/pr/2")
ABLATION_SEEDS = 3


def recipe(name: str) -> PipelineSpec:
    """The spec of a named recipe. Raises SpecError for a name that is none."""
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise SpecError(f"recipe: found {name!r}, expected one of {known}. `thinkdiff recipes` explains them.")
    return RECIPES[name]()


def execution(run: Execution, spec: PipelineSpec) -> Execution:
    """`rooted(run)` with the miniature's models behind the user's own model directories.

    The miniature's models are too small for a second thread: its cost is greater than its gain.
    """
    from thinkdiff.mini.release import weights_folder

    run, threads = rooted(run), run.threads or (1 if spec.world is not None else 0)
    return run.model_copy(update={"model_dirs": (*run.model_dirs, str(weights_folder())), "threads": threads})


def rooted(run: Execution) -> Execution:
    """`run` with the root of the worker, THINKDIFF_ROOT, unless it names one.

    A run's own `run` takes the place of its deployment's, as a whole, and with it of the root there.
    """
    root = os.environ.get("THINKDIFF_ROOT")
    return run.model_copy(update={"root": root}) if root and "root" not in run.model_fields_set else run


def study(name: str) -> PipelineSpec | None:
    """The ablations that belong to a recipe, if it has some: what its report shows when they were run."""
    return ablations() if name == "mini" else None


def prepare(spec: PipelineSpec, run: Execution) -> None:
    """Writes the miniature's collections and pictures below the data root, unless they are there."""
    if spec.world is not None:
        from thinkdiff.mini.dataset import ensure_world

        ensure_world(spec.world, run.data_root)


def gallery_folder(spec: PipelineSpec, run: Execution) -> str:
    """The miniature's gallery, written unless it is there. Raises SpecError for a recipe without one of its own."""
    if spec.world is None:
        raise SpecError(f"{spec.name}: found no folder, expected that of a gallery. Only the miniature brings its own.")
    from thinkdiff.mini.dataset import ensure_gallery

    return ensure_gallery(spec.world, run.data_root)


def unwritten(spec: PipelineSpec, run: Execution) -> str | None:
    """The folder below the data root that `prepare` would write, None where it is there or nothing is to be written."""
    if spec.world is None:
        return None
    from thinkdiff.mini.dataset import is_there

    return None if is_there(spec.world, run.data_root) else spec.world.folder


def mini() -> PipelineSpec:
    """The whole pipeline on the miniature world: minutes on two CPU cores, no network."""
    return miniature(name="mini", per_task=10)


def ablations() -> PipelineSpec:
    """mini on 1,000 prompts, with the paper's ablations over three aligner seeds, and those of ThinkDiff-CLIP."""
    base = miniature(name="ablations", per_task=50, input_tokens=True)
    assert base.media is not None
    robust = base.media.but(methods=("aligned",), read_back=False)
    fragile = robust.but(transformer=mini_model("mini-flux-less-robust"))
    changes: dict[str, dict[str, object]] = {
        "aligned": {},
        "no masking": {"masking": "none"},
        "element masking": {"masking": "element"},
        "no norm": {"norm": "none"},
        "default norm": {"norm": "default"},
        "input tokens": {"features": "input", "masking": "none"},
        "4 tokens": {"tokens": 4},
        "8 tokens": {"tokens": 8},
        "random aligner": {"steps": 0},
    }
    variants: list[Variant] = []
    for name, change in changes.items():
        variants += seeded(name, base.aligner.but(**change), base.media if name == "aligned" else robust)
    variants += forced_rows(base)
    for name in ("aligned", "no masking"):
        variants += seeded(f"{name}, less robust decoder", base.aligner.but(**changes[name]), fragile)
    for name, change in clip_changes().items():
        aligner = clip_aligner(base.aligner).but(**change)
        variants += seeded(f"CLIP: {name}", aligner, None, features=mini_tower())
    return base.model_copy(update={"variants": tuple(variants)})


def seeded(name: str, aligner: AlignerSpec, media: MediaSpec | None, **more: FeatureSpec) -> list[Variant]:
    """A condition once for each seed: of its aligner, and of the noise that its pictures start from.

    Those of one seed start from the same noise in all conditions.
    """
    return [
        Variant(name=name, aligner=aligner.but(seed=seed), media=media and media.but(seed=media.seed + seed), **more)
        for seed in range(ABLATION_SEEDS)
    ]


def forced_rows(base: PipelineSpec) -> list[Variant]:
    """The end token is barred and all rows are read, as the authors' `min_tokens = max_tokens = 128` does."""
    assert base.queries is not None
    assert base.media is not None
    media = base.media.but(methods=("aligned",), read_back=False, keep_eos=True)
    name, queries = f"forced {base.queries.max_tokens} rows", base.queries.but(end_policy="forced")
    return seeded(name, base.aligner, media, queries=queries)


def clip_changes() -> dict[str, dict[str, object]]:
    """What is changed in ThinkDiff-CLIP."""
    return {
        "aligned": {},
        "no masking": {"masking": "none"},
        "no norm": {"norm": "none"},
        "default norm": {"norm": "default"},
    }


def mini_clip() -> PipelineSpec:
    """ThinkDiff-CLIP on the miniature: a vision tower's tokens and captions, up to the aligner; and a gallery."""
    base, features = miniature(name="mini-clip", per_task=10), mini_tower()
    assert base.media is not None
    gallery = GalleryPlan(
        draw=GallerySpec(tower=features.vlm, tower_precision="float32", media=base.media.but(methods=("aligned",))),
        scores=SimilaritySpec(clip=mini_model("mini-openai-clip")),
        page=GalleryPageSpec(title="ThinkDiff-CLIP in miniature"),
    )
    aligner = clip_aligner(base.aligner).but(steps=MINI_CLIP_STEPS, schedule_steps=MINI_CLIP_STEPS)
    changed = {"features": features, "aligner": aligner, "gallery": gallery}
    return base.model_copy(update={**changed, "queries": None, "media": None, "scores": None})


def clip_aligner(aligner: AlignerSpec) -> AlignerSpec:
    """ThinkDiff-CLIP's: all of a picture, and a prefix of its caption through the T5's encoder."""
    return aligner.but(features="input", masking="words", max_prompt_tokens=32, max_target_tokens=32)


def mini_tower() -> FeatureSpec:
    """The picture's tokens of the miniature's vision tower: 1 + 4x4."""
    return tower_features(mini_model("mini-eva-clip"), 17).but(compute_dtype="float32", dtype="float32")


def tower_features(tower: Model, tokens: int) -> FeatureSpec:
    """A picture's own tokens; nothing is generated."""
    return FeatureSpec(
        vlm=tower, prompts=PictureTokens(), tokens=("input",), max_input_tokens=tokens, max_tokens=1, temperature=0.0,
        top_p=1.0, end_policy="stop",
    )  # fmt: skip


def miniature(name: str, per_task: int, input_tokens: bool = False, tuning: bool = False) -> PipelineSpec:
    """The miniature's pipeline with `per_task` prompts for each task and number of shots.

    `tuning` takes the prompts and pictures on which choices are made instead of those that scores are reported on.
    """
    from thinkdiff.mini.release import BENCHMARK_SEED, TUNING_SEED, WORLD_SEED

    seed = TUNING_SEED if tuning else BENCHMARK_SEED
    world = World(folder=f"mini-world-{WORLD_SEED}-{seed}", seed=WORLD_SEED, rows=9000, benchmark_seed=seed)
    formats: dict[str, CollectionFormat] = {"cc3m": "cc3m-tsv", "cc12m": "cc12m-tsv", "sbu": "sbu-json"}
    files = {"cc3m": "cc3m.tsv", "cc12m": "cc12m.tsv", "sbu": "sbu-captions-all.json"}
    t5 = mini_model("mini-t5")
    features = FeatureSpec(
        vlm=mini_model("mini-qwen2-vl"),
        prompts=CaptionPrompts(),
        max_tokens=48,
        temperature=0.0,
        top_p=1.0,
        end_policy="stop",
        compute_dtype="float32",
        dtype="float32",
        tokens=("generated", "input") if input_tokens else ("generated",),
        max_input_tokens=64 if input_tokens else 0,
    )
    return PipelineSpec(
        name=name,
        world=world,
        captions=CaptionSpec(
            collections=tuple(
                Collection(name=c, format=formats[c], url=f"{world.folder}/{files[c]}") for c in formats
            ),
            n=8192,
        ),
        images=ImageSpec(tars=tuple(TarSource(collection=c, glob=f"{world.folder}/{c}/*.tar") for c in formats)),
        features=features,
        aligner=AlignerSpec(
            t5=t5, hidden=192, steps=1000, batch=32, lr=2e-3, warmup_lr=2e-5, warmup_steps=100, min_lr=0.0,
            schedule="linear", schedule_steps=1000, weight_decay=0.0, clip_grad_norm=1.0, precision="float32",
            validation_rows=512, validation_every=250, seed=0,
        ),
        queries=features.but(
            prompts=CobsatPrompts(
                families=mini_families(), images=f"{world.folder}/cobsat", instruction=MINI_INSTRUCTION,
                shots=(2, 4), per_task=per_task, seed=seed, held_out=mini_held_out(),
            ),
            max_input_tokens=192 if input_tokens else 0,
        ),
        media=MediaSpec(
            decoder=mini_model("mini-flux"), t5=t5, height=32, width=32, steps=16, guidance_scale=1.0,
            true_cfg_scale=3.0, precision="float32", prompt_rows=MINI_PROMPT_ROWS, read_back=True, seed=1,
        ),
        scores=ScoreSpec(judge=ClassifierJudge(model=mini_model("mini-judge"))),
        report=ReportSpec(title="ThinkDiff in miniature"),
    )  # fmt: skip


def mini_model(name: str) -> Model:
    """A model of the miniature, its revision the digest of its files."""
    from thinkdiff.mini.release import weights_folder
    from thinkdiff.tasks.models import folder_revision

    return Model(name=name, revision=folder_revision(str(weights_folder() / name)))


def mini_families() -> tuple[Family, ...]:
    """CoBSAT's five attribute families over the miniature's words."""
    from thinkdiff.mini import world

    def captions(family: str) -> tuple[str, ...]:
        return tuple(world.caption_template(family, value) for value in world.FAMILIES[family])

    return tuple(
        Family(name=name, values=values, things=world.OBJECTS, caption=captions(name))
        for name, values in world.FAMILIES.items()
    )


def mini_held_out() -> tuple[tuple[str, str, str], ...]:
    """The (family, value, thing) pairs that neither the VLM nor the diffusion model was trained on."""
    from thinkdiff.mini import world

    return tuple(world.held_out_pairs())


def lvlm_paper() -> PipelineSpec:
    """ThinkDiff-LVLM as in the paper: 1.7 M pictures, Qwen2-VL-7B, FLAN-T5-XXL, FLUX.1-dev, and CoBSAT's judges.

    Needs GPUs.
    """
    from thinkdiff.tasks.cobsat import COBSAT_FAMILIES

    vlm, t5 = Model(name="Qwen/Qwen2-VL-7B-Instruct"), Model(name="google/flan-t5-xxl")
    features = FeatureSpec(vlm=vlm)
    return PipelineSpec(
        name="lvlm-paper",
        captions=CaptionSpec(
            collections=(
                Collection(name="cc3m", format="cc3m-tsv", url="cc3m/Train_GCC-training.tsv"),
                Collection(name="cc12m", format="cc12m-tsv", url="cc12m/cc12m.tsv"),
                Collection(name="sbu", format="sbu-json", url="sbu/sbu-captions-all.json"),
            ),
            n=1_700_000,
        ),
        images=ImageSpec(tars=tuple(TarSource(collection=c, glob=f"{c}/*.tar") for c in ("cc3m", "cc12m", "sbu"))),
        features=features,
        aligner=AlignerSpec(t5=t5),
        queries=features.but(
            prompts=CobsatPrompts(families=COBSAT_FAMILIES, images="cobsat/datasets"), max_tokens=128, end_policy="stop"
        ),
        media=MediaSpec(decoder=Model(name="black-forest-labs/FLUX.1-dev"), t5=T5_V1_1, read_back=True),
        scores=ScoreSpec(
            judge=VlmJudge(model=Model(name="llava-hf/llava-1.5-13b-hf")),
            second=ClipJudge(model=CLIP_B),
            families=COBSAT_FAMILIES,
        ),
        report=ReportSpec(title="ThinkDiff-LVLM on CoBSAT"),
    )


def lvlm_paper_ablations() -> PipelineSpec:
    """lvlm-paper on 128 tokens, and what the paper and its code leave open: masking, norm, T5 family, number of tokens.

    Input tokens are left to the miniature: a picture has hundreds, which is megabytes a sample.
    """
    base = lvlm_paper()
    features = base.features.but(max_tokens=128)
    changes: dict[str, dict[str, object]] = {
        "aligned": {},
        "no masking": {"masking": "none"},
        "element masking": {"masking": "element"},
        "no norm": {"norm": "none"},
        "default norm": {"norm": "default"},
        "T5 v1.1": {"t5": T5_V1_1},
        "norm of T5 v1.1": {"norm_from": T5_V1_1},
        "authors' batch of 128": {"batch": 128},
        "mean of four ranks' means": {"loss_mean": "groups"},
        **{f"{tokens} tokens": {"tokens": tokens} for tokens in (16, 32, 128)},
    }
    assert base.media is not None
    lone = base.media.but(methods=("aligned",), read_back=False)
    base = base.model_copy(update={"aligner": base.aligner.but(tokens=64)})
    variants: list[Variant] = []
    for name, change in changes.items():
        variants += seeded(name, base.aligner.but(**change), base.media if name == "aligned" else lone)
    variants += forced_rows(base)
    update = {"name": "lvlm-paper-ablations", "features": features, "variants": tuple(variants)}
    return base.model_copy(update=update)


def clip_paper() -> PipelineSpec:
    """ThinkDiff-CLIP as in the paper, up to the aligner: BLIP-2's EVA-CLIP tower, FLAN-T5-XXL; and a gallery."""
    base = lvlm_paper()
    assert base.media is not None
    aligner = clip_aligner(base.aligner).but(batch=168, steps=100_000)
    features = tower_features(Model(name="Salesforce/blip2-flan-t5-xxl"), 65)
    still = base.media.but(methods=("aligned",), height=1024, width=1024)
    video = still.but(decoder=Model(name="THUDM/CogVideoX-5b"), height=480, width=720, steps=50, guidance_scale=6.0)
    gallery = GalleryPlan(
        draw=GallerySpec(tower=features.vlm, media=still, video=video),
        scores=SimilaritySpec(clip=CLIP_L, dino=DINO),
    )
    changed = {"name": "clip-paper", "features": features, "aligner": aligner, "gallery": gallery}
    return base.model_copy(update={**changed, "queries": None, "media": None, "scores": None})


RECIPES: dict[str, Callable[[], PipelineSpec]] = {
    "mini": mini,
    "mini-clip": mini_clip,
    "ablations": ablations,
    "lvlm-paper": lvlm_paper,
    "lvlm-paper-ablations": lvlm_paper_ablations,
    "clip-paper": clip_paper,
}
