"""The authors' `.pth` and the hub's folder: what is read back, what is refused, and the commands between them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_run import thinkdiff
from small_training import WIDTH, make_features, spec, work
from typer.testing import CliRunner

from thinkdiff.flows.cli import app
from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import Execution, Model, fingerprint
from thinkdiff.schemas.errors import InputError, ModelError, SpecError, StoreError, ThinkDiffError
from thinkdiff.storage.records import artifact_folder, write_record
from thinkdiff.tasks.aligner import Aligner, AlignerConfig
from thinkdiff.tasks.aligner_files import (
    Card,
    artifact_tensors,
    card_text,
    from_pretrained,
    read_authors_checkpoint,
    save_pretrained,
    write_authors_checkpoint,
)
from thinkdiff.tasks.alignment import TrainedAligner
from thinkdiff.tasks.compose import chosen_aligner
from thinkdiff.tasks.train_aligner import train_aligner

Q, H, D = 5, 7, 6
CONFIG = AlignerConfig(Q, H, D)
WEIGHTS = "model.safetensors"
NAMES = [f"mm_projector.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias", "3.weight")]


def weights(config: AlignerConfig = CONFIG) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn_like(value) for name, value in Aligner(config).state_dict().items()}


def release(model: Any) -> dict[str, Any]:
    """What the authors' code saves around the weights."""
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(H, Q)}}
    return {
        "model": model, "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
        "config": {"run": {"max_epoch": 40}}, "scaler": {"scale": 65536.0}, "epoch": 4,
    }  # fmt: skip


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == NAMES[: len(expected)]
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        assert found[name].numpy().tobytes() == value.float().numpy().tobytes()


def sentence(error: pytest.ExceptionInfo[ThinkDiffError], *parts: str):
    """Asserts that the message is one line, says what was found and expected, and does not advise to run a pickle."""
    text = str(error.value)
    assert text.endswith(".")
    assert not [part for part in ("\n", "weights_only") if part in text], text
    assert not [part for part in ("found", "expected", *parts) if part not in text], text


@pytest.mark.parametrize(
    "around",
    [
        release,
        dict,
        OrderedDict,
        lambda model: {"model": model},
        lambda model: release({f"module.{name}": value for name, value in model.items()}),
        lambda model: {f"module.{name}": value for name, value in model.items()},
        lambda model: release({name: torch.nn.Parameter(value) for name, value in model.items()}),
        lambda model: release(model | {"visual.rotary.inv_freq": torch.ones(3), "decoder.shared": torch.ones(2, 2)}),
    ],
    ids=["release", "bare", "ordered", "model-only", "module", "bare-module", "parameters", "buffers"],
)
def test_authors_checkpoint_is_read_bit_for_bit(tmp_path: Path, around):
    found, config = read_authors_checkpoint(saved(tmp_path / "a.pth", around(weights())))
    assert config == CONFIG
    assert_same(found, weights())
    older = saved(tmp_path / "a.pth", around(weights()), _use_new_zipfile_serialization=False)
    assert_same(read_authors_checkpoint(older)[0], weights())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_floats_become_float32(tmp_path: Path, dtype: torch.dtype):
    held = {name: value.to(dtype) for name, value in weights().items()}
    assert_same(read_authors_checkpoint(saved(tmp_path / "a.pth", release(held)))[0], held)


def test_layout_of_the_released_lvlm_aligner_round_trips(tmp_path: Path):
    """3584 -> 4096 -> 4096 in the paper, here a hundredth of each; the CLIP variant has another input alone."""
    for width in (36, 14):
        config = AlignerConfig(width, 41, 41)
        write_authors_checkpoint(tmp_path / "a.pth", weights(config))
        found, read = read_authors_checkpoint(str(tmp_path / "a.pth"))
        assert read == config
        assert_same(found, weights(config))
    assert os.listdir(tmp_path) == ["a.pth"]


