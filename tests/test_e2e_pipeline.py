"""The whole pipeline through the command line on the miniature: cached re-runs, single stages, bad input.

What its log must or must not hold is run in a process of its own.
"""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from small_run import small_arguments, small_run, started, states, thinkdiff

from thinkdiff.flows.cli import asked
from thinkdiff.flows.thinkdiff_flow import planned
from thinkdiff.schemas.artifact import STAGES
from thinkdiff.storage.feature_store import FeatureStore


@pytest.fixture
def copy(first, tmp_path):
    """A root of one's own with everything built."""
    root = tmp_path / "root"
    shutil.copytree(first[0], root)
    return root, json.loads(json.dumps(first[1]).replace(str(first[0]), str(root)))


def test_e2e_first_run_makes_the_seven_stages_and_a_report(first):
    _, result = first
    made = states(result)
    assert [line["role"] for line in result["stages"] if line["role"] in STAGES] == list(STAGES)
    assert set(made.values()) == {"Completed"}
    assert set(result["scores"]) == {"aligned", "text_bridge", "text_prompt", "true_caption"}
    assert all(set(by_shots) == {"2", "4"} for by_shots in result["scores"].values())
    assert "<html" in Path(result["report"]).read_text()


def test_e2e_second_run_is_cached_throughout(first, world):
    root, result = first
    again = small_run(root, world)
    assert set(states(again).values()) == {"Cached"}
    assert [line["digest"] for line in again["stages"]] == [line["digest"] for line in result["stages"]]


def small_plan(root, data, refresh=(), **changes):
    """The plan of a small run, in this process."""
    arguments = small_arguments(root, data, **changes)
    assignments = [value for option, value in pairwise(arguments) if option == "--set"]
    spec, run = asked("mini", assignments, {"root": str(root), "data": str(data), "refresh": refresh})
    return planned(spec, "render_report", run)


def test_e2e_plan_looks_at_nothing_that_is_in_the_store(first, tmp_path):
    root, result = first
    cached = small_plan(root, tmp_path / "no data")
    assert (len(cached.cached), cached.ahead, cached.findings) == (len(result["stages"]), (), ())
    ahead = small_plan(root, tmp_path / "no data", aligner__t5=json.dumps({"name": "no-such-t5", "revision": None}))
    assert ahead.ahead == ("train_aligner", "generate_media", "score_cobsat", "render_report")
    assert [finding.what for finding in ahead.of("blocks")] == ["model no-such-t5"]
    again = small_plan(root, tmp_path / "no data", refresh=("score_cobsat",))
    assert again.ahead == ("score_cobsat",)


def test_e2e_removed_aligner_is_rebuilt_to_the_same_bytes_and_nothing_else(copy, world):
    root, result = copy
    shutil.rmtree(root / "train_aligner")
    again = small_run(root, world)
    assert [role for role, state in states(again).items() if state != "Cached"] == ["train_aligner"]
    assert [line["digest"] for line in again["stages"]] == [line["digest"] for line in result["stages"]]


def test_e2e_changed_learning_rate_rebuilds_the_aligner_and_what_follows(copy, world):
    root, _ = copy
    again = states(small_run(root, world, aligner__lr=0.001))
    assert [role for role, state in again.items() if state == "Cached"] == [
        "sample_captions", "fetch_images", "extract_features", "benchmark prompts"
    ]  # fmt: skip


def test_e2e_aligner_is_trained_on_a_store_of_another_codec(copy, world):
    root, result = copy
    again = small_run(root, world, "--until", "train_aligner", features__codec="int8")
    assert list(states(again).values()) == ["Cached", "Cached", "Completed", "Completed"]
    plain, quantised = (
        FeatureStore.open(line["uri"])
        for run in (result, again)
        for line in run["stages"]
        if line["role"] == "extract_features"
    )
    assert (plain.layouts["generated"].codec, quantised.layouts["generated"].codec) == ("none", "int8")
    assert quantised.keys == plain.keys
    one, other = plain.load().features, quantised.load().features
    assert 0 < np.abs(one - other).max() <= np.abs(one).max() / 127


