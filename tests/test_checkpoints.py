"""Weights and checkpoints: against torch's own safetensors, and what a torn or altered checkpoint does."""

# ruff: noqa: F811 - a fixture is imported and then is a parameter's name

from __future__ import annotations

import errno
import math
import os
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from s3_server import place, s3  # noqa: F401
from store_artifacts import artifact_of, cut, flip

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.errors import InputError, LockedError, RootError, StoreError
from thinkdiff.storage.checkpoints import (
    CheckpointWriter,
    Tensors,
    load_aligner,
    read_tensors,
    save_aligner,
    tensors_bytes,
)
from thinkdiff.storage.root import Folder


def tensors(step: int = 0) -> Tensors:
    return {
        "weights/a": np.arange(6, dtype=np.float32).reshape(2, 3) + step,
        "weights/turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "step/a": np.array(step, np.float32),
        "half": np.arange(3).astype(ml_dtypes.bfloat16),
        "rng": np.arange(256, dtype=np.uint8),
        "count": np.array([step, 1 << 40]),
        "mask": np.array([True, False]),
        "none": np.zeros((0, 4), np.float32),
    }


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


def test_aligner_is_read_back_with_its_configuration(place: Folder):
    files = save_aligner(place, tensors(), {"width": 8, "norm": "t5"})
    assert [entry.path for entry in files] == ["aligner.safetensors", "config.json"]
    found, config = load_aligner(artifact_of(AlignerCheckpoint, place, files))
    assert_same(found, tensors())
    assert config == {"width": 8, "norm": "t5"}


def test_bytes_are_those_of_safetensors_for_torch():
    ours = safetensors.torch.load(tensors_bytes(tensors()))
    for name, array in tensors().items():
        assert ours[name].shape == array.shape
        np.testing.assert_array_equal(ours[name].to(torch.float64).numpy(), array.astype(np.float64))
    theirs = safetensors.torch.save({"x": torch.ones(2, 3, dtype=torch.bfloat16)})
    assert_same(read_tensors(theirs, "x"), {"x": np.ones((2, 3), ml_dtypes.bfloat16)})


def test_same_arrays_give_the_same_bytes_in_any_order():
    held = tensors()
    assert tensors_bytes(held) == tensors_bytes(dict(reversed(held.items())))


def test_array_of_an_unknown_type_is_refused():
    with pytest.raises(InputError, match="complex128"):
        tensors_bytes({"x": np.zeros(2, complex)})


class Planted:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        b"\xff" * 64,
        pickle.dumps(Planted()),
        tensors_bytes(tensors())[:-1],
        b"\x02" + bytes(7) + b"{}x",
    ],
)
def test_what_is_no_safetensors_raises(data: bytes, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(StoreError, match="no readable safetensors"):
        read_tensors(data, "x")
    assert capsys.readouterr().out == ""


def test_altered_aligner_raises(tmp_path: Path):
    folder = Folder(str(tmp_path))
    artifact = artifact_of(AlignerCheckpoint, folder, save_aligner(folder, tensors(), {"a": 1}))
    flip(folder, "aligner.safetensors", -1)
    with pytest.raises(StoreError, match=r"aligner\.safetensors: found other bytes"):
        load_aligner(artifact)
    flip(folder, "config.json", 0)
    with pytest.raises(StoreError, match=r"config\.json"):
        load_aligner(artifact)


def test_latest_checkpoint_is_the_newest(place: Folder):
    writer = CheckpointWriter(place)
    assert writer.latest() is None
    for step in (100, 20, 3):
        writer.save(step, tensors(step), {"training": [1.5, step], "validation": []})
    found = CheckpointWriter(place).latest()
    assert found is not None
    step, arrays, state = found
    assert (step, state) == (100, {"training": [1.5, 100], "validation": []})
    assert_same(arrays, tensors(100))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("checkpoints/00000002.json", lambda folder, name: cut(folder, name, 30)),
        ("checkpoints/00000002.json", lambda folder, name: folder.write(name, b"")),
        ("checkpoints/00000002.json", lambda folder, name: folder.delete(name)),
        ("checkpoints/00000002.safetensors", lambda folder, name: folder.delete(name)),
        ("checkpoints/00000002.safetensors", lambda folder, name: cut(folder, name, 300)),
        ("checkpoints/00000002.safetensors", lambda folder, name: flip(folder, name, -3)),
    ],
)
def test_broken_checkpoint_falls_back_to_the_one_before(tmp_path: Path, name: str, fault):
    folder = Folder(str(tmp_path))
    writer = CheckpointWriter(folder)
    for step in (1, 2):
        writer.save(step, tensors(step), {"step": step})
    fault(folder, name)
    found = CheckpointWriter(folder).latest()
    assert found is not None
    assert (found[0], found[2]) == (1, {"step": 1})
    writer.save(2, tensors(2), {"step": 2})
    again = writer.latest()
    assert again is not None
    assert again[0] == 2


def test_disk_that_does_not_answer_for_a_moment_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Folder(str(tmp_path))
    for step in (1, 2):
        CheckpointWriter(folder).save(step, tensors(step), {})
    before = folder.sizes()

    def broken(path: str) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as disk:
        disk.setattr(os, "scandir", broken)
        with pytest.raises(RootError, match="Stale file handle"):
            CheckpointWriter(folder).latest()
    assert folder.sizes() == before
    found = CheckpointWriter(folder).latest()
    assert found is not None
    assert found[0] == 2


def test_checkpoint_of_a_step_that_is_lost_or_altered_is_told_with_the_way_out(tmp_path: Path):
    folder = Folder.at(str(tmp_path))
    CheckpointWriter(folder).save(2, tensors(2), {})
    flip(folder, "checkpoints/00000002.safetensors", -3)
    for step in (1, 2):
        with pytest.raises(StoreError, match=f"no whole checkpoint of step {step}, .* --refresh train_aligner"):
            CheckpointWriter(folder).at(step)


@pytest.mark.parametrize("last", [1, 2, 3, 9])
def test_keep_and_clear_leave_what_they_say(place: Folder, last: int):
    writer = CheckpointWriter(place)
    place.write("losses.json", b"[]")
    for step in range(1, 6):
        writer.save(step, tensors(step), {})
        writer.keep(last=last)
    kept = [f"checkpoints/{step:08}.{kind}" for step in range(1, 6)[-last:] for kind in ("json", "safetensors")]
    assert sorted(place.sizes()) == sorted([*kept, "losses.json"])
    place.write("checkpoints/00000009.safetensors", b"left by a killed run")
    writer.clear()
    assert place.sizes() == {"losses.json": 2}
    assert writer.latest() is None


def test_save_of_a_diverged_state_or_a_second_time_is_refused(tmp_path: Path):
    writer = CheckpointWriter(Folder(str(tmp_path)))
    with pytest.raises(InputError, match="diverged"):
        writer.save(1, tensors(), {"training": [1.0, math.nan]})
    assert writer.latest() is None
    writer.save(1, tensors(), {})
    with pytest.raises(LockedError, match="committed"):
        writer.save(1, tensors(), {})