def test_written_checkpoint_loads_as_the_authors_load_theirs(tmp_path: Path):
    whole = torch.arange(1000.0)
    views = {"mm_projector.0.weight": whole[:35].view(Q, H).T, "mm_projector.0.bias": whole[:H]}
    write_authors_checkpoint(tmp_path / "a.pth", weights() | views)
    held = torch.load(tmp_path / "a.pth", map_location="cpu", weights_only=True)
    assert list(held) == ["model"]
    projector = torch.nn.Module()
    projector.mm_projector = Aligner(CONFIG).mm_projector
    assert projector.load_state_dict(held["model"], strict=False) == ([], [])
    assert held["model"]["mm_projector.0.weight"].equal(views["mm_projector.0.weight"])
    assert sum(value.untyped_storage().nbytes() for value in held["model"].values()) == 4 * (H * Q + H + D * H + D + D)


class Planted:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["pickle", "zip", "older", "beside"])
def test_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, kind: str, recwarn: pytest.WarningsRecorder):
    planted, path = Planted(tmp_path / "marker"), tmp_path / "a.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(planted))
    elif kind == "beside":
        saved(path, release(weights()) | {"config": planted})
    else:
        saved(path, {"model": planted}, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(InputError) as error:
        read_authors_checkpoint(path)
    sentence(error, str(path), *([] if kind == "pickle" else ["asks for 'posix.system'", "nothing was run"]))
    assert not (tmp_path / "marker").exists()
    assert not recwarn.list


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights().items() if key != name}


BREACHES: dict[str, tuple[Any, str]] = {
    **{f"no-{name}": (without(name), f"found no {name}") for name in NAMES},
    "surplus": (weights() | {"mm_projector.4.weight": torch.ones(D)}, "found 'mm_projector.4.weight'"),
    "twice": (weights() | {f"module.{NAMES[1]}": torch.ones(H)}, "found a name twice"),
    "no-matrix": (weights() | {NAMES[0]: torch.ones(H)}, f"found {NAMES[0]} of shape ({H},), expected 2 dimensions"),
    "empty": (weights() | {NAMES[0]: torch.ones(0, Q)}, f"found {NAMES[0]} of shape (0, {Q})"),
    "bias-of-one": (weights() | {NAMES[1]: torch.ones(1)}, f"found {NAMES[1]} of shape (1,), expected ({H},)"),
    "middle": (weights() | {NAMES[2]: torch.ones(D, H + 1)}, f"of shape ({D}, {H + 1}), expected ({D}, {H})"),
    "turned": (weights() | {NAMES[0]: torch.ones(Q, H)}, f"found {NAMES[1]} of shape ({H},), expected ({Q},)"),
    "norm": (weights() | {NAMES[4]: torch.ones(D + 1)}, f"found {NAMES[4]} of shape ({D + 1},), expected ({D},)"),
    "nan": (weights() | {NAMES[2]: torch.full((D, H), torch.nan)}, f"found {D * H} of {D * H} values of {NAMES[2]}"),
    "infinity": (weights() | {NAMES[2]: torch.full((D, H), -torch.inf)}, "NaN or infinite"),
    "beyond-float32": (weights() | {NAMES[3]: torch.full((D,), 1e300, dtype=torch.float64)}, f"found {D} of {D}"),
    "integers": (weights() | {NAMES[2]: torch.ones(D, H, dtype=torch.int64)}, "of torch.int64, expected floats"),
    "sparse": (weights() | {NAMES[2]: torch.ones(D, H).to_sparse()}, "to be no array of numbers"),
    "meta": (weights() | {NAMES[2]: torch.ones(D, H, device="meta")}, "to be no array of numbers"),
    "no-tensor": (weights() | {NAMES[2]: [1.0, 2.0]}, "to be no array of numbers"),
    "repeated": (weights() | {NAMES[0]: torch.ones(1).expand(1 << 20, 1 << 20)}, "of shape (1048576, 1048576)"),
    "list": ([1, 2], "expected"),
    "tensor": (torch.ones(3), "expected"),
    "nothing": ({}, f"found no {NAMES[0]}"),
    "other-model": ({"encoder.weight": torch.ones(2)}, f"found no {NAMES[0]}"),
}


