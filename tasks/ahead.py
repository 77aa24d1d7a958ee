"""Doing the next thing while the last one is used."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, Any, Any]) -> Generator[T]:
    """The same items; each is made in a thread while the one before it is used.

    The generator is closed when this one is, after the item in hand. Raises what it raised. Who may raise while it is
    open closes it (`contextlib.closing`): else the traceback keeps it open.
    """
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, end)
        try:
            while (item := coming.result()) is not end:
                coming = pool.submit(next, items, end)
                yield item
        finally:
            wait([coming])  # the pool may be gone: the collector, too, closes generators
            items.close()
