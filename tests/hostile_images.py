"""Pictures as they come: good ones of every kind that is taken, and those that a decoder must be kept from."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

PICKLE = b"cos\n_exit\n(I66\ntR."  # ends the process that loads it
GRAINS = np.random.default_rng(0).integers(0, 256, (48, 64, 4), np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as a file of some format."""
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def rgb(width: int = 64, height: int = 48) -> Image.Image:
    """A colourful image."""
    return Image.fromarray(GRAINS[..., :3]).resize((width, height))


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_zeros(width: int, height: int, *extra: bytes) -> bytes:
    """A grey PNG of any size that is small as a file."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(min(height, 2000))) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    """EXIF that says how the picture is turned."""
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


def frames(kind: str, **options: Any) -> bytes:
    """An animation of two frames."""
    return saved(rgb(), kind, save_all=True, append_images=[rgb().rotate(180)], **options)


def pictures() -> dict[str, tuple[bytes, str]]:
    """By name a file and the reason in the index, "" for a picture that is taken."""
    jpg, png = saved(rgb(), "JPEG", quality=90), saved(rgb(), "PNG")
    palette = rgb().quantize(16)
    grey16 = Image.fromarray((GRAINS[..., 0].astype(np.uint16) << 8) | GRAINS[..., 1])
    good = {
        "jpeg": jpg,
        "png": png,
        "webp": saved(rgb(), "WEBP"),
        "gif-still": saved(rgb(), "GIF"),
        "progressive": saved(rgb(), "JPEG", progressive=True),
        "cmyk": saved(rgb().convert("CMYK"), "JPEG"),
        "grey": saved(rgb().convert("L"), "JPEG"),
        "grey16": saved(grey16, "PNG"),
        "alpha": saved(Image.fromarray(GRAINS), "PNG"),
        "palette-alpha": saved(palette, "PNG", transparency=3),
        "bilevel": saved(rgb().convert("1"), "PNG"),
        "mpo": saved(rgb(), "MPO", save_all=True, append_images=[rgb().rotate(180)]),
        "turned": saved(rgb(), "JPEG", exif=exif(6)),
        "exif-junk": saved(rgb(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40),
        "junk-behind": jpg + b"<script>alert(1)</script>" * 10,
        "60000-wide": saved(Image.new("L", (60_000, 400)), "PNG"),
    }
    bad = {
        "html": (b"<!DOCTYPE html><html><body>404</body></html>", "not a JPEG, PNG, WebP or GIF picture, but HTML"),
        "svg": (b'<?xml version="1.0"?><svg onload="x"/>', "not a JPEG, PNG, WebP or GIF picture, but SVG"),
        "pdf": (b"%PDF-1.7 ...", "not a JPEG, PNG, WebP or GIF picture, but PDF"),
        "bmp": (saved(rgb(), "BMP"), "not a JPEG, PNG, WebP or GIF picture"),
        "tiff": (saved(rgb(), "TIFF"), "not a JPEG, PNG, WebP or GIF picture"),
        "pickle": (PICKLE, "not a JPEG, PNG, WebP or GIF picture"),
        "noise": (GRAINS.tobytes(), "not a JPEG, PNG, WebP or GIF picture"),
        "jpeg-cut": (jpg[: len(jpg) // 2], "does not decode: image file is truncated"),
        "png-cut": (png[: len(png) // 2], "does not decode: "),
        "png-flipped": (png[:60] + bytes([png[60] ^ 255]) + png[61:], "does not decode: "),
        "jpeg-head": (jpg[:20], "not a JPEG, PNG, WebP or GIF picture|does not decode"),
        "gif-animated": (frames("GIF"), "animated"),
        "webp-animated": (frames("WEBP"), "animated"),
        "apng": (frames("PNG"), "animated"),
        "1x1": (saved(rgb(1, 1), "GIF"), "1x1 pixels, narrower than 16"),
        "60000-ribbon": (saved(Image.new("L", (60_000, 20)), "PNG"), "60000x20 pixels, longer than 200 times"),
        "bomb-pixels": (png_of_zeros(30_000, 30_000), "30000x30000 pixels, more than 50000000"),
        "bomb-text": (
            png_of_zeros(64, 64, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20), 9))),
            "does not decode: Decompressed data too large",
        ),
        "no-side": (png_of_zeros(0, 64), "not a JPEG, PNG, WebP or GIF picture|0x64 pixels|does not decode"),
    }
    return {name: (data, "") for name, data in good.items()} | bad