@pytest.mark.parametrize(("state", "says"), BREACHES.values(), ids=BREACHES)
def test_checkpoint_that_is_no_aligner_is_refused_in_one_sentence(tmp_path: Path, state: Any, says: str):
    for value in (release(state), state):
        with pytest.raises(InputError) as error:
            read_authors_checkpoint(saved(tmp_path / "a.pth", value))
        sentence(error, str(tmp_path / "a.pth"), says)


@pytest.mark.parametrize("share", [0, 1, 50, 99])
def test_truncated_file_is_refused(tmp_path: Path, share: int):
    data = saved(tmp_path / "a.pth", release(weights())).read_bytes()
    (tmp_path / "a.pth").write_bytes(data[: len(data) * share // 100])
    with pytest.raises(InputError) as error:
        read_authors_checkpoint(tmp_path / "a.pth")
    sentence(error, "found no readable checkpoint")


def test_what_is_no_checkpoint_file_is_refused(tmp_path: Path):
    (tmp_path / "text.pth").write_text("<html>moved</html>" * 9)
    for name in ("text.pth", "absent.pth", "."):
        with pytest.raises(InputError) as error:
            read_authors_checkpoint(f"{tmp_path}/{name}" if name != "." else tmp_path)
        sentence(error)


def test_aligner_without_a_norm_has_no_place_in_the_authors_layout(tmp_path: Path):
    with pytest.raises(SpecError) as error:
        write_authors_checkpoint(tmp_path / "a.pth", without(NAMES[4]))
    sentence(error, f"found no {NAMES[4]}", "hub")
    assert not os.listdir(tmp_path)


def front_matter(text: str) -> dict[str, Any]:
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


@pytest.mark.parametrize("norm", ["t5", "default", "none"])
def test_hub_folder_is_read_back_bit_for_bit(tmp_path: Path, norm: Any):
    config = AlignerConfig(Q, H, D, norm)
    save_pretrained(tmp_path / "hub", weights(config), config)
    assert sorted(os.listdir(tmp_path / "hub")) == ["README.md", "config.json", WEIGHTS]
    stored, held = (load_file(tmp_path / "hub" / WEIGHTS), json.loads((tmp_path / "hub" / "config.json").read_text()))
    assert_same({name: stored[name] for name in NAMES if name in stored}, weights(config))
    assert held == config.as_dict() | {"library_name": "thinkdiff", "model_type": "thinkdiff_aligner"}
    state = torch.get_rng_state()
    found = from_pretrained(tmp_path / "hub")
    assert state.equal(torch.get_rng_state()), "loading draws no random numbers"
    assert (found.config, found.training) == (config, False)
    assert_same(dict(found.state_dict()), weights(config))
    expected = Aligner(config)
    expected.load_state_dict(weights(config))
    x_LQ = torch.randn(3, Q)
    assert found(x_LQ).equal(expected(x_LQ))


def test_card_says_what_is_known_and_no_more():
    unknown = front_matter(card_text(CONFIG, Card()))
    assert unknown == {
        "license": "other", "library_name": "thinkdiff", "pipeline_tag": "image-text-to-image",
        "tags": ["thinkdiff", "aligner", "arxiv:2502.10458"],
    }  # fmt: skip
    hub = (Model(name="Qwen/Qwen2-VL-7B-Instruct"), Model(name="google/flan-t5-xxl", revision="ae7c9136"))
    text = card_text(AlignerConfig(3584, 4096, 4096), Card(vlm=hub[0], t5=hub[1], license="cc-by-nc-4.0"))
    known = front_matter(text)
    assert known["base_model"] == [model.name for model in hub]
    assert (known["base_model_relation"], known["license"]) == ("adapter", "cc-by-nc-4.0")
    assert "31,469,568 parameters" in text
    local = (Model(name="lab/model", revision="sha256:" + "0" * 64), Model(name="/models/t5"))
    assert "base_model" not in front_matter(card_text(CONFIG, Card(vlm=local[0], t5=local[1])))


def changed_config(folder: Path, **changes: Any) -> None:
    held = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in held.items() if value is not None}))


