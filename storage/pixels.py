"""Pixels as the bytes of a file: uint8 pictures as PNG, uint8 frames as an MP4 that browsers play. It knows no store.

A video's codec is VP9, the only one in OpenCV's build from the package index that browsers play in an MP4: that build
has no encoder for H.264. The encoder writes to a path only, so a temporary file stands in between.

Shapes: F frames, H and W pixels.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.errors import EngineError

Pixels = npt.NDArray[np.uint8]


def png(picture_HW3: Pixels) -> bytes:
    """The picture, lossless."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture_HW3).save(data, "PNG")
    return data.getvalue()


def mp4(frames_FHW3: Pixels, fps: int) -> bytes:
    """The video, lossy, the same bytes for the same frames. Raises EngineError when this OpenCV cannot write VP9."""
    import cv2

    _, height, width, _ = frames_FHW3.shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        code = cv2.VideoWriter.fourcc(*"vp09")
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, fps, (width, height))
        if not writer.isOpened():
            raise EngineError(
                f"video: found OpenCV {cv2.__version__} without an encoder for VP9, expected one. Install "
                "opencv-python-headless from the package index."
            )
        for frame_HW3 in frames_FHW3:
            writer.write(np.ascontiguousarray(frame_HW3[..., ::-1]))  # OpenCV's colours are blue first
        writer.release()
        return path.read_bytes()
