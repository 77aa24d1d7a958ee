"""Pickles that make a file when they are loaded, in every form that a library would load, and other bytes that are no
data; and what a refusal of them must look like.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

MARKER = "a-pickle-was-run"


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.marker = place / MARKER

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def of_torch(value: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


def of_numpy(value: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.array([value], object), allow_pickle=True)
    return sink.getvalue()


FORMS: dict[str, Callable[[Any], bytes]] = {
    "pickle": pickle.dumps,
    "text pickle": lambda value: pickle.dumps(value, 0),
    "torch": of_torch,
    "numpy": of_numpy,
    "nested JSON": lambda value: b'{"a":' * 100_000,
    "odd JSON": lambda value: b'{"methods": {"x": [NaN, 1e999]}, "schema_version": "1", "validation": -Infinity}',
}


def one_sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    """What was said, which must be a line that says what was found, and not to run a pickle."""
    said = str(error.value)
    assert "\n" not in said
    assert "found" in said
    assert "weights_only" not in said
    assert len(said) < 1000
    return said