def put(folder: Path, **changes: torch.Tensor) -> None:
    save_file(weights() | {f"mm_projector.{n.replace('_', '.')}": v for n, v in changes.items()}, folder / WEIGHTS)


FAULTS: dict[str, tuple[Any, str]] = {
    "no-weights": (lambda folder: (folder / WEIGHTS).unlink(), f"found no {WEIGHTS}"),
    "bin-only": (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "safetensors only"),
    "pth-only": (lambda folder: (folder / WEIGHTS).rename(folder / "thinkdiff_lvlm.pth"), "thinkdiff import-aligner"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "found no config.json"),
    "pickled": (lambda folder: torch.save(weights(), folder / WEIGHTS), "found no readable safetensors"),
    "cut": (lambda folder: os.truncate(folder / WEIGHTS, 300), "found no readable safetensors"),
    "config-no-json": (lambda folder: (folder / "config.json").write_text("{"), "in config.json, expected in_features"),
    "config-lacks": (lambda folder: changed_config(folder, hidden=None), "in config.json"),
    "config-text": (lambda folder: changed_config(folder, hidden="7"), "in config.json"),
    "config-negative": (lambda folder: changed_config(folder, hidden=-7), "in config.json"),
    "config-norm": (lambda folder: changed_config(folder, norm="batch"), "in config.json"),
    "config-norm-list": (lambda folder: changed_config(folder, norm=["t5"]), "in config.json"),
    "config-huge": (lambda folder: changed_config(folder, hidden=10**15), f"expected ({10**15}, {Q})"),
    "config-none": (lambda folder: changed_config(folder, norm="none"), f"found '{NAMES[4]}'"),
    "nan": (lambda folder: put(folder, **{"2_bias": torch.full((D,), torch.nan)}), f"found {D} of {D} values"),
    "integers": (lambda folder: put(folder, **{"2_bias": torch.ones(D, dtype=torch.int32)}), "of torch.int32"),
    "surplus": (lambda folder: put(folder, **{"4_bias": torch.ones(D)}), "found 'mm_projector.4.bias'"),
}


@pytest.mark.parametrize(("fault", "says"), FAULTS.values(), ids=FAULTS)
def test_broken_hub_folder_is_refused_in_one_sentence(tmp_path: Path, fault, says: str):
    save_pretrained(tmp_path, weights(), CONFIG)
    fault(tmp_path)
    with pytest.raises(ModelError) as error:
        from_pretrained(tmp_path)
    sentence(error, says)


def test_name_that_is_nowhere_is_refused_in_one_sentence():
    with pytest.raises(ModelError) as error:
        from_pretrained("no-such-lab/no-such-aligner")
    sentence(error, "the hub did not give it")


def test_aligner_is_found_below_a_model_folder(tmp_path: Path):
    save_pretrained(tmp_path / "lab" / "aligner", weights(), CONFIG)
    found = from_pretrained("lab/aligner", run=Execution(model_dirs=(str(tmp_path),)))
    assert_same(dict(found.state_dict()), weights())


def test_weights_of_another_configuration_are_not_saved(tmp_path: Path):
    with pytest.raises(SpecError) as error:
        save_pretrained(tmp_path / "hub", weights(), AlignerConfig(Q, H + 1, D))
    sentence(error)
    assert not (tmp_path / "hub").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> AlignerCheckpoint:
    """A training of two steps and its record, beside its features."""
    root = tmp_path_factory.mktemp("root")
    features, asked = make_features(root), spec(steps=2)
    folder = artifact_folder(str(root), "train_aligner", fingerprint(asked, {"features": features}))
    made = train_aligner.body(work(folder.uri), asked, features)
    artifact = train_aligner._record(folder, asked, {"features": features}, made, 1.0)
    write_record(artifact)
    return artifact


