"""What judges have in common: pictures in, what each of them shows out.

A picture is PNG bytes; a text stands in for it where answers in words are judged. `judge_classifier`, `judge_vlm` and
`judge_clip` do the work, `judges` opens the one that a spec asks for.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from thinkdiff.schemas.cobsat import Family
from thinkdiff.schemas.errors import SpecError

if TYPE_CHECKING:
    from PIL import Image

Subject = bytes | str


class Wanted(NamedTuple):
    """What a picture should show: a family's name, and its value and thing, raw."""

    family: str
    value: str
    thing: str


class Seen(NamedTuple):
    """What a judge sees; "" where it named no option. similarity: CLIP's to the right words, NaN of other judges."""

    value: str
    thing: str
    similarity: float = math.nan


class Judge(Protocol):
    """Judges what it is shown."""

    def see(self, subjects: Sequence[Subject], wanted: Sequence[Wanted]) -> list[Seen]:
        """What each subject shows, judged in the family of the same position."""
        ...


def picture(data: Subject) -> Image.Image:
    """A subject as an RGB picture."""
    from PIL import Image

    assert isinstance(data, bytes)
    return Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB")


def family_of(families: dict[str, Family], name: str) -> Family:
    """A family by its name. Raises SpecError when the judge was not given its words."""
    if name not in families:
        raise SpecError(
            f"scores.families: found {', '.join(families)}, expected {name} as well. The pictures were asked for with "
            "other words; give the judge those of the benchmark's prompts."
        )
    return families[name]
