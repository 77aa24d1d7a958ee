"""The benchmark's data set as it lies there: whole or not, its digest, its captions.

In: a folder or a zip of `<family>_<thing>/<value>_<thing>.jpg` and `<family>_<kind of thing>.csv`, perhaps below one
more folder, as `datasets.zip` has them. Out: what is missing, renamed, damaged or more than expected, a digest of what
prompts are made from, and captions by picture. The files come from strangers: pictures are decoded in processes of
their own, and a table is bytes until it is checked. Writes nothing.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinkdiff.schemas.artifact import Execution, sha256_json
from thinkdiff.schemas.cobsat import CobsatPrompts, Family
from thinkdiff.schemas.errors import InputError
from thinkdiff.tasks.cobsat import DISPLAY, ImageRef, pictures
from thinkdiff.tasks.image_pool import ImagePool
from thinkdiff.tasks.pictures import Demands, PictureRefused

if TYPE_CHECKING:
    from thinkdiff.storage.picture_files import PictureFiles

MAX_PIXELS = 50_000_000
MAX_TABLE = 4 << 20  # bytes
MAX_CAPTION = 2000  # characters
AT_ONCE = 64  # pictures in memory
SHOWN = 3
KINDS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
DIGEST_SHOWN = 12
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
Entry = tuple[str, int, str]
"""A file's name, size in bytes and sha256."""


@dataclass(frozen=True)
class Findings:
    """What was found of a data set. A picture is whole, or its name is in one of the first three lists."""

    uri: str
    expected: int
    missing: tuple[str, ...]
    renamed: tuple[str, ...]  # "<found> for <expected>"
    damaged: tuple[str, ...]  # "<name>: <reason>"
    extra: tuple[str, ...]  # pictures that the benchmark does not have, which harm nothing
    entries: tuple[Entry, ...]  # of the whole ones

    @property
    def digest(self) -> str:
        """sha256 over names, sizes and sha256 of the pictures: the same for a folder, a bucket and a zip of them."""
        return digest_of(self.entries)

    def must_be_whole(self) -> None:
        """Raises InputError, in one sentence with counts and the first names, unless every picture is whole."""
        kinds = {"missing": self.missing, "renamed": self.renamed, "damaged": self.damaged, "extra": self.extra}
        found = ", ".join(f"{len(names)} {kind} ({some(names)})" for kind, names in kinds.items() if names)
        if self.missing or self.renamed or self.damaged:
            raise InputError(
                f"{self.uri}: found {len(self.entries)} of the benchmark's {self.expected} pictures whole, {found}, "
                "expected all of them. Prompts would show other pictures or none; unpack the data set again, and "
                "leave the names as they are."
            )


def some(names: Sequence[str]) -> str:
    """The first few names, and that there are more."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def digest_of(entries: Iterable[Entry]) -> str:
    """One digest of some files, whatever their order."""
    return sha256_json([list(entry) for entry in sorted(entries)])


def entry_of(name: str, data: bytes) -> Entry:
    """A file as a digest sees it."""
    return name, len(data), hashlib.sha256(data).hexdigest()


def find_data(base: str, url: str, spec: CobsatPrompts) -> PictureFiles:
    """Where the data set is in a folder or zip: there, or in the one folder of it that holds the benchmark's folders.

    Raises InputError for a place with neither, or a zip that could do harm.
    """
    from thinkdiff.storage.picture_files import PictureFiles

    files = PictureFiles.at(base, url)
    known = {picture.path.split("/")[0] for picture in pictures(spec)} | {table_name(f) for f in spec.families}
    top = files.folders()
    if not known.intersection(top):
        for name in top:
            inner = PictureFiles(files.folder, files.zip, f"{name}/")
            if known.intersection(inner.folders()):
                return inner
    return files


def verified(spec: CobsatPrompts, run: Execution) -> tuple[PictureFiles, str]:
    """Where the data set is, once it is known to be whole, and the digest of what the spec's prompts are made from:
    the pictures, or for the prompt type caption the tables.

    Raises InputError when something is missing or damaged, or has not the digest that the spec expects.
    """
    files = find_data(run.data_root, spec.images, spec)
    if spec.prompt_type == "caption":
        _, digest = read_captions(files, spec)
    else:
        findings = inspect(files, spec, run)
        findings.must_be_whole()
        digest = findings.digest
    if spec.images_digest not in (None, digest):
        raise InputError(
            f"{files.uri}: found files of digest {digest[:DIGEST_SHOWN]}…, expected "
            f"{spec.images_digest[:DIGEST_SHOWN]}… as the spec's images_digest says. They are not those that it means; "
            "unpack the data set again, or change the digest."
        )
    return files, digest


def verify(path: str, spec: CobsatPrompts) -> dict[str, str | int]:
    """What is known of a data set whose pictures are whole: their number and digest, which others are there, and the
    digest of the captions, or why they cannot be read. Raises InputError as `Findings.must_be_whole` does."""
    files = find_data(".", path, spec)
    findings = inspect(files, spec, Execution())
    findings.must_be_whole()
    try:
        captions = read_captions(files, spec)[1]
    except InputError as error:
        captions = f"none ({error})"
    extra = f"{len(findings.extra)} ({some(findings.extra)})" if findings.extra else 0
    return {
        "data set": files.uri, "pictures": len(findings.entries), "extra": extra, "images digest": findings.digest,
        "captions digest": captions,
    }  # fmt: skip


def inspect(files: PictureFiles, spec: CobsatPrompts, run: Execution) -> Findings:
    """Reads and decodes every picture of the benchmark. Raises InputError for a damaged zip."""
    expected = [picture.path for picture in pictures(spec)]
    folders, families = dict.fromkeys(path.split("/")[0] for path in expected), {f.name for f in spec.families}
    folders |= dict.fromkeys(name for name in files.folders() if name.lower().split("_")[0] in families)
    present = [name for name in files.names(*folders) if name.lower().endswith(KINDS)]
    others = set(present) - set(expected)
    entries, reasons = asyncio.run(decoded(files, [path for path in expected if path in set(present)], run))
    missing, renamed = [], []
    known = {plain(name): name for name in sorted(others, reverse=True)}
    for path in expected:
        if path in entries or path in reasons:
            continue
        if twin := known.get(plain(path)):
            others.discard(twin)
            renamed.append(f"{twin} for {path}")
        else:
            missing.append(path)
    return Findings(
        uri=files.uri, expected=len(expected), missing=tuple(missing), renamed=tuple(renamed),
        damaged=tuple(f"{path}: {reason}" for path, reason in reasons.items()),
        extra=tuple(sorted(others)), entries=tuple(entries.values()),
    )  # fmt: skip


def plain(path: str) -> str:
    """A picture's name as one may have renamed it: no extension, small letters, words as files have them."""
    folder, _, name = path.lower().partition("/")
    stem = name.rsplit(".", 1)[0].replace(" ", "_").replace("-", "_")
    for raw, shown in DISPLAY.items():
        if stem.startswith(shown := shown.replace(" ", "_") + "_"):
            stem = f"{raw}_{stem.removeprefix(shown)}"
    return f"{folder}/{stem}"


