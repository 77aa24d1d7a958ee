"""The ablation of the aligner's norm at the T5's own scale: what the miniature's folded scale factor does to it.

    python tests/bench/bench_scale_one.py --root runs-scale-one

The miniature's T5 is released with its encoder's output scaled by 0.1, and what reads it scaled back, which changes no
function but the size of the embeddings. This undoes it (`thinkdiff.mini.unfold`) and trains aligners with each start of
the norm, on the tuning prompts. Prints accuracy by norm, seed and shots; `thinkdiff run ablations` has scale 0.1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from thinkdiff.flows import recipes
from thinkdiff.flows.cli import run_flow
from thinkdiff.mini.release import weights_folder
from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.pipeline import PipelineSpec, Variant
from thinkdiff.schemas.scores import Scorecard
from thinkdiff.storage.records import read_record
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.models import folder_revision
from thinkdiff.tasks.qwen_engine import prepare_torchvision


def study(t5: Model, decoder: Model, seeds: int) -> PipelineSpec:
    """The miniature with another T5 and FLUX, and a variant for every norm and seed."""
    base = recipes.miniature(name="scale-one", per_task=10, tuning=True)
    assert base.media
    media = base.media.but(t5=t5, decoder=decoder, methods=("aligned",))
    variants = tuple(
        Variant(name=norm, aligner=base.aligner.but(t5=t5, norm=norm, seed=seed), media=media)
        for norm in ("t5", "default", "none")
        for seed in range(seeds)
    )
    return base.model_copy(update={"aligner": variants[0].aligner, "media": media, "variants": variants})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", default="runs-scale-one")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    prepare_torchvision()
    from thinkdiff.mini.unfold import write_unfolded

    models = Path(arguments.root).resolve() / "models"
    if not models.exists():
        write_unfolded(weights_folder(), models)
    t5, flux = (
        Model(name=str(models / name), revision=folder_revision(models / name)) for name in ("mini-t5", "mini-flux")
    )
    result = run_flow(recipe="scale-one", spec=study(t5, flux, arguments.seeds), run=Execution(root=arguments.root))
    for line in result["stages"]:
        if line["stage"] == "score_cobsat" and line["role"] != "score_cobsat":
            card = read_record(Folder.at(line["uri"]), Scorecard)
            assert card is not None
            print(json.dumps({"norm": line["role"], "accuracy": card.stats["scores"]["aligned"]}), flush=True)


if __name__ == "__main__":
    main()
