"""Pictures inside a page: as data, so that who sees the page needs no key to the bucket that they lie in.

In: bytes of pictures, which are a stranger's. Out: data URIs, and markdown for the Prefect UI; what does not decode
stays blank. Large pictures are made small.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

from thinkdiff.tasks.pictures import inspect_image
from thinkdiff.tasks.report_markup import grid

MAX_PIXELS = 50_000_000
SMALL = 160  # pixels a side up to which a picture is kept as it is and shown with hard edges
SIDE = 288  # pixels a side of the larger ones, three times what a card shows
PAGE_SIDE = 96  # of one on a page that Prefect keeps in its database
PAGE_ROWS = 5


def inline(data: bytes | None, small: int = SMALL, side: int = SIDE) -> tuple[str, bool] | None:
    """A picture as (data URI, whether it is small), or None for one that is missing or does not decode.

    Small is what has at most `small` pixels a side; what is larger is made a JPEG of `side` at most.
    """
    from PIL import Image

    if data is None:
        return None
    try:
        width, height, kind = inspect_image(data, MAX_PIXELS)
    except ValueError:
        return None
    if max(width, height) <= small and kind in ("png", "jpg"):
        return uri(data, "png" if kind == "png" else "jpeg"), True
    with Image.open(io.BytesIO(data)) as image:
        shrunk = image.convert("RGB")
        shrunk.thumbnail((side, side))
    sink = io.BytesIO()
    shrunk.save(sink, "JPEG", quality=85)
    return uri(sink.getvalue(), "jpeg"), False


def uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def pictured(head: Sequence[str], rows: Iterable[Sequence[str | bytes | None]]) -> str:
    """A markdown table; bytes are pictures, None is one that is missing."""

    def shown(cell: str | bytes | None) -> str:
        if isinstance(cell, str):
            return cell
        found = inline(cell, PAGE_SIDE, PAGE_SIDE)
        return f"![]({found[0]})" if found else "–"

    return grid(head, [[shown(cell) for cell in row] for row in rows])