async def decoded(files: PictureFiles, names: list[str], run: Execution) -> tuple[dict[str, Entry], dict[str, str]]:
    """The entries of the pictures that decode, and of the others the reasons, by name."""
    entries: dict[str, Entry] = {}
    reasons: dict[str, str] = {}
    async with ImagePool(Demands(MAX_PIXELS), run.fetching) as pool:

        async def judge(name: str, data: bytes) -> None:
            try:
                await pool.prepare(data)
                entries[name] = entry_of(name, data)
            except PictureRefused as error:
                reasons[name] = str(error)

        for first in range(0, len(names), AT_ONCE):
            read = files.read(names[first : first + AT_ONCE])
            await asyncio.gather(*(judge(name, data) for name, data in read.items()))
    return entries, {name: reasons[name] for name in names if name in reasons}


def table_name(family: Family) -> str:
    """Where the captions of a family's pictures are, e.g. color_object.csv."""
    return f"{family.name}_{family.thing}.csv"


def read_captions(files: PictureFiles, spec: CobsatPrompts) -> tuple[dict[ImageRef, str], str]:
    """The caption of every picture, and the digest of the tables. Raises InputError when one is missing or no caption.

    Tables are CSV in UTF-8 with the columns `image`, a picture's name without its folder, and `caption`.
    """
    names = [table_name(family) for family in spec.families]
    read = files.read(names)
    if absent := [name for name in names if name not in read]:
        raise InputError(
            f"{files.uri}: found no table {some(absent)}, expected the captions of its pictures there. The prompt type "
            "caption needs them; unpack the data set again."
        )
    captions: dict[ImageRef, str] = {}
    for family, name in zip(spec.families, names, strict=True):
        rows = table_rows(read[name], f"{files.uri}/{name}")
        for picture in (picture for picture in pictures(spec) if picture.family == family.name):
            if (caption := rows.get(picture.path.split("/")[1])) is None:
                raise InputError(
                    f"{files.uri}/{name}: found no caption of {picture.path}, expected one of every picture. The "
                    "prompt type caption needs it; unpack the data set again."
                )
            captions[picture] = caption
    return captions, digest_of(entry_of(name, read[name]) for name in names)


def table_rows(data: bytes, where: str) -> dict[str, str]:
    """Captions by picture's name, of two rows of one picture the first. Raises InputError for what is no such table."""
    if len(data) > MAX_TABLE:
        raise no_table(where, f"{len(data)} bytes, more than {MAX_TABLE}")
    found: dict[str, str] = {}
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        if reader.fieldnames is None or not {"image", "caption"} <= set(reader.fieldnames):
            raise no_table(where, f"the columns {', '.join(reader.fieldnames or ['none'])[:80]}")
        for row in reader:
            if not isinstance(row["image"], str) or not isinstance(row["caption"], str):
                raise no_table(where, f"a short row at line {reader.line_num}")
            caption = " ".join(row["caption"].split())
            if not 0 < len(caption) <= MAX_CAPTION or "<|" in caption or CONTROL.search(caption):
                raise no_table(where, f"a caption at line {reader.line_num} that is empty, too long or no plain text")
            found.setdefault(row["image"], caption)
    except (UnicodeDecodeError, csv.Error) as error:
        raise no_table(where, f"no CSV in UTF-8 ({str(error)[:80]})") from error
    return found


def no_table(where: str, found: str) -> InputError:
    """The sentence for a table of captions that is none."""
    return InputError(
        f"{where}: found {found}, expected a CSV of the columns image and caption. Unpack the data set again."
    )
