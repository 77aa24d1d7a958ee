"""The child process of `qwen_engine`: vLLM and the prompts, run as `python -m thinkdiff.tasks.qwen_child FD`.

In:  over the socket FD (`qwen_wire`) first `EngineOptions`, then any number of (requests, sampling) or "statistics".
Out: for each message (None, answer) or (the error to raise, None).

It exits when the other end closes. Nothing here is called by the parent; both share the classes in `qwen_engine`.
"""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
import traceback
from typing import Any

from thinkdiff.schemas.errors import EngineError, ThinkDiffError
from thinkdiff.tasks.qwen_wire import Wire
from thinkdiff.tasks.two_pass import TwoPassEngine
from thinkdiff.tasks.vllm_engine import VllmEngine


def exit_with_parent(descriptor: int) -> None:
    """End this process, even in the middle of a batch, when the other end of the socket is closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    while not any(event & (select.POLLRDHUP | select.POLLHUP) for _, event in poll.poll()):
        pass
    os._exit(0)


class Post:
    """Messages in and out, by threads, so that vLLM waits for neither: one is held ready on either side."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._inbox: queue.Queue[Any] = queue.Queue(1)
        self._outbox: queue.Queue[Any] = queue.Queue(1)
        for work in (self._receive, self._send):
            threading.Thread(target=work, daemon=True).start()

    def get(self) -> Any:
        """The next message; None when the other end has closed."""
        return self._inbox.get()

    def put(self, message: Any) -> None:
        """Send a message, soon."""
        self._outbox.put(message)

    def flush(self) -> None:
        """Wait until all is sent."""
        self._outbox.join()

    def _receive(self) -> None:
        try:
            while True:
                self._inbox.put(self.wire.receive())
        except (EOFError, ConnectionError):
            self._inbox.put(None)

    def _send(self) -> None:
        while True:
            try:
                self.wire.send(self._outbox.get())
            finally:
                self._outbox.task_done()


def main() -> None:
    """Serve until the parent goes."""
    descriptor = int(sys.argv[-1])
    threading.Thread(target=exit_with_parent, args=(descriptor,), daemon=True).start()
    post = Post(Wire(descriptor))
    engine: VllmEngine | None = None
    while (message := post.get()) is not None:
        try:
            if engine is None:
                engine = TwoPassEngine(message) if message.two_pass else VllmEngine(message)
                answer: Any = engine.about()
            elif message == "statistics":
                moving = post.wire.sent_seconds + post.wire.received_seconds
                answer = {**engine.statistics(), "moving_seconds": moving}
            else:
                answer = engine.generate(*message)
        except ThinkDiffError as error:
            post.put((error, None))
        except Exception as error:
            traceback.print_exc()
            what = "start" if engine is None else "answer"
            post.put((EngineError(f"vLLM: it could not {what}: {type(error).__name__}: {error}"), None))
            post.flush()
            return  # whatever state it is in, it is not to be trusted
        else:
            post.put((None, answer))


if __name__ == "__main__":
    main()
