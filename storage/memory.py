"""Memory that is used again once nobody looks at it any more: new memory costs more than the bytes that go into it."""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_ARRAYS = 4
PAGE = 4096


class Memory:
    """Arrays of any content, each from the start of a page on, as writing past the page cache wants it.

    One that nobody has a view of any more is given out again; a few are kept.
    """

    def __init__(self) -> None:
        self._arrays: list[npt.NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """An array of that shape and type."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._lock:
            free = [place for place in range(len(self._arrays)) if sys.getrefcount(self._arrays[place]) == UNSEEN]
            fits = [place for place in free if len(self._arrays[place]) >= size + PAGE]
            if not fits:
                for place in free[::-1]:
                    del self._arrays[place]
                self._arrays = [*self._arrays[1 - MOST_ARRAYS :], np.empty(size + PAGE, np.uint8)]
                fits = [len(self._arrays) - 1]
            whole = self._arrays[fits[0]]
            start = -whole.ctypes.data % PAGE
            return whole[start : start + size].view(dtype).reshape(shape)


def references() -> int:
    """How many Python counts of an array that only a list holds, asked as `take` asks."""
    arrays = [np.empty(1)]
    return sys.getrefcount(arrays[0])


UNSEEN = references()
