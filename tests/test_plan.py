"""The plan of a run: all that is missing is named at once, without a network, and nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import COMMIT, GATED, hub
from small_media import png
from typer.testing import CliRunner

from thinkdiff.flows import gallery_flow
from thinkdiff.flows.cli import app
from thinkdiff.flows.recipes import recipe
from thinkdiff.flows.thinkdiff_flow import planned
from thinkdiff.schemas.artifact import Execution, Model, PipelineStage
from thinkdiff.schemas.errors import PlanError
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.schemas.plan import Job, Plan
from thinkdiff.tasks.plan_models import Models
from thinkdiff.tasks.plan_room import Gpu, fits, room_findings
from thinkdiff.tasks.plan_widths import Widths
from thinkdiff.tasks.step import stand_in

COLLECTIONS = ("cc3m/Train_GCC-training.tsv", "cc12m/cc12m.tsv", "sbu/sbu-captions-all.json")
TARS = tuple(f"{name}/*.tar" for name in ("cc3m", "cc12m", "sbu"))


def found(plan: Plan, what: str) -> list[str]:
    """Levels and sentences of the findings about something."""
    return [f"{finding.level}: {finding.sentence}" for finding in plan.findings if finding.what.startswith(what)]


@pytest.mark.parametrize(
    ("name", "last", "models"),
    [
        (
            "lvlm-paper",
            "render_report",
            (
                "Qwen/Qwen2-VL-7B-Instruct", "google/flan-t5-xxl", "black-forest-labs/FLUX.1-dev",
                "google/t5-v1_1-xxl", "llava-hf/llava-1.5-13b-hf", "openai/clip-vit-base-patch32",
            ),
        ),
        ("clip-paper", "train_aligner", ("Salesforce/blip2-flan-t5-xxl", "google/flan-t5-xxl")),
    ],
)  # fmt: skip
def test_plan_of_a_paper_recipe_names_all_that_is_missing_at_once(
    tmp_path: Path, name: str, last: PipelineStage, models: tuple[str, ...]
):
    plan = planned(recipe(name), last, Execution(root=str(tmp_path / "root")))
    missing = {finding.what for finding in plan.of("blocks")}
    data = tmp_path / "root" / "data"
    assert missing >= {f"model {model}" for model in models}
    assert missing >= {str(data / url) for url in (*COLLECTIONS, *TARS)}
    assert ("benchmark cobsat/datasets" in missing) == (name == "lvlm-paper")
    assert all("HF_HUB_OFFLINE" in line for model in models for line in found(plan, f"model {model}"))
    assert not plan.cached
    assert not (tmp_path / "root").exists()
    with pytest.raises(PlanError, match=f"^{name}: found {len(plan.of('blocks'))} of the things") as caught:
        plan.must_not_block()
    assert all(model in str(caught.value) for model in models)


def test_plan_of_a_gallery_names_its_models_and_its_folder_too(tmp_path: Path):
    run = Execution(root=str(tmp_path / "root"))
    plan = gallery_flow.planned(recipe("clip-paper"), run, None)
    missing = {finding.what for finding in plan.of("blocks")}
    drawn = ("black-forest-labs/FLUX.1-dev", "THUDM/CogVideoX-5b", "google/t5-v1_1-xxl")
    measured = ("openai/clip-vit-large-patch14", "facebook/dino-vits16")
    assert missing >= {f"model {name}" for name in (*drawn, *measured)} | {"gallery"}
    assert {"gather_gallery", "score_gallery", "render_gallery"} <= set(plan.ahead)
    assert "THUDM/CogVideoX-5b 4096" in found(plan, "width of the prompt embeddings of THUDM/CogVideoX-5b")[0]
    (tmp_path / "a.png").write_bytes(png("a"))
    (tmp_path / "prompts.jsonl").write_text('{"name": "a", "images": ["a.png"]}')
    assert "gallery" not in {
        finding.what for finding in gallery_flow.planned(recipe("clip-paper"), run, str(tmp_path)).findings
    }
    assert gallery_flow.planned(recipe("mini-clip"), run, None).of("blocks") == []
    assert not (tmp_path / "root").exists()


def test_plan_tells_room_time_licences_and_widths_from_the_spec(tmp_path: Path):
    plan = planned(recipe("lvlm-paper"), "render_report", Execution(root=str(tmp_path)), price=2.0)
    assert "0.78 TB (1700000 x 64 x 3584 in bfloat16" in found(plan, "disk")[0]
    assert "18.4 GB (20000 x 128 x 3584" in found(plan, "disk")[1]
    assert found(plan, "width of the prompt embeddings") == [
        "tells: width of the prompt embeddings: found aligner on google/flan-t5-xxl 4096, "
        "black-forest-labs/FLUX.1-dev 4096, google/t5-v1_1-xxl 4096."
    ]
    assert "Non-Commercial" in found(plan, "licence of black-forest-labs/FLUX.1-dev")[0]
    assert "found not known;" in found(plan, "licence of sbu")[0]
    assert any("1.29 hours (measured on one H200, 25000 steps)" in line for line in found(plan, "time"))
    assert "2.59 for 1.29 measured GPU hours at 2 an hour; not measured: fetch_images" in found(plan, "cost")[0]


def test_plan_gives_no_figure_for_a_training_that_was_not_measured(tmp_path: Path):
    base = recipe("lvlm-paper")
    spec = base.model_copy(update={"aligner": base.aligner.but(batch=128)})
    plan = planned(spec, "train_aligner", Execution(root=str(tmp_path)))
    assert not [line for line in found(plan, "time") if "hours" in line]
    assert any("not measured: " in line and "train_aligner" in line for line in found(plan, "time"))


def test_plan_of_features_that_do_not_fit_the_disk_blocks(tmp_path: Path):
    base = recipe("lvlm-paper")
    spec = base.model_copy(update={"captions": base.captions.but(n=10**12)})
    (line,) = found(planned(spec, "extract_features", Execution(root=str(tmp_path))), "room in root")
    assert line.startswith("blocks: ")
    assert "expected 458772.02 TB, and that of fetch_images, which is not known" in line  # 458,752 of it are numbers


def test_plan_of_more_shards_than_a_record_names_at_ease_says_how_large_they_should_be(tmp_path: Path):
    base = recipe("lvlm-paper")
    spec = base.model_copy(update={"captions": base.captions.but(n=100_000_000)})
    (line,) = found(planned(spec, "extract_features", Execution(root=str(tmp_path))), "shards")
    assert line.startswith("warns: shards: found 390625 of 256 rows, expected at most 50000.")
    assert line.endswith("set features.shard_size=2048.")
    assert not found(planned(base, "extract_features", Execution(root=str(tmp_path))), "shards")


def test_plan_counts_what_a_killed_run_has_left(tmp_path: Path):
    spec = recipe("lvlm-paper").queries
    assert spec is not None
    left = tmp_path / "extract_features" / "f00"
    left.mkdir(parents=True)
    with (left / "shard").open("wb") as file:
        file.truncate(10 * 10**9)  # sparse: it takes no room
    run = Execution(root=str(tmp_path))
    models = Models(run)
    jobs = [Job(spec, {}, stand_in(FeatureSet, spec), str(left), False)]
    room = {finding.what: finding for finding in room_findings(jobs, run, models, Widths(models))}
    assert room["disk"].found.endswith(", 10.0 GB of it there")
    assert room["room in root"].expected == "8.35 GB"


def test_plan_of_models_that_do_not_fit_one_another_names_both_widths(tmp_path: Path):
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide/config.json").write_text(json.dumps({"joint_attention_dim": 128}))
    base = recipe("mini")
    assert base.media is not None
    spec = base.model_copy(update={"media": base.media.but(transformer=Model(name=str(tmp_path / "wide")))})
    (line,) = found(planned(spec, "render_report", Execution(root=str(tmp_path / "root"))), "width of the prompt")
    assert line.startswith(
        "blocks: width of the prompt embeddings: found mini-flux 128, mini-t5 96, expected one width."
    )


def test_plan_of_a_folder_without_tokenizer_names_it(tmp_path: Path):
    folder = tmp_path / "some-vlm"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(b"{}")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-2.safetensors"}}')
    base = recipe("mini")
    spec = base.model_copy(update={"features": base.features.but(vlm=Model(name="some-vlm"))})
    run = Execution(root=str(tmp_path / "root"), model_dirs=(str(tmp_path),))
    (line,) = found(planned(spec, "extract_features", run), "model some-vlm")
    assert "found no tokenizer_config.json, *processor_config.json, model-2.safetensors in" in line
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../model-2.safetensors"}}')
    (line,) = found(planned(spec, "extract_features", run), "model some-vlm")
    assert "found the weights '../model-2.safetensors' in model.safetensors.index.json" in line


def test_plan_of_the_miniature_blocks_nothing_and_writes_nothing(tmp_path: Path):
    lasts: dict[str, PipelineStage] = {"mini-clip": "train_aligner", "ablations": "score_cobsat"}
    for name, last in lasts.items():
        plan = planned(recipe(name), last, Execution(root=str(tmp_path / "root")))
        assert plan.of("blocks") == []
    assert list(tmp_path.iterdir()) == []


def test_gpu_that_is_too_small_or_absent_blocks():
    run, need = Execution(), 24 * 10**9
    levels = {memory: fits("generate_media", "m", need, run, Gpu("a GPU", memory)).level for memory in (need, 2 * need)}
    assert levels == {need: "blocks", 2 * need: "tells"}
    offloaded = fits("generate_media", "m", need, run.model_copy(update={"offload": "blocks"}), Gpu("a GPU", need))
    assert offloaded.level == "warns"
    assert fits("extract_features", "m", need, run, None).found == "no GPU"
    assert fits("extract_features", "m", need, Execution(device="cpu"), None).level == "warns"


def test_command_prints_a_table_or_json_and_exits_with_2(tmp_path: Path):
    command = ["plan", "clip-paper", "--root", str(tmp_path)]
    table = CliRunner().invoke(app, command)
    assert table.exit_code == 2
    assert "model google/flan-t5-xxl: found it in no model folder" in table.stdout
    told = CliRunner().invoke(app, [*command, "--json", "--set", "captions.n=100", "--refresh", "score_gallery"])
    assert told.exit_code == 2
    assert {finding["level"] for finding in json.loads(told.stdout)["findings"]} >= {"blocks", "tells"}


ASK = """
import json, sys
from thinkdiff.schemas.artifact import Model
from thinkdiff.tasks.plan_hub import Hub
from thinkdiff.tasks.plan_models import Place, Use, access
asked = Hub()
for name, revision, needs in json.loads(sys.argv[1]):
    model = Model(name=name, revision=revision)
    finding = access(Use("a_stage", model, tuple(needs)), Place(answer=asked.look(model)))
    print(finding.level, finding.sentence)