def test_e2e_refresh_of_one_stage_computes_it_again(copy, world):
    root, _ = copy
    again = states(small_run(root, world, "--refresh", "score_cobsat"))
    assert [role for role, state in again.items() if state != "Cached"] == ["score_cobsat"]


def test_e2e_missing_shard_is_extracted_again_alone(copy, world):
    root, result = copy
    uri = next(Path(line["uri"]) for line in result["stages"] if line["role"] == "extract_features")
    record = json.loads((uri / "artifact.json").read_text())
    shard = next(entry["path"] for entry in record["files"] if entry["path"].startswith("features/c/1/"))
    (uri / shard).unlink()
    measured = (uri / "statistics.json").read_bytes()
    again = small_run(root, world)
    assert states(again)["extract_features"] == "Completed"
    assert (uri / "statistics.json").read_bytes() == measured
    assert "kept 2 shards" in json.loads((uri / "artifact.json").read_text())["provenance"]["note"]


def test_e2e_verify_finds_an_altered_byte_only_when_deep(copy):
    root, result = copy
    uri = next(Path(line["uri"]) for line in result["stages"] if line["role"] == "train_aligner")
    weights = uri / "aligner.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert thinkdiff("verify", "--root", str(root)).returncode == 0
    deep = thinkdiff("verify", "--root", str(root), "--deep")
    assert deep.returncode == 1
    assert "aligner.safetensors with other bytes than recorded" in deep.stdout


def test_e2e_gc_removes_only_what_no_record_lists(copy, world):
    root, result = copy
    uri = Path(result["stages"][0]["uri"])
    (uri / "leftover.bin").write_bytes(b"x" * 10)
    assert "leftover.bin" in thinkdiff("gc", "--root", str(root)).stdout
    assert (uri / "leftover.bin").exists()
    assert "1 files" in thinkdiff("gc", "--root", str(root), "--delete").stdout
    assert not (uri / "leftover.bin").exists()
    assert set(states(small_run(root, world)).values()) == {"Cached"}


def test_e2e_artifacts_and_show_tell_what_is_there(first):
    root, result = first
    listed = json.loads(thinkdiff("artifacts", "--root", str(root), "--json").stdout)
    assert {a["fingerprint"] for a in listed} == {line["fingerprint"] for line in result["stages"]}
    shown = json.loads(thinkdiff("show", listed[0]["fingerprint"][:12], "--root", str(root)).stdout)
    assert shown["digest"] == listed[0]["digest"]


