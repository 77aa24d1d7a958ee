"""The next item is made while one is used; errors and ends pass through."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from thinkdiff.tasks.ahead import ahead


def test_items_come_in_order_and_one_is_made_ahead():
    made: list[int] = []
    gate = threading.Event()

    def items() -> Generator[int]:
        for number in range(4):
            made.append(number)
            if number == 1:
                gate.set()
            yield number

    found = ahead(items())
    assert next(found) == 0
    assert gate.wait(10)  # the second is made though nobody has asked for it
    assert [*found] == [1, 2, 3]
    assert made == [0, 1, 2, 3]


def test_error_comes_after_the_items_before_it():
    def items() -> Generator[int]:
        yield 1
        raise KeyError("broken")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(KeyError, match="broken"):
        next(found)


def test_generator_is_closed_when_it_is_left():
    closed = threading.Event()

    def items() -> Generator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    def left() -> None:
        for _ in ahead(items()):
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        left()
    assert closed.wait(10)
