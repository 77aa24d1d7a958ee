"""A small benchmark with its data set: two families with the words that files have in another form, one picture a pair.

`REAL` is the benchmark itself; `SMALL` has 4 + 3 values and 4 things in each family, 28 pictures.
"""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from thinkdiff.schemas.cobsat import CobsatPrompts, Family
from thinkdiff.storage.root import Folder
from thinkdiff.tasks import cobsat

REAL = CobsatPrompts(families=cobsat.COBSAT_FAMILIES, images="datasets")
SMALL = CobsatPrompts(
    families=(
        Family(name="style", values=("lego", "3d", "old", "icon"), things=("car", "cup", "hat", "bag")),
        Family(name="background", thing="animal", values=("park", "cave", "gym"), things=("cat", "cow", "pig", "dog")),
    ),
    images="datasets",
    shots=(2,),
    per_task=6,
)


def jpeg(seed: str, side: int = 16) -> bytes:
    """A picture of its own for every seed."""
    rng = np.random.default_rng(list(seed.encode()))
    sink = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def tile(seed: str, side: int = 32) -> bytes:
    """A picture of one colour, which the seed gives."""
    sink = io.BytesIO()
    Image.new("RGB", (side, side), tuple(hashlib.sha256(seed.encode()).digest()[:3])).save(sink, "JPEG", quality=100)
    return sink.getvalue()


def data_set(spec: CobsatPrompts, draw: Callable[[str], bytes] = jpeg) -> dict[str, bytes]:
    """The files of the data set: its pictures and their captions."""
    files = {picture.path: draw(picture.path) for picture in cobsat.pictures(spec)}
    for family in spec.families:
        sink = io.StringIO(newline="")
        rows = csv.writer(sink)
        rows.writerow(["image", "caption"])
        rows.writerows(
            [picture.path.split("/")[1], f"A {picture.thing},\n {picture.value}."]
            for picture in cobsat.pictures(spec)
            if picture.family == family.name
        )
        files[f"{family.name}_{family.thing}.csv"] = sink.getvalue().encode()
    return files


def write_files(folder: Folder, files: dict[str, bytes]) -> None:
    """Writes them."""
    for name, data in files.items():
        folder.write(name, data)


def zip_of(members: Iterable[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of these members, in that order."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as made:
        for name, data in members:
            made.writestr(name, data)
    return sink.getvalue()
