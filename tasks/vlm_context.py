"""How long a VLM's engine lets a prompt and its answer be together: long enough for the pictures at their largest.

In: a model's folder, what is asked of it, the spec of the pictures. Out: tokens, vLLM's `max_model_len`, which the
engine lowers to what the model itself takes. An upper bound by the processor's files; no picture is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinkdiff.tasks.models import json_object

CONTEXT = 8192  # tokens, also where less would do
PICTURE = 1280  # tokens of a picture where no file tells a limit, as in transformers' class for Qwen2-VL
TURN = 64  # tokens of the chat's template, and those around a picture
MOST_ASPECT = 200.0  # longest by shortest side, of pictures that Qwen2-VL's processor takes
FILES = ("processor_config.json", "preprocessor_config.json")


def context(path: str, images: int, words: int, answer: int, pictures: Mapping[str, Any]) -> int:
    """Tokens of a request at most, and at least CONTEXT.

    images: pictures of a request; words: bytes of its text, of which no token has less than one; answer: tokens;
    pictures: an ImageSpec as a record holds it, or nothing where pictures may be of any size.
    """
    return max(CONTEXT, images * (picture_tokens(path, pictures) + TURN) + TURN + words + answer)


def picture_tokens(path: str, pictures: Mapping[str, Any]) -> int:
    """Tokens of one picture at most: by the model's processor, or by the pictures' spec where that allows less."""
    most, side = limits(path)
    bounds = [most]
    if pixels := pictures.get("max_pixels"):
        aspect = min(pictures.get("max_aspect", MOST_ASPECT), MOST_ASPECT)
        bounds.append(tokens(math.sqrt(pixels * aspect), side) * tokens(math.sqrt(pixels / aspect), side))
    if resize := pictures.get("resize"):
        bounds.append(tokens(resize["longest_side"], side) ** 2)
    return min(bounds)


def tokens(pixels: float, side: int) -> int:
    """Along one side of a picture, which is rounded to the nearest multiple of a token's."""
    return int(pixels / side) + 1


def limits(path: str) -> tuple[int, int]:
    """Tokens of a picture at most, and pixels along the side of a token, by the files of the model's processor."""
    pixels, side = list[Any](), 28
    for file in (Path(path) / name for name in FILES):
        told = json_object(file) if file.is_file() else {}
        told = part(told, "image_processor") or told
        size = part(told, "size")
        pixels += [told.get("max_pixels"), size.get("longest_edge"), size.get("max_pixels")]
        patch, merged = told.get("patch_size"), told.get("merge_size", 2)
        if isinstance(patch, int) and isinstance(merged, int):
            side = max(patch * merged, 1)
    return max((most // side**2 for most in pixels if isinstance(most, int)), default=PICTURE), side


def part(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object within another, empty where there is none."""
    found = told.get(name)
    return found if isinstance(found, dict) else {}
