"""Weights as safetensors: the aligner that a training leaves behind, and the checkpoints it can go on from.

In: arrays by name and a JSON-like state. Out: the same, verified. A checkpoint is `checkpoints/<step>.safetensors`
(weights, moments, generator states as uint8) and `checkpoints/<step>.json`, its part record, written last. There is no
pickle; bfloat16 arrays are those of ml_dtypes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, TensorSpec, deserialize, serialize

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.errors import InputError, StoreError
from thinkdiff.storage.parts import Part, PartLog
from thinkdiff.storage.records import checked_bytes, checked_object, verified_bytes
from thinkdiff.storage.root import Folder

Tensors = dict[str, npt.NDArray[Any]]
WEIGHTS, CONFIG = "aligner.safetensors", "config.json"
CHECKPOINTS = "checkpoints"
DIGITS = 8
log = logging.getLogger(__name__)
TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def tensors_bytes(tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Arrays as a safetensors file; the same arrays give the same bytes. Raises InputError for a type it lacks."""
    # np.asarray keeps a scalar a scalar, np.ascontiguousarray would make it a vector.
    held = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    for name, array in held.items():
        if array.dtype not in TYPES.values():
            raise InputError(f"{name}: found an array of {array.dtype}, expected one of {', '.join(TYPES)}.")
    specs = {
        name: TensorSpec(dtype=array.dtype.name, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in held.items()
    }
    return bytes(serialize(specs))


def read_tensors(data: bytes, where: str) -> Tensors:
    """The arrays of a safetensors file, read-only. Raises StoreError when it is none."""
    try:
        return {
            name: np.frombuffer(about["data"], TYPES[about["dtype"]]).reshape(about["shape"])
            for name, about in deserialize(data)
        }
    except (SafetensorError, LookupError, ValueError, TypeError) as error:
        raise StoreError(
            f"{where}: found no readable safetensors ({error!s:.80}), expected them. Re-run the stage with --refresh."
        ) from error


def save_aligner(
    folder: Folder, tensors: Mapping[str, npt.NDArray[Any]], config: Mapping[str, Any]
) -> tuple[FileEntry, ...]:
    """Writes `aligner.safetensors` and `config.json`."""
    weights = folder.write(WEIGHTS, tensors_bytes(tensors))
    return weights, folder.write(CONFIG, json.dumps(dict(config), indent=1, sort_keys=True, allow_nan=False).encode())


def load_aligner(artifact: AlignerCheckpoint) -> tuple[Tensors, dict[str, Any]]:
    """Weights and configuration of a trained aligner. Raises StoreError when they are lost or altered."""
    config = checked_object(artifact, CONFIG)
    return read_tensors(checked_bytes(artifact, WEIGHTS), artifact.path(WEIGHTS)), config


class CheckpointWriter:
    """The resumable checkpoints of a training, newest last."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._log = PartLog(folder, CHECKPOINTS, Part, DIGITS)

    def save(self, step: int, tensors: Mapping[str, npt.NDArray[Any]], state: Mapping[str, Any]) -> FileEntry:
        """Writes a checkpoint; `state` is JSON and finite. Returns the entry of the arrays.

        Raises InputError when the state holds NaN or infinity, LockedError when the step has a checkpoint already.
        """
        must_be_finite(state, f"{self.folder.uri}: step {step}")
        self._log.must_be_free(step)
        entry = self.folder.write(tensors_name(step), tensors_bytes(tensors))
        self._log.commit(Part(number=step, rows=len(tensors), files=(entry,), info=dict(state)))
        return entry

    def latest(self) -> tuple[int, Tensors, dict[str, Any]] | None:
        """Step, arrays and state of the newest checkpoint that is whole, or None when there is none."""
        for step, part in sorted(self._committed().items(), reverse=True):
            try:
                data = verified_bytes(self.folder, part.files[0])
                return step, read_tensors(data, f"{self.folder.uri}/{tensors_name(step)}"), part.info
            except StoreError:
                self._log.reject(step, "other bytes than recorded")
        return None

    def at(self, step: int) -> Tensors:
        """The arrays of the checkpoint of a step. Raises StoreError when it is not there or not whole."""
        part = self._committed().get(step)
        try:
            if part is not None:
                data = verified_bytes(self.folder, part.files[0])
                return read_tensors(data, f"{self.folder.uri}/{tensors_name(step)}")
        except StoreError as error:
            log.warning("%s", error)
        raise StoreError(
            f"{self.folder.uri}: found no whole checkpoint of step {step}, expected the one that the training wrote. "
            "Run the stage with --refresh train_aligner: it trains anew, to the same weights."
        )

    def keep(self, last: int, also: Sequence[int] = ()) -> None:
        """Removes all checkpoints but the newest `last` and those of the steps `also`."""
        steps = sorted(self._committed())
        for step in set(steps[: max(len(steps) - last, 0)]) - set(also):
            # The record first: what has no record is no checkpoint.
            self.folder.delete(self._log.name(step))
            self.folder.delete(tensors_name(step))

    def clear(self) -> None:
        """Removes all checkpoints, whole or not."""
        names = self.folder.sizes(CHECKPOINTS)
        for name in sorted(names, key=lambda name: not name.endswith(".json")):
            self.folder.delete(name)
        (self.folder / CHECKPOINTS).sweep()

    def _committed(self) -> dict[int, Part]:
        return self._log.committed(lambda part: None if part.names() == [tensors_name(part.number)] else "other files")


def tensors_name(step: int) -> str:
    """The name of the arrays of a checkpoint."""
    return f"{CHECKPOINTS}/{step:0{DIGITS}d}.safetensors"


def must_be_finite(state: Mapping[str, Any], where: str) -> None:
    """Raises InputError when a state cannot be kept as JSON, as when a loss is NaN."""
    try:
        json.dumps(state, allow_nan=False)
    except ValueError as error:
        raise InputError(
            f"{where}: found a state with NaN or infinity, expected finite numbers. The training has diverged; "
            "lower the learning rate."
        ) from error
