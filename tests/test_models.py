"""Finding models: folders before the hub, digests verified, names kept inside, every failure one sentence."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.errors import ModelError, SpecError
from thinkdiff.tasks.models import compute_device, folder_revision, loading, model_path, require_files


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A model folder `family/tiny` with one file in a subfolder."""
    (tmp_path / "family/tiny/sub").mkdir(parents=True)
    (tmp_path / "family/tiny/config.json").write_bytes(b"{}")
    (tmp_path / "family/tiny/sub/weights.bin").write_bytes(b"abc" * 1000)
    return tmp_path / "family"


def run_with(*folders: Path | str) -> Execution:
    return Execution(model_dirs=tuple(str(folder) for folder in folders))


def test_model_is_found_in_the_first_model_folder_that_has_it(family: Path, tmp_path: Path):
    path = model_path(Model(name="tiny"), run_with(tmp_path / "absent", family))
    assert Path(path) == family / "tiny"


def test_model_named_by_its_path_is_found_without_model_folders(family: Path):
    assert Path(model_path(Model(name=str(family / "tiny")), run_with())) == family / "tiny"


def test_folder_revision_is_the_documented_digest(family: Path):
    files = {"config.json": b"{}", "sub/weights.bin": b"abc" * 1000}
    text = "".join(f"{name}\0{hashlib.sha256(data).hexdigest()}\n" for name, data in sorted(files.items()))
    assert folder_revision(family / "tiny") == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_folder_revision_of_links_is_that_of_their_files(family: Path, tmp_path: Path):
    (tmp_path / "linked/sub").mkdir(parents=True)
    for name in ("config.json", "sub/weights.bin"):
        (tmp_path / "linked" / name).symlink_to(family / "tiny" / name)
    assert folder_revision(tmp_path / "linked") == folder_revision(family / "tiny")


@pytest.mark.parametrize("change", ["alter", "remove", "add"])
def test_folder_of_another_digest_than_its_revision_is_refused(family: Path, change: str):
    model = Model(name="tiny", revision=folder_revision(family / "tiny"))
    assert model_path(model, run_with(family))
    file = family / "tiny/sub/weights.bin"
    if change == "alter":
        file.write_bytes(b"abd" * 1000)
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # clocks of some filesystems are coarse
    elif change == "remove":
        file.unlink()
    else:
        (family / "tiny/more.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"model tiny: found .* with digest sha256:.*, expected sha256:"):
        model_path(model, run_with(family))


@pytest.mark.parametrize("name", ["../family/tiny", "tiny/../../family/tiny", "..\\family\\tiny"])
def test_name_that_leaves_the_model_folders_is_not_looked_for_in_them(family: Path, tmp_path: Path, name: str):
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match="expected"):
        model_path(Model(name=name, revision="sha256:" + "0" * 64), run_with(tmp_path / "other"))


def test_absent_model_with_a_digest_is_an_error_that_never_asks_the_hub(tmp_path: Path):
    with pytest.raises(ModelError, match="A revision by digest is never fetched"):
        model_path(Model(name="tiny", revision="sha256:" + "0" * 64), run_with(tmp_path))


def test_empty_folder_is_not_a_model(tmp_path: Path):
    (tmp_path / "tiny").mkdir()
    with pytest.raises(ModelError, match=r"found .*tiny empty"):
        model_path(Model(name="tiny"), run_with(tmp_path))


def test_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path):
    code = """
from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.errors import ModelError
from thinkdiff.tasks.models import model_path
try:
    model_path(Model(name="no-such/model"), Execution())
except ModelError as error:
    print(error)
"""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.startswith("model no-such/model: found it in no model folder, and the hub did not")
    assert done.stdout.count("\n") == 1


def test_require_files_names_the_missing_or_empty_file(family: Path):
    require_files(family / "tiny", ("config.json", "sub/*.bin"))
    with pytest.raises(ModelError, match=r"found no file \*.safetensors"):
        require_files(family / "tiny", ("config.json", "*.safetensors"))
    (family / "tiny/config.json").write_bytes(b"")
    with pytest.raises(ModelError, match=r"found no file config\.json with content"):
        require_files(family / "tiny", ("config.json",))


def test_truncated_weights_are_a_model_error(tmp_path: Path):
    import torch
    from safetensors.torch import load_file, save_file

    save_file({"weight": torch.zeros(100)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-50])
    with pytest.raises(ModelError, match="found it not loadable"), loading(tmp_path):
        load_file(tmp_path / "model.safetensors")


def test_gpu_that_is_asked_for_but_absent_is_refused():
    import torch

    assert compute_device(Execution(device="cpu")) == "cpu"
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert compute_device(Execution()) == "cpu"
    with pytest.raises(SpecError, match="found no GPU"):
        compute_device(Execution(device="cuda"))
