"""Pixels as files: what comes back from a PNG and, near enough, from an MP4."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from thinkdiff.storage.pixels import mp4, png


def gradient(frames: int) -> np.ndarray:
    """A red to blue gradient that a green bar moves over; red grows from left to right."""
    x = np.arange(64, dtype=np.uint8)
    video = np.zeros((frames, 48, 64, 3), np.uint8)
    video[..., 0], video[..., 2] = x * 4, 255 - x * 4
    for i in range(frames):
        video[i, :, 6 * i : 6 * i + 6, 1] = 255
    return video


def test_png_is_lossless():
    from PIL import Image

    picture = gradient(1)[0]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(picture)), formats=["PNG"])), picture)


def test_mp4_has_the_frames_in_order_in_their_colours_at_their_rate(tmp_path: Path):
    import cv2

    video = gradient(9)
    data = mp4(video, 8)
    assert data[4:8] == b"ftyp"
    assert data == mp4(video, 8)
    (tmp_path / "video.mp4").write_bytes(data)
    file = cv2.VideoCapture(str(tmp_path / "video.mp4"))
    assert file.get(cv2.CAP_PROP_FPS) == 8
    for frame in video:
        read, found = file.read()
        assert read
        assert np.abs(found[..., ::-1].astype(float) - frame).mean() < 16
    assert not file.read()[0]
