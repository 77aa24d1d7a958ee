"""Model folders as attackers would leave them: pickles as weights or JSON, code to be trusted, weights from elsewhere.

Each is loaded as the stages load it; the outcome is a ModelError and nothing was run (deploy/THREATS.md).
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from planted import FORMS, MARKER, Planted, one_sentence
from tiny_diffusion import make_tiny_flux, make_tiny_judge, make_tiny_t5
from tiny_judges import make_tiny_clip, make_tiny_dino
from tiny_models import make_tiny_qwen_vl

from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.errors import EngineError, ModelError
from thinkdiff.tasks.decoders import open_decoder
from thinkdiff.tasks.judge_classifier import ClassifyingJudge
from thinkdiff.tasks.judge_clip import NearestJudge
from thinkdiff.tasks.models import model_path
from thinkdiff.tasks.qwen_chat import Sampling
from thinkdiff.tasks.qwen_engine import EngineOptions
from thinkdiff.tasks.similarity import Clip, Dino
from thinkdiff.tasks.t5_decoder import T5Decoder
from thinkdiff.tasks.t5_encoder import T5Encoder
from thinkdiff.tasks.transformers_engine import TransformersEngine
from thinkdiff.tasks.vision_tower import VisionTower
from thinkdiff.tasks.vllm_engine import llm_arguments


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model of each kind."""
    base = tmp_path_factory.mktemp("models")
    make_tiny_t5(base / "t5")
    make_tiny_clip(base / "clip")
    make_tiny_dino(base / "dino")
    make_tiny_judge(base / "judge", ["color: red", "object: car"])
    make_tiny_flux(base / "flux", clip=True)
    make_tiny_qwen_vl(base / "qwen")
    return base


def transformers_engine(path: str) -> object:
    sampling = Sampling(0, 1, 1)
    with TransformersEngine(path, dtype="float32", sampling=sampling, device="cpu") as engine:
        return engine


LOADERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "t5 decoder": ("t5", lambda path: T5Decoder(path, "cpu", torch.float32)),
    "t5 encoder": ("t5", T5Encoder),
    "clip": ("clip", Clip),
    "nearest judge": ("clip", lambda path: NearestJudge(path, {})),
    "dino": ("dino", Dino),
    "judge": ("judge", ClassifyingJudge),
    "flux": ("flux", lambda path: open_decoder(path, precision="float32")),
    "transformers": ("qwen", transformers_engine),
    "tower": ("clip", lambda path: VisionTower(path, "cpu", "float32")),
}


def not_loaded(load: Callable[[str], object], folder: Path) -> bool:
    """Whether a folder is refused, in a sentence."""
    try:
        load(str(folder))
    except ModelError as error:
        return "\n" not in str(error)
    return False


def changed(models: Path, name: str, target: Path) -> Path:
    shutil.copytree(models / name, target)
    return target


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_pickled_weights_of_a_model_are_refused_and_never_run(
    models: Path, tmp_path: Path, loader: str, form: str
) -> None:
    name, load = LOADERS[loader]
    data = FORMS[form](Planted(tmp_path))
    for number, beside in enumerate((False, True)):
        folder = changed(models, name, tmp_path / str(number))
        for weights in [*folder.rglob("*.safetensors")]:
            if beside:
                weights.write_bytes(data)
            else:
                stem = "pytorch_model" if weights.stem == "model" else weights.stem
                weights.with_name(f"{stem}.bin").write_bytes(data)
                weights.unlink()
        with pytest.raises(ModelError) as caught:
            load(str(folder))
        one_sentence(caught)
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_pickles_in_the_place_of_a_models_json_are_refused_and_never_run(
    models: Path, tmp_path: Path, loader: str
) -> None:
    (name, load), refused, number = LOADERS[loader], 0, 0
    for number, file in enumerate((models / name).rglob("*.json")):
        folder = changed(models, name, tmp_path / str(number))
        (folder / file.relative_to(models / name)).write_bytes(pickle.dumps(Planted(tmp_path)))
        refused += not_loaded(load, folder)
    assert refused >= number  # of the JSON files one may be of no use to a loader
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "x/../../y", "..\\x", "..", "", 7, None])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "unet/w.safetensors.index.fp16.json"])
def test_weights_that_an_index_looks_for_elsewhere_are_refused(tmp_path: Path, index: str, name: object) -> None:
    place = tmp_path / "models" / "t5" / index
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}))
    run, model = Execution(model_dirs=(str(tmp_path / "models"),)), Model(name="t5")
    assert model_path(model, run) == str(tmp_path / "models" / "t5")
    place.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": name}}))
    with pytest.raises(ModelError, match="expected the name of a file beside it") as refused:
        model_path(model, run)
    assert index in one_sentence(refused)
    place.write_text(json.dumps({"weight_map": [str(name)]}))
    with pytest.raises(ModelError, match="expected the name of a file beside it"):
        model_path(model, run)


@pytest.mark.parametrize("loader", LOADERS)
def test_code_that_a_model_brings_is_never_run_though_a_person_would_say_yes(
    models: Path, tmp_path: Path, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, load = LOADERS[loader]
    classes = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoModelForImageTextToText",
               "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")  # fmt: skip
    code = {
        "auto_map": dict.fromkeys(classes, "planted.Planted"),
        "model_type": "planted",
        "tokenizer_class": "Planted",
    }
    code |= {"processor_class": "Planted", "image_processor_type": "Planted", "scheduler": ["planted", "Planted"]}
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))
    for number, file in enumerate((models / name).rglob("*.json")):
        folder = changed(models, name, tmp_path / str(number))
        changes = code | {"auto_map": {"AutoTokenizer": ["planted.Planted"] * 2}} if "tokenizer" in file.name else code
        path = folder / file.relative_to(models / name)
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        for place in {folder, *(one.parent for one in folder.rglob("*.json"))}:
            (place / "planted.py").write_text(f"open({str(tmp_path / MARKER)!r}, 'w')\nclass Planted: pass\n")
        not_loaded(load, folder)
    assert not (tmp_path / MARKER).exists()


def test_a_run_cannot_ask_vllm_to_trust_code(models: Path) -> None:
    from transformers import LlamaConfig

    text = LlamaConfig()
    options = EngineOptions(
        "m", None, "float32", Sampling(0, 1, 1), False, frozenset(), 1, "cpu", 1, 64, 1.0, False, False, "template",
        {"trust_remote_code": True},
    )  # fmt: skip
    with pytest.raises(EngineError, match="found trust_remote_code, expected none of them"):
        llm_arguments(options, text, True, {})
    given = llm_arguments(dataclasses.replace(options, vllm={}), text, True, {})
    assert (given["trust_remote_code"], given["load_format"]) == (False, "safetensors")
