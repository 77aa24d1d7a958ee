"""Progress bars for a stage's body outside of any flow, and the end of a process that nothing can catch."""

from __future__ import annotations


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test catches it."""


class Meter:
    """A progress bar that remembers, and can end the process once so much is done."""

    def __init__(self, die_at: int | None = None) -> None:
        self.done, self.resumed, self.die_at = 0, 0, die_at

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None: ...

    def resume(self, count: int) -> None:
        self.resumed += count

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.die_at is not None and self.done >= self.die_at:
            raise Killed
