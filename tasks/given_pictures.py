"""Pictures of another system in the benchmark's layout (`cobsat_layout`): which are there, their digest, their bytes.

In: a folder, on disk or in a bucket, that holds `results/exps/{name}_image/…`. Out: a GivenMedia, which tells these
bytes from others; PNG pictures, decoded in processes of their own; descriptions as plain text; which of those that are
imported already somebody means. Writes nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinkdiff.schemas.artifact import Execution, FileEntry, validated
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.media import GivenMedia, MediaSet
from thinkdiff.tasks.cobsat import prompts
from thinkdiff.tasks.cobsat_data import MAX_PIXELS, digest_of, some
from thinkdiff.tasks.cobsat_layout import check_layout, check_model_name, exps_folder, sample_paths
from thinkdiff.tasks.image_pool import ImagePool
from thinkdiff.tasks.pictures import Demands, PictureRefused, png_of

if TYPE_CHECKING:
    from thinkdiff.storage.root import Folder

MAX_PICTURE, MAX_JSON, MAX_TEXT = 64 << 20, 1 << 20, 10_000
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Given:
    """The files of each prompt that has some, by the prompt's name."""

    folder: Folder
    pictures: Mapping[str, FileEntry]
    descriptions: Mapping[str, FileEntry]

    @property
    def digest(self) -> str:
        """One digest of all of these files."""
        entries = (*self.pictures.values(), *self.descriptions.values())
        return digest_of((entry.path, entry.size, entry.sha256) for entry in entries)


def given_media(uri: str, name: str, asked: CobsatPrompts) -> GivenMedia:
    """The spec of the pictures that are in a folder now; every file is read. Raises InputError when there is none."""
    from thinkdiff.storage.root import Folder

    plain = plain_prompts(asked)
    return GivenMedia(name=check_model_name(name), prompts=plain, digest=given(Folder.source(uri), name, plain).digest)


def plain_prompts(asked: CobsatPrompts) -> CobsatPrompts:
    """The prompts without what only we make of them: where the demonstrations lie, and our instruction."""
    return validated(CobsatPrompts, asked.model_dump() | {"images": "", "images_digest": None, "instruction": ""})


def imported(root: str, reference: str, asked: CobsatPrompts) -> MediaSet:
    """The pictures of these prompts that were imported into a root under that name, or with that start of fingerprint.

    Raises SpecError, naming the imported sets that are there, unless there is exactly one.
    """
    from thinkdiff.storage.records import find_artifacts

    found = [artifact for artifact in find_artifacts(root, ("generate_media",)) if "decoder" not in artifact.spec]
    there = [(GivenMedia.model_validate(artifact.spec), artifact) for artifact in found]
    plain = plain_prompts(asked)
    fit = [
        MediaSet.model_validate(artifact.model_dump())
        for spec, artifact in there
        if spec.prompts == plain and (spec.name == reference or artifact.fingerprint.startswith(reference))
    ]
    if len(fit) == 1:
        return fit[0]
    names = [
        f"{spec.name} {artifact.fingerprint[:12]}{'' if spec.prompts == plain else ' of other prompts'}"
        for spec, artifact in there
    ]
    raise SpecError(
        f"others: found {len(fit)} sets of pictures {reference!r} of the recipe's prompts among those imported into "
        f"{root} ({', '.join(names) or 'none'}), expected exactly one. Import them with `thinkdiff import-media` for "
        "the same recipe, shots and prompt type, or give the start of a fingerprint."
    )


def given(folder: Folder, name: str, asked: CobsatPrompts) -> Given:
    """Lists and hashes the files of a model. Raises InputError for none at all, or for one that is far too large."""
    from thinkdiff.storage.bucket import at_once

    check_layout(asked)
    every = prompts(asked)
    paths = {prompt.name: path for prompt, path in zip(every, sample_paths(name, asked, every), strict=True)}
    sizes = folder.sizes(exps_folder(name))
    found: list[dict[str, FileEntry]] = []
    for kind, most in ((".jpg", MAX_PICTURE), (".json", MAX_JSON)):
        there = {key: f"{path}{kind}" for key, path in paths.items() if f"{path}{kind}" in sizes}
        if large := [path for path in there.values() if sizes[path] > most]:
            raise InputError(
                f"{folder.uri}: found {len(large)} files of more than {most} bytes ({some(large)}), expected pictures "
                "and descriptions. They are something else; take them away."
            )
        found.append(dict(zip(there, at_once(folder.hash, list(there.values())), strict=True)))
    if not found[0]:
        models = [n.removesuffix("_image") for n in (folder / "results/exps").children() if n.endswith("_image")]
        raise InputError(
            f"{folder.uri}: found no picture of {name!r} for any of {len(paths)} prompts ({asked.prompt_type}, shots "
            f"{', '.join(map(str, asked.shots))}; models there: {', '.join(models[:5]) or 'none'}), expected "
            f"{exps_folder(name)}/shot_…. Look at the name, the shots and the prompt type."
        )
    return Given(folder, *found)


def decoded_pngs(source: Given, names: list[str], run: Execution) -> list[tuple[str, bytes]]:
    """(name, PNG bytes) of some pictures. Raises InputError for those that do not decode or are not those listed."""
    from thinkdiff.storage.bucket import at_once
    from thinkdiff.storage.records import verified_bytes

    read = list(at_once(lambda name: verified_bytes(source.folder, source.pictures[name]), names))
    reasons = asyncio.run(refusals(read, run))
    if bad := [f"{source.pictures[name].path}: {reasons[i]}" for i, name in enumerate(names) if reasons[i]]:
        raise InputError(
            f"{source.folder.uri}: found {len(bad)} files that are no picture ({some(bad)}), expected JPEG, PNG, WebP "
            "or GIF. A picture that is not there counts as wrong; make these again, or take them away."
        )
    return [(name, png_of(data)) for name, data in zip(names, read, strict=True)]


async def refusals(pictures: list[bytes], run: Execution) -> list[str]:
    """Why each picture does not decode, "" when it does."""
    async with ImagePool(Demands(MAX_PIXELS), run.fetching) as pool:

        async def judge(data: bytes) -> str:
            try:
                await pool.prepare(data)
            except PictureRefused as error:
                return str(error)
            return ""

        return await asyncio.gather(*map(judge, pictures))


def description(source: Given, name: str) -> str:
    """What the system said of a prompt: its JSON's `description` as plain text, "" when there is none."""
    from thinkdiff.storage.records import verified_bytes

    if name not in source.descriptions:
        return ""
    try:
        about = json.loads(verified_bytes(source.folder, source.descriptions[name]))
    except (ValueError, RecursionError):
        return ""
    text = about.get("description") if isinstance(about, dict) else None
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text[:MAX_TEXT]) if isinstance(text, str) else ""
