"""Where an extraction's time goes: counters before and after become shares, of several workers together."""

from __future__ import annotations

import pytest

from thinkdiff.tasks.extraction_meter import Meter, merged, sentence


def worker(vision: float, prefill: float, decode: float) -> dict[str, float]:
    """The figures of a worker whose borrowed engine had counted before."""
    meter = Meter()
    meter.start({"vision_seconds": 7.0, "prefill_seconds": 9.0, "decode_seconds": 1.0, "moving_seconds": 2.0})
    meter.stop(
        {
            "vision_seconds": 7 + vision, "prefill_seconds": 9 + prefill, "decode_seconds": 1 + decode,
            "moving_seconds": 2.25, "received_seconds": 0.25, "tap_seconds": 0.0,
        }
    )  # fmt: skip
    return meter.figures()


def test_pictures_are_told_apart_from_the_rest_of_prefill():
    figures = worker(vision=3.0, prefill=4.0, decode=2.0)
    assert {name: figures[name] for name in ("vision", "prefill", "decode", "moving")} == {
        "vision": 3.0, "prefill": 1.0, "decode": 2.0, "moving": 0.5
    }  # fmt: skip
    assert worker(vision=3.0, prefill=2.5, decode=2.0)["prefill"] == 0  # a device's time beside the host's


def test_workers_are_summed_and_said_in_one_sentence():
    found = merged([worker(3.0, 4.0, 2.0), worker(1.0, 2.0, 1.0)], wall=2.0) | {"engine": 10.0}
    assert (found["vision"], found["prefill"], found["decode"]) == (4.0, 2.0, 3.0)
    assert sentence(found | {"tokens_per_second": 50.0, "requests_per_second": 2.0}) == (
        "2.0 requests and 50 tokens a second; of the engines' time vision 40.0%, prefill 20.0%, decode 30.0%, "
        "moving 10.0%"
    )
    assert found["requests_per_second"] == pytest.approx(0)
