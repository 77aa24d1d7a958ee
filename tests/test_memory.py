"""Memory that is used again: never while anybody looks at it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch

from thinkdiff.storage.memory import MOST_ARRAYS, Memory


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_given_out_again_once_its_views_are_gone():
    memory = Memory()
    first = memory.take((4, 8), ml_dtypes.bfloat16)
    assert (first.shape, first.dtype) == ((4, 8), ml_dtypes.bfloat16)
    where = address(first)
    assert where % 4096 == 0
    del first
    assert address(memory.take((2, 8), np.float32)) == where


def test_memory_that_a_view_of_any_kind_holds_is_left_alone():
    memory = Memory()
    holders = [
        memory.take((64,))[3:5],
        memory.take((64,)).data,
        torch.from_numpy(memory.take((64,)).reshape(8, 8)[::2]),
        iter(memory.take((64,))),
    ]
    held = memory.take((64,))
    held[:] = 7
    others = [memory.take((64,)) for _ in range(2 * MOST_ARRAYS)]
    for other in others:
        other[:] = 1
    assert (held == 7).all()
    assert len({address(other) for other in [held, *others]}) == 1 + len(others)
    assert len(holders) == 4


def test_memory_keeps_few_arrays_and_none_that_is_too_small():
    memory = Memory()
    for size in (10, 20, 30):
        assert len(memory.take((size,))) == size
    taken = [memory.take((30,)) for _ in range(3 * MOST_ARRAYS)]
    assert len({address(array) for array in taken}) == len(taken)
    assert len(memory._arrays) <= MOST_ARRAYS