"""


def ask(endpoint: str, home: Path, asked: list[tuple[str, str | None, list[str]]]) -> list[str]:
    """What is found of models where the hub is at that address; the library reads it once, when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(asked)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_hub_is_asked_for_access_files_and_revisions(tmp_path: Path):
    t5, vlm = ["config.json", "*.safetensors"], ["config.json", "tokenizer_config.json"]
    with hub() as endpoint:
        pinned, unpinned, lacking, gated, revision, absent = ask(
            endpoint, tmp_path,
            [
                ("google/flan-t5-xxl", COMMIT, t5), ("google/flan-t5-xxl", None, t5),
                ("Qwen/Qwen2-VL-7B-Instruct", None, vlm), (GATED, None, ["model_index.json"]),
                ("google/flan-t5-xxl", "v9", t5), ("no-such/model", None, t5),
            ],
        )  # fmt: skip
    assert pinned.startswith("tells model google/flan-t5-xxl: found it on the hub, 22.0 GB to fetch")
    assert unpinned.startswith("warns model google/flan-t5-xxl")
    assert COMMIT in unpinned
    assert lacking.startswith("blocks model Qwen/Qwen2-VL-7B-Instruct: found no tokenizer_config.json of it on the hub")
    assert gated.startswith(f"blocks model {GATED}")
    assert "Accept its conditions on https://huggingface.co/" in gated
    assert "no revision v9 of it on the hub" in revision
    assert "no such model on the hub" in absent


def test_hub_that_cannot_be_reached_is_asked_once(tmp_path: Path):
    lines = ask("http://127.0.0.1:9", tmp_path, [("a/b", None, ["config.json"]), ("c/d", None, ["config.json"])])
    assert [line.split(", expected")[0] for line in lines] == [
        f"blocks model {name}: found it in no model folder and not in the hub's cache, and no answer of the hub "
        "(ConnectError)"
        for name in ("a/b", "c/d")
    ]
