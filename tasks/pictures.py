"""Untrusted picture files: bytes in, size and format out, or the reason why not. Decodes with Pillow, opens no file."""

from __future__ import annotations

import io
import warnings

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def inspect_image(data: bytes, max_pixels: int) -> tuple[int, int, str]:
    """Width, height and format of a picture that decodes wholly. Raises ValueError with the reason otherwise."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
                if image.width * image.height > max_pixels:
                    raise ValueError(f"{image.width}x{image.height} pixels, more than {max_pixels}")
                image.load()
                return image.width, image.height, FORMATS[str(image.format)]
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"does not decode: {error!s:.100}") from None
