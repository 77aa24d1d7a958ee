"""Untrusted picture files: bytes in, size and format out, or the reason why not. Decodes with Pillow, opens no file.

Taken are JPEG, PNG, WebP and GIF of one picture, in any colour mode. An animation is refused, since a caption may speak
of any of its frames; of a JPEG with further pictures behind it (MPO) the first is meant. Reasons are the same in every
run: they hold no address, no time and nothing of the picture's own text.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from thinkdiff.schemas.images import ImageSpec

FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}
OPENED = ("JPEG", "PNG", "WEBP", "GIF")
ORIENTATION = 0x0112
OTHERS = (
    (b"<svg", "SVG"),
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"%pdf", "PDF"),
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that decodes: its bytes, size in pixels and extension."""

    data: bytes
    width: int
    height: int
    kind: str


@dataclass(frozen=True, slots=True)
class Demands:
    """What a picture must fulfil, and what is made of it; a longest side of 0 keeps it byte for byte."""

    max_pixels: int
    min_side: int = 1
    max_aspect: float = 1e9
    longest_side: int = 0
    quality: int = 95

    @staticmethod
    def of(spec: ImageSpec) -> Demands:
        """The demands of a spec."""
        demands = Demands(spec.max_pixels, spec.min_side, spec.max_aspect)
        if spec.resize is None:
            return demands
        return replace(demands, longest_side=spec.resize.longest_side, quality=spec.resize.quality)


def inspect_image(data: bytes, max_pixels: int) -> tuple[int, int, str]:
    """Width, height and extension of a picture that decodes wholly. Raises PictureRefused (a ValueError) otherwise."""
    picture = prepare_image(data, Demands(max_pixels))
    return picture.width, picture.height, picture.kind


def prepare_image(data: bytes, demands: Demands) -> Picture:
    """The picture as it is kept, decoded wholly on the way. Raises PictureRefused with the reason otherwise."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=OPENED) as image:
                check_header(image, demands)
                image.load()
                if demands.longest_side:
                    return resized(image, demands.longest_side, demands.quality)
                return Picture(data, image.width, image.height, FORMATS[str(image.format)])
    except PictureRefused:
        raise
    except UnidentifiedImageError:
        raise PictureRefused(f"not a JPEG, PNG, WebP or GIF picture{looks_like(data)}") from None
    except Image.DecompressionBombError:
        raise PictureRefused(f"more than {demands.max_pixels} pixels") from None
    except MemoryError:
        raise PictureRefused("needs too much memory to decode") from None
    except Exception as error:  # Pillow's plugins raise what their parsers happen to: struct.error, IndexError, ...
        raise PictureRefused(f"does not decode: {printable(str(error)) or type(error).__name__}") from None


class PictureRefused(ValueError):
    """A picture that does not decode or is not wanted; the message is the reason."""


def png_of(data: bytes) -> bytes:
    """A picture that decodes (`prepare_image`), as PNG in RGB: no pixel is scaled or turned."""
    from PIL import Image

    sink = io.BytesIO()
    with Image.open(io.BytesIO(data), formats=OPENED) as image:
        rgb(image).save(sink, "PNG")
    return sink.getvalue()


def jpeg_of(data: bytes, quality: int) -> bytes:
    """A PNG of ours as JPEG, in full resolution of colour."""
    from PIL import Image

    sink = io.BytesIO()
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.convert("RGB").save(sink, "JPEG", quality=quality, subsampling=0)
    return sink.getvalue()


def check_header(image: Image.Image, demands: Demands) -> None:
    """Raises PictureRefused by what a picture's header says, before its pixels are decoded."""
    width, height = image.size
    if width * height > demands.max_pixels:
        raise PictureRefused(f"{width}x{height} pixels, more than {demands.max_pixels}")
    if min(width, height) < demands.min_side:
        raise PictureRefused(f"{width}x{height} pixels, narrower than {demands.min_side}")
    if max(width, height) > demands.max_aspect * min(width, height):
        raise PictureRefused(f"{width}x{height} pixels, longer than {demands.max_aspect:g} times its shorter side")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise PictureRefused("animated")


def upright_png(data: bytes, longest_side: int) -> bytes:
    """A picture that decodes (`prepare_image`), upright, RGB, not larger than asked, as PNG."""
    from PIL import Image

    sink = io.BytesIO()
    with Image.open(io.BytesIO(data), formats=OPENED) as image:
        upright(image, longest_side).save(sink, "PNG")
    return sink.getvalue()


def resized(image: Image.Image, longest_side: int, quality: int) -> Picture:
    """The picture upright, RGB, not larger than asked, as JPEG."""
    made, sink = upright(image, longest_side), io.BytesIO()
    made.save(sink, "JPEG", quality=quality)
    return Picture(sink.getvalue(), made.width, made.height, "jpg")


def upright(image: Image.Image, longest_side: int) -> Image.Image:
    """The picture as it is meant to be seen, RGB, not larger than asked."""
    from PIL import Image

    made, turned = rgb(image), TURNS.get(orientation(image))
    if turned is not None:
        made = made.transpose(Image.Transpose[turned])
    longest = max(made.size)
    if longest > longest_side:
        width, height = (max(1, round(side * longest_side / longest)) for side in made.size)
        made = made.resize((width, height), Image.Resampling.LANCZOS)
    return made


TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to lose the picture, and its parsers raise anything
        return 1


def rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB: 16-bit grey by its upper byte, what is transparent on white."""
    from PIL import Image

    if image.mode.startswith(("I;16", "I", "F")):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def looks_like(data: bytes) -> str:
    """`, but HTML` and the like where the first bytes tell."""
    head = data[:1024].lstrip().lower()
    return next((f", but {name}" for mark, name in OTHERS if mark in head), "")


def printable(text: str) -> str:
    """An error's text in at most 100 plain characters, addresses of objects and counts of bytes left out."""
    return re.sub(r"<[^>]*>|\([^)]*\)|[^ -~]", "", text)[:100].strip()
