"""A gallery's folder, and other systems' pictures of it: which files there are, whether they can be used, their digest.

In: a folder, on disk or in a bucket, with `prompts.jsonl` and pictures; or one with `<system>/<prompt>.png` or `.jpg`.
Out: prompts, file entries, specs that tell these bytes from others, and PNG pictures, decoded in processes of their
own. The files come from strangers. Writes nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from thinkdiff.schemas.artifact import Execution, FileEntry, one_sentence, validated
from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.gallery import GalleryPrompt, GallerySource, GivenGallery
from thinkdiff.tasks.cobsat_data import digest_of, some
from thinkdiff.tasks.given_pictures import MAX_PICTURE, refusals
from thinkdiff.tasks.pictures import upright_png

if TYPE_CHECKING:
    from thinkdiff.storage.root import Folder

LIST = "prompts.jsonl"
MAX_LIST = 16 << 20  # bytes
MAX_PROMPTS = 20_000
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Files:
    """Files of a folder by what they are of: a gallery's pictures by their paths, a system's by the prompts' names."""

    folder: Folder
    prompts: tuple[GalleryPrompt, ...]
    pictures: Mapping[str, FileEntry]
    listing: tuple[FileEntry, ...] = ()

    @property
    def digest(self) -> str:
        """One digest of all of these files."""
        return digest_of((e.path, e.size, e.sha256) for e in (*self.listing, *self.pictures.values()))


def gallery_source(uri: str, longest_side: int) -> GallerySource:
    """The spec of the gallery that is in a folder now; every file is read. Raises InputError for one that is none."""
    from thinkdiff.storage.root import Folder

    return GallerySource(digest=gallery_files(Folder.source(uri)).digest, longest_side=longest_side)


def gallery_files(folder: Folder) -> Files:
    """A gallery's prompts and pictures; links are no files. Raises InputError, a sentence, for what cannot be used."""
    if not folder.exists(LIST):
        raise InputError(
            f"{folder.uri}: found no {LIST}, expected a gallery: a line of JSON for each prompt, and the pictures that "
            "the lines name. Look at the folder."
        )
    if (size := folder.size(LIST)) > MAX_LIST:
        raise InputError(f"{folder.uri}/{LIST}: found {size} bytes, expected at most {MAX_LIST}. It is no list.")
    prompts = listed(folder.read(LIST), f"{folder.uri}/{LIST}")
    names = dict.fromkeys(name for prompt in prompts for name in prompt.images)
    entries = entries_of(folder, {name: name for name in names}, folder.sizes())
    if missing := [name for name in names if name not in entries]:
        raise InputError(
            f"{folder.uri}: found no file for {len(missing)} of {len(names)} pictures ({some(missing)}), expected "
            f"those that {LIST} names. Put them there, or take their lines out."
        )
    return Files(folder, prompts, entries, (folder.hash(LIST),))


def listed(data: bytes, where: str) -> tuple[GalleryPrompt, ...]:
    """The prompts of a list, empty lines left out. Raises InputError for the first line that is none."""
    found: list[GalleryPrompt] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(GalleryPrompt.model_validate_json(line))
        except ValidationError as error:
            said = one_sentence("prompt", error)
            raise InputError(
                f"{where}, line {number}: {said} A line is a JSON object of name, images, text and video; correct it."
            ) from None
        if len(found) > MAX_PROMPTS:
            raise InputError(f"{where}: found more than {MAX_PROMPTS} prompts, expected fewer. Split the gallery.")
    if not found:
        raise InputError(f"{where}: found no prompts, expected a line of JSON for each. Write some.")
    if twice := [name for name, count in Counter(p.name for p in found).items() if count > 1]:
        raise InputError(f"{where}: found {len(twice)} names twice ({some(twice)}), expected each once. Rename them.")
    return tuple(found)


def given_gallery(uri: str, name: str, prompts: Sequence[GalleryPrompt]) -> GivenGallery:
    """The spec of a system's pictures that are in a folder now; every file is read. Raises InputError for none."""
    from thinkdiff.storage.root import Folder

    return validated(GivenGallery, {"name": name, "digest": given_files(Folder.source(uri), name, prompts).digest})


def given_files(folder: Folder, name: str, prompts: Sequence[GalleryPrompt]) -> Files:
    """A system's pictures, of the suffixes the first that is there. Raises InputError when there is none at all."""
    sizes = folder.sizes(name)
    paths = {
        prompt.name: path
        for prompt in prompts
        for path in [f"{name}/{prompt.name}{suffix}" for suffix in reversed(SUFFIXES)]
        if path in sizes
    }
    if not paths:
        raise InputError(
            f"{folder.uri}/{name}: found no picture of any of {len(prompts)} prompts, expected {prompts[0].name}.png "
            "and the like. Name the pictures as the prompts."
        )
    return Files(folder, tuple(prompts), entries_of(folder, paths, sizes))


def systems(uri: str) -> list[str]:
    """The names of the systems whose pictures are in a folder. Raises InputError when there is none."""
    from thinkdiff.storage.root import Folder

    folder = Folder.source(uri)
    found = [name for name in folder.children() if (folder / name).children()]
    if not found:
        raise InputError(f"{folder.uri}: found no folders, expected one for each system, with pictures in it.")
    return found


def entries_of(folder: Folder, paths: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, FileEntry]:
    """The entries of those files that there are. Raises InputError for one that is too large."""
    from thinkdiff.storage.bucket import at_once

    there = {key: path for key, path in paths.items() if path in sizes}
    if large := [path for path in there.values() if sizes[path] > MAX_PICTURE]:
        raise InputError(
            f"{folder.uri}: found {len(large)} files of more than {MAX_PICTURE} bytes ({some(large)}), expected "
            "pictures. They are something else; take them away."
        )
    return dict(zip(there, at_once(folder.hash, list(there.values())), strict=True))


def must_be(files: Files, digest: str) -> None:
    """Raises InputError when these are not the files that a spec means."""
    if files.digest != digest:
        raise InputError(
            f"{files.folder.uri}: found files of digest {files.digest[:12]}…, expected {digest[:12]}… as the spec "
            "says. They have changed since it was made; start again."
        )


def upright_pngs(files: Files, names: Iterable[str], longest_side: int, run: Execution) -> list[tuple[str, bytes]]:
    """(name, PNG bytes) of some pictures. Raises InputError for those that do not decode or are not those listed."""
    from thinkdiff.storage.bucket import at_once
    from thinkdiff.storage.records import verified_bytes

    names = list(names)
    read = list(at_once(lambda name: verified_bytes(files.folder, files.pictures[name]), names))
    reasons = asyncio.run(refusals(read, run))
    if bad := [f"{files.pictures[name].path}: {reasons[i]}" for i, name in enumerate(names) if reasons[i]]:
        raise InputError(
            f"{files.folder.uri}: found {len(bad)} files that are no picture ({some(bad)}), expected JPEG, PNG, WebP "
            "or GIF. Make them again, or take their lines out."
        )
    return [(name, upright_png(data, longest_side)) for name, data in zip(names, read, strict=True)]


def list_bytes(prompts: Iterable[GalleryPrompt]) -> bytes:
    """The prompts as a list, each line the same for the same prompt."""
    return "".join(f"{json.dumps(p.model_dump(mode='json'), ensure_ascii=False)}\n" for p in prompts).encode()