def test_e2e_generate_draws_a_picture_from_pictures_and_words(first, world, tmp_path):
    from PIL import Image

    root, _ = first
    pictures = sorted(world.glob("mini-world-*/cobsat/color_*/red_*.jpg"))[:2]
    out = tmp_path / "out.png"
    done = thinkdiff(
        "generate", "red", str(pictures[0]), "red", str(pictures[1]), "blue", "--root", str(root), "-o", str(out)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert Image.open(out).size == (32, 32)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "nonsense"], "recipe: found 'nonsense', expected one of mini"),
        (["run", "mini", "--until", "nonsense"], "stage: found 'nonsense', expected one of sample_captions"),
        (["run", "mini", "--refresh", "nonsense"], "stage: found 'nonsense'"),
        (["gallery", "--refresh", "draw"], "expected one of sample_captions, fetch_images"),
        (["gallery", "--refresh", "score_gallery", "--folder", "/nonexistent"], "/nonexistent"),
        (["run", "mini", "--set", "aligner.nonsense=1"], "The spec has no such key"),
        (["run", "mini", "--set", "aligner.steps=-1"], "PipelineSpec.aligner.steps: found -1, expected"),
        (["run", "mini", "--root", "ftp://x/y"], "found scheme 'ftp'"),
        (["run", "clip-paper"], "clip-paper: found no benchmark in the spec"),
        (["show", "0123", "--root", "/nonexistent"], "artifact: found 0"),
    ],
)
def test_e2e_bad_request_is_one_sentence_and_exit_code_2(arguments, sentence):
    done = thinkdiff(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        ("a.png", "found no folders"),
        ("other/b.png", "found no picture of any of 1 prompts"),
        ("ThinkDiff-CLIP/a.png", "expected another name"),
    ],
)
def test_e2e_gallery_beside_pictures_of_no_use_begins_nothing(tmp_path, picture, sentence):
    for name, data in (("gallery/prompts.jsonl", b'{"name": "a", "text": "red"}'), (f"beside/{picture}", b"")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(data)
    places = {"folder": "gallery", "beside": "beside", "root": "root"}
    options = [word for name, place in places.items() for word in (f"--{name}", str(tmp_path / place))]
    done = thinkdiff("gallery", "clip-paper", *options)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not (tmp_path / "root").exists()


def test_e2e_root_that_cannot_be_written_is_refused(tmp_path, world):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    done = started(*small_arguments(blocked / "root", world))
    assert done.returncode == 2
    assert "not writable" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("harm", ["missing", "empty", "malformed", "swapped"])
def test_e2e_bad_collection_is_refused_or_counted(tmp_path, world, harm):
    data = tmp_path / "data"
    shutil.copytree(world, data)
    file = next(data.glob("mini-world-*/cc3m.tsv"))
    lines = file.read_text().splitlines()
    if harm == "missing":
        file.unlink()
    elif harm == "empty":
        file.write_text("")
    elif harm == "malformed":
        file.write_text("\n".join([*lines[:5], "no tab here", "two\ttabs\there", *lines[5:]]) + "\n")
    else:
        file.write_text("\n".join("\t".join(reversed(line.split("\t"))) for line in lines) + "\n")
    command = started if harm == "malformed" else thinkdiff  # its rows are told in the log
    done = command(*small_arguments(tmp_path / "root", data), "--until", "sample_captions")
    if harm == "malformed":
        assert done.returncode == 0, done.stderr[-3000:]
        uri = json.loads(done.stdout)["stages"][0]["uri"]
        counts = json.loads(Path(uri, "artifact.json").read_text())["counts"]
        assert counts["malformed"] == 2
        assert "row 6" in done.stderr
    else:
        assert done.returncode == 2
        assert "cc3m.tsv: found" in done.stderr
        assert not list((tmp_path / "root").glob("*/*/artifact.json"))


def test_e2e_model_folder_without_a_file_is_refused(copy, world, tmp_path):
    from thinkdiff.mini.release import weights_folder

    root, _ = copy
    broken = tmp_path / "models" / "broken-t5"
    shutil.copytree(weights_folder() / "mini-t5", broken)
    next(broken.glob("*.safetensors")).unlink()
    model = json.dumps({"name": str(broken), "revision": None})
    done = thinkdiff(*small_arguments(root, world, aligner__t5=model))
    assert done.returncode == 2
    assert (
        f"mini: found 1 of the things that it needs missing or not fit (model {broken}: found no *.safeten"
        in done.stderr
    )
    assert "Nothing was begun" in done.stderr
    assert "Traceback" not in done.stderr


def test_e2e_picture_that_does_not_decode_is_a_failed_row(tmp_path, world):
    import io
    import tarfile

    data = tmp_path / "data"
    shutil.copytree(world, data)
    tar = sorted(data.glob("mini-world-*/cc3m/*.tar"))[0]
    with tarfile.open(tar) as old:
        members = [(m, old.extractfile(m).read()) for m in old.getmembers()]  # pyright: ignore[reportOptionalMemberAccess]
    with tarfile.open(tar, "w") as new:
        for member, body in members:
            body = b"not a picture" if member.name.endswith(".jpg") else body
            member.size = len(body)
            new.addfile(member, io.BytesIO(body))
    done = thinkdiff(*small_arguments(tmp_path / "root", data), "--until", "fetch_images")
    assert done.returncode == 0, done.stderr[-3000:]
    uri = json.loads(done.stdout)["stages"][1]["uri"]
    counts = json.loads(Path(uri, "artifact.json").read_text())["counts"]
    assert counts["images"] + counts["failed"] == counts["captions"] == 160
    assert counts["failed"] > 10