def command(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_trained_aligner_goes_out_and_comes_back_by_the_commands(trained: AlignerCheckpoint, tmp_path: Path):
    root, pth, hub = str(Path(trained.uri).parents[1]), tmp_path / "lvlm.pth", tmp_path / "hub"
    start = trained.fingerprint[:8]
    assert str(pth) in command("export-aligner", start, str(pth), "--root", root, "--format", "authors")
    assert "-> 24 ->" in command("import-aligner", str(pth), str(hub), "--license", "apache-2.0")
    command("export-aligner", "latest", str(tmp_path / "direct"), "--root", root)
    rows = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)
    expected = TrainedAligner(trained, "cpu")(rows)
    for folder in (hub, tmp_path / "direct"):
        assert_same(dict(from_pretrained(folder).state_dict()), artifact_tensors(trained)[0])
        found = TrainedAligner(chosen_aligner(Execution(root=root), str(folder)), "cpu")
        np.testing.assert_array_equal(found(rows), expected)
    card = (hub / "README.md").read_text()
    assert front_matter(card)["license"] == "apache-2.0"
    assert "Converted from `lvlm.pth` (sha256 `" in card


def test_exported_card_tells_the_training_and_the_vlm_where_its_features_are(
    trained: AlignerCheckpoint, tmp_path: Path
):
    root = shutil.copytree(Path(trained.uri).parents[1], tmp_path / "root")
    command("export-aligner", trained.fingerprint, str(tmp_path / "hub"), "--root", str(root))
    card = (tmp_path / "hub" / "README.md").read_text()
    for fact in ("| vision-language model | `mini-qwen2-vl` |", "| T5 | `mini-t5` |", "| steps | 2 |"):
        assert fact in card
    assert f"| final training loss | {trained.stats['final_training_loss']} |" in card
    for digest in (trained.digest, trained.parents["features"].digest):
        assert digest in card
    assert json.loads(card.split("```json\n")[1].split("```")[0]) == trained.spec
    shutil.rmtree(root / "extract_features")
    command("export-aligner", "latest", str(tmp_path / "hub"), "--root", str(root))
    assert "| vision-language model | not recorded |" in (tmp_path / "hub" / "README.md").read_text()


def test_altered_artifact_is_not_exported(trained: AlignerCheckpoint, tmp_path: Path):
    shutil.copytree(Path(trained.uri).parents[1], tmp_path / "root")
    (path,) = (tmp_path / "root").glob("train_aligner/*/aligner.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(StoreError, match="other bytes than recorded"):
        command("export-aligner", "latest", str(tmp_path / "hub"), "--root", str(tmp_path / "root"))
    assert not (tmp_path / "hub").exists()


def test_hub_export_to_the_name_of_a_file_is_refused(trained: AlignerCheckpoint, tmp_path: Path):
    with pytest.raises(SpecError) as error:
        command("export-aligner", "latest", str(tmp_path / "a.pth"), "--root", str(Path(trained.uri).parents[1]))
    sentence(error, "--format authors")


def test_import_of_a_malicious_file_ends_with_one_sentence_and_no_folder(tmp_path: Path):
    saved(tmp_path / "evil.pth", {"model": Planted(tmp_path / "marker")})
    done = thinkdiff("import-aligner", str(tmp_path / "evil.pth"), str(tmp_path / "hub"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"thinkdiff: {tmp_path}/evil.pth: found a pickle that asks for 'posix.system'")
    assert os.listdir(tmp_path) == ["evil.pth"]


def test_features_of_another_width_are_refused_in_one_sentence(tmp_path: Path):
    save_pretrained(tmp_path, weights(), CONFIG)
    apply = TrainedAligner(from_pretrained(tmp_path), "cpu")
    assert apply(np.ones((2, Q), np.float16)).shape == (2, D)
    with pytest.raises(InputError) as error:
        apply(np.ones((2, Q + 1), np.float32))
    sentence(error, f"{Q + 1} wide, expected {Q}")
