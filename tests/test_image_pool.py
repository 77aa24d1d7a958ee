"""Decoding processes that crash, hang, grow or lie: one picture is lost each time, and none beside it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hostile_images import pictures, png_of_zeros, rgb, saved

from thinkdiff.schemas.artifact import Fetching
from thinkdiff.schemas.errors import EngineError
from thinkdiff.tasks.image_pool import CHILD, ImagePool
from thinkdiff.tasks.pictures import Demands, Picture, PictureRefused, prepare_image

DEMANDS = Demands(max_pixels=50_000_000, min_side=16, max_aspect=200.0)
GOOD = saved(rgb(), "JPEG")
# The real decoding process with flaws in it: some words make it do what a flaw in a decoder would.
FLAWED = """
import os, signal, sys, time
from thinkdiff.tasks import image_child
honest = image_child.prepare_image
def flawed(data, demands):
    if data == b"segfault": os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"exit": os._exit(0)
    if data == b"hang": time.sleep(600)
    if data == b"spin":
        while True: pass
    if data == b"grow": bytearray(1 << 40)
    if data == b"write": open("/tmp/thinkdiff-escape", "wb").write(b"x" * 1000)
    if data == b"lie": os.write(1, image_child.HEAD.pack(77, 1, 1, 3) + b"abc")
    if data == b"flood": os.write(1, image_child.HEAD.pack(1, 1, 1, 1 << 31))
    return honest(data, demands)
image_child.prepare_image = flawed
image_child.main()
"""
# One that refuses every picture, with what it knows of a secret.
TELLER = """
import os
from thinkdiff.tasks import image_child
def tell(data, demands):
    raise image_child.PictureRefused(os.environ.get("AWS_SECRET_ACCESS_KEY", "nothing"))
image_child.prepare_image = tell
image_child.main()
"""


def prepare(
    items: Sequence[bytes], demands: Demands = DEMANDS, child: Sequence[str] = CHILD, **changes: float
) -> list[Picture | str]:
    """The pictures, or the reasons, of some bytes that are given all at once."""
    settings = Fetching(decoders=2).model_copy(update=changes)

    async def one(pool: ImagePool, data: bytes) -> Picture | str:
        try:
            return await pool.prepare(data)
        except PictureRefused as error:
            return str(error)

    async def all_of_them() -> list[Picture | str]:
        async with ImagePool(demands, settings, child) as pool:
            return list(await asyncio.gather(*(one(pool, data) for data in items)))

    return asyncio.run(all_of_them())


@pytest.fixture
def flawed(tmp_path: Path) -> list[str]:
    """The command of a decoding process with flaws."""
    program = tmp_path / "flawed.py"
    program.write_text(FLAWED)
    return [sys.executable, str(program)]


@pytest.mark.parametrize("side", [0, 32])
def test_pool_says_of_every_picture_what_decoding_here_says(side: int):
    demands = Demands(DEMANDS.max_pixels, DEMANDS.min_side, DEMANDS.max_aspect, side)
    items = [data for name, (data, _) in pictures().items() if name != "bomb-pixels"] * 2

    def here(data: bytes) -> Picture | str:
        try:
            return prepare_image(data, demands)
        except PictureRefused as error:
            return str(error)

    assert prepare(items, demands) == [here(data) for data in items]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (b"segfault", "crashed its decoder"),
        (b"exit", "crashed its decoder"),
        (b"hang", "took more than 1.5 s to decode"),
        (b"spin", "took more than 1.5 s to decode"),
        (b"grow", "needs too much memory to decode"),
        (b"lie", "crashed its decoder"),
        (b"flood", "crashed its decoder"),
    ],
)
def test_picture_that_breaks_its_decoder_is_lost_alone(flawed: list[str], word: bytes, reason: str):
    items = [GOOD, word, GOOD, GOOD, word, word, GOOD]
    found = prepare(items, child=flawed, decode_seconds=1.5)
    assert [item if isinstance(item, str) else "good" for item in found] == [
        reason if item == word else "good" for item in items
    ]


def test_decoder_writes_no_file(flawed: list[str]):
    assert prepare([b"write", GOOD], child=flawed)[0] != "good"
    escape = Path("/tmp/thinkdiff-escape")
    assert not escape.exists() or escape.stat().st_size == 0
    escape.unlink(missing_ok=True)


def test_decoder_sees_nothing_of_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    program = tmp_path / "teller.py"
    program.write_text(TELLER)
    assert prepare([GOOD], child=[sys.executable, str(program)]) == ["nothing"]


def test_picture_that_needs_too_much_memory_is_refused_by_the_limit():
    large = png_of_zeros(20_000, 20_000)
    demands = Demands(max_pixels=1 << 40)
    found = prepare([GOOD, large, GOOD], demands, decode_memory=1 << 28)
    assert isinstance(found[0], Picture)
    assert found[1] == "needs too much memory to decode"
    assert isinstance(found[2], Picture)


def test_decoder_that_does_not_start_is_an_error_and_not_a_reason():
    with pytest.raises(EngineError, match="picture decoder: found exit code 3 at its start"):
        prepare([GOOD] * 3, child=[sys.executable, "-c", "raise SystemExit(3)"])


def test_resized_picture_is_upright_rgb_and_on_white():
    import io

    import numpy as np
    from PIL import Image

    corner = Image.new("RGBA", (64, 32), (255, 0, 0, 255))
    corner.paste((0, 0, 0, 0), (0, 0, 32, 32))
    demands = Demands(max_pixels=10**6, longest_side=32, quality=100)
    picture = prepare_image(saved(corner, "PNG"), demands)
    assert (picture.width, picture.height, picture.kind) == (32, 16, "jpg")
    shown = np.asarray(Image.open(io.BytesIO(picture.data)))
    assert shown[8, 6].min() > 240  # what was transparent, black underneath
    assert shown[8, 26, 0] > 240
    assert shown[8, 26, 1] < 16
    turned = prepare_image(pictures()["turned"][0], demands)
    assert (turned.width, turned.height) == (24, 32)


def test_resized_16_bit_grey_keeps_its_range():
    import io

    import numpy as np
    from PIL import Image

    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(16, 0)
    demands = Demands(max_pixels=10**6, longest_side=64, quality=100)
    picture = prepare_image(saved(Image.fromarray(ramp), "PNG"), demands)
    shown = np.asarray(Image.open(io.BytesIO(picture.data)))[8, :, 0].astype(int)
    assert abs(shown - np.linspace(0, 255, 64)).max() <= 4


def test_smaller_picture_is_not_enlarged():
    picture = prepare_image(GOOD, Demands(max_pixels=10**6, longest_side=512))
    assert (picture.width, picture.height) == (64, 48)
