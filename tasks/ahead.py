"""Going through things: the next one made while the last one is used, and a few at a time.

In: a generator, or anything to iterate over. Out: the same items. Nothing is held but what is in hand.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import islice
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


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many of the items, the last one shorter."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
