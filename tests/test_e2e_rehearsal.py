"""The paper's recipes, rehearsed: the same specs and code, 200 pictures, and models of the same architectures that are
random and tiny, under the names and in the folders where a run looks for the real ones.

What is smaller is what the three tables below list; all else is the recipe's. The pictures and verdicts say nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_benchmark import REAL, data_set, tile, write_files
from small_media import png
from small_run import thinkdiff
from tiny_decoders import make_tiny_cogvideox
from tiny_diffusion import make_tiny_flux, make_tiny_t5
from tiny_judges import make_tiny_clip, make_tiny_dino, make_tiny_llava
from tiny_models import make_tiny_blip2, make_tiny_qwen_vl

from thinkdiff.mini.dataset import write_collections
from thinkdiff.schemas.artifact import STAGES
from thinkdiff.storage.root import Folder

MODELS: dict[str, Callable[[Path], Any]] = {
    "Qwen/Qwen2-VL-7B-Instruct": make_tiny_qwen_vl,
    "Salesforce/blip2-flan-t5-xxl": lambda folder: make_tiny_blip2(folder, side=224),
    "google/flan-t5-xxl": make_tiny_t5,
    "google/t5-v1_1-xxl": lambda folder: make_tiny_t5(folder, seed=1),
    "black-forest-labs/FLUX.1-dev": lambda folder: make_tiny_flux(folder, clip=True),
    "THUDM/CogVideoX-5b": lambda folder: make_tiny_cogvideox(folder, rows=226),
    "llava-hf/llava-1.5-13b-hf": make_tiny_llava,
    "openai/clip-vit-base-patch32": make_tiny_clip,
    "openai/clip-vit-large-patch14": make_tiny_clip,
    "facebook/dino-vits16": make_tiny_dino,
}
SMALLER = {
    "captions.n": 200,
    "features.shard_size": 64,
    "aligner.steps": 4,
    "aligner.batch": 8,
    "aligner.validation_rows": 16,
    "aligner.validation_every": 2,
    "run.batch": 8,
}
ON_COBSAT = {
    "features.max_tokens": 12,
    "queries.max_tokens": 12,
    "queries.prompts.per_task": 1,
    "media.steps": 1,
    "media.height": 32,
    "media.width": 32,
    "scores.judge.max_tokens": 8,
}
ON_GALLERY = {
    f"gallery.draw.{kind}.{name}": value
    for kind in ("media", "video")
    for name, value in {"steps": 1, "height": 32, "width": 32, "frames": 9, "precision": "float32"}.items()
} | {"features.compute_dtype": "float32"}  # processors without bfloat16 take minutes
NAMED = {
    "cc3m.tsv": "cc3m/Train_GCC-training.tsv",
    "cc12m.tsv": "cc12m/cc12m.tsv",
    "sbu-captions-all.json": "sbu/sbu-captions-all.json",
}
PROMPTS = [
    {"name": "one", "images": ["a.png"]},
    {"name": "said", "images": ["a.png", "b.png"], "text": "at night"},
    {"name": "moving", "images": ["a.png"], "text": "it spins", "video": True},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments: a data root as the paper's recipes expect it, and a folder of models."""
    base = tmp_path_factory.mktemp("rehearsal")
    for name, make in MODELS.items():
        (base / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        make(base / "models" / name)
    write_collections(Folder.at(str(base / "data")), seed=0, rows=300)
    for found, wanted in NAMED.items():
        (base / "data" / found).rename(base / "data" / wanted)
    write_files(Folder.at(str(base / "data" / "cobsat" / "datasets")), data_set(REAL, tile))
    return [
        "--root",
        str(base / "root"),
        "--data",
        str(base / "data"),
        "--device",
        "cpu",
        *settings(SMALLER | {"run.model_dirs": json.dumps([str(base / "models")])}),
    ]


def settings(values: dict[str, Any]) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def printed(*arguments: str) -> dict[str, Any]:
    done = thinkdiff(*arguments, "--json")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads(done.stdout)


def test_e2e_rehearsal_of_lvlm_paper_goes_through_all_seven_stages_to_a_report(place: list[str]):
    ours = [*place, *settings(ON_COBSAT)]
    plan = printed("plan", "lvlm-paper", *ours)
    assert set(plan["ahead"]) == set(STAGES)
    result = printed("run", "lvlm-paper", *ours)
    assert {line["stage"] for line in result["stages"]} == set(STAGES)
    assert {line["state"] for line in result["stages"]} == {"Completed"}
    assert set(result["scores"]) == {"aligned", "text_bridge", "text_prompt", "true_caption"}
    page = Path(result["report"]).read_text()
    assert "ThinkDiff-LVLM on CoBSAT" in page
    again = printed("run", "lvlm-paper", *ours)
    assert {line["state"] for line in again["stages"]} == {"Cached"}


def test_e2e_rehearsal_of_clip_paper_goes_through_all_its_stages_to_a_page(place: list[str], tmp_path: Path):
    folder, others = tmp_path / "gallery", ["--beside", str(tmp_path / "beside")]
    for name in ("gallery/a.png", "gallery/b.png", "beside/other/said.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(name))
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    ours = [*place, *settings(ON_GALLERY), "--folder", str(folder)]
    plan = printed("plan", "clip-paper", *ours)
    result = printed("gallery", "clip-paper", *ours, *others)
    made = [line["stage"] for line in result["stages"] if line["role"] != "pictures of other"]
    assert sorted(made) == sorted([*plan["ahead"], *plan["cached"]])
    assert set(made) == {*STAGES[:5], "gather_gallery", "score_gallery", "render_gallery"}
    assert {line["state"] for line in result["stages"][2:]} == {"Completed"}  # the pictures are those of the other test
    (trained,) = [Path(line["uri"]) for line in result["stages"] if line["role"] == "ThinkDiff-CLIP"]
    assert json.loads((trained / "config.json").read_text())["kind"] == "clip"
    systems = {"ThinkDiff-CLIP", "untrained aligner", "words alone", "other"}
    assert set(result["scores"]) == {*systems, "the picture itself"}
    page = Path(result["report"]).read_text()
    assert all(f'data-system="{name}"' in page for name in systems)
    assert "<video" in page
    again = printed("gallery", "clip-paper", *ours, *others)
    assert {line["state"] for line in again["stages"]} == {"Cached"}
