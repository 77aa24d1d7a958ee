"""Messages with arrays arrive as they were sent; an end that is gone is noticed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from thinkdiff.tasks.qwen_chat import Generation, Request, Sampling
from thinkdiff.tasks.qwen_wire import Wire


@pytest.fixture
def ends() -> Iterator[tuple[Wire, Wire]]:
    one, other = socket.socketpair()
    wires = Wire(one.detach()), Wire(other.detach())
    yield wires
    for wire in wires:
        wire.close()


def sent(ends: tuple[Wire, Wire], message: Any) -> Any:
    thread = threading.Thread(target=ends[0].send, args=(message,))
    thread.start()
    found = ends[1].receive()
    thread.join()
    return found


def generation(features: np.ndarray, inputs: np.ndarray | None) -> Generation:
    return Generation("key", [1, 2], "text", features, [3, 4, 5], inputs, None)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.uint8])
@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (700, 1000)])
def test_answers_arrive_as_they_were(ends: tuple[Wire, Wire], dtype: Any, shape: tuple[int, int]):
    states = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    answers = [generation(states, None), generation(states[::2], states[:1]), generation(states.T, states[1:])]
    error, found = sent(ends, (None, answers))
    assert error is None
    for a, b in zip(found, answers, strict=True):
        assert (a.key, a.token_ids, a.text, a.prompt_token_ids, a.end_index) == ("key", [1, 2], "text", [3, 4, 5], None)
        for x, y in ((a.features, b.features), (a.input_features, b.input_features)):
            assert (x is None) == (y is None)
            if x is not None and y is not None:
                assert (x.dtype, x.shape) == (y.dtype, y.shape)
                np.testing.assert_array_equal(x, y)
                x[:] = 0  # it is one's own


def test_later_messages_leave_earlier_arrays_alone(ends: tuple[Wire, Wire]):
    arrays = [np.full(1000, number) for number in range(5)]
    found = [sent(ends, [array]) for array in arrays]
    for (a,), b in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(a, b)


def test_requests_and_errors_pass(ends: tuple[Wire, Wire]):
    picture = np.zeros((4, 4, 3), np.uint8)
    requests, sampling = sent(ends, ([Request("a", ("text", b"bytes", picture), 7)], Sampling(0, 1, 5)))
    assert sampling == Sampling(0, 1, 5)
    assert requests[0].content[:2] == ("text", b"bytes")
    np.testing.assert_array_equal(requests[0].content[2], picture)
    error, nothing = sent(ends, (ValueError("no"), None))
    assert (str(error), nothing) == ("no", None)


def test_an_end_that_is_gone_is_noticed(ends: tuple[Wire, Wire]):
    ends[0].close()
    with pytest.raises(EOFError):
        ends[1].receive()
    with pytest.raises(ConnectionError):
        ends[1].send([np.zeros(10)])


def test_moving_is_counted(ends: tuple[Wire, Wire]):
    sent(ends, [np.zeros(1 << 22)])
    assert ends[0].sent_seconds > 0
    assert ends[1].received_seconds > 0
    assert ends[0].received_seconds == ends[1].sent_seconds == 0
