"""The child process of `qwen_engine`: vLLM and the prompts, run as `python -m thinkdiff.tasks.qwen_child FD`.

In:  over the socket FD first `EngineOptions`, then any number of (requests, sampling) or the word "statistics".
Out: for each message (None, answer) or (the error to raise, None).

It exits when the other end closes. Nothing here is called by the parent; both share the classes in `qwen_engine`.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from thinkdiff.schemas.errors import EngineError, ThinkDiffError
from thinkdiff.tasks.two_pass import TwoPassEngine
from thinkdiff.tasks.vllm_engine import VllmEngine


def exit_with_parent(descriptor: int) -> None:
    """End this process, even in the middle of a batch, when the other end of the socket is closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    while not any(event & (select.POLLRDHUP | select.POLLHUP) for _, event in poll.poll()):
        pass
    os._exit(0)


def main() -> None:
    """Serve until the parent goes."""
    descriptor = int(sys.argv[-1])
    connection = Connection(descriptor)
    threading.Thread(target=exit_with_parent, args=(descriptor,), daemon=True).start()
    engine: VllmEngine | None = None
    while True:
        try:
            message: Any = connection.recv()
        except EOFError:
            return
        try:
            if engine is None:
                engine = TwoPassEngine(message) if message.two_pass else VllmEngine(message)
                answer: Any = engine.about()
            else:
                answer = engine.statistics() if message == "statistics" else engine.generate(*message)
        except ThinkDiffError as error:
            connection.send((error, None))
        except Exception as error:
            traceback.print_exc()
            what = "start" if engine is None else "answer"
            connection.send((EngineError(f"vLLM: it could not {what}: {type(error).__name__}: {error}"), None))
            return  # whatever state it is in, it is not to be trusted
        else:
            connection.send((None, answer))


if __name__ == "__main__":
    main()
