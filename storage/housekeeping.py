"""What is whole and what is left over under a root: `thinkdiff verify` and `thinkdiff gc`."""

from __future__ import annotations

from pydantic import ValidationError

from thinkdiff.schemas.artifact import EVERY_STAGE, Artifact
from thinkdiff.storage.disk import TEMPORARY
from thinkdiff.storage.lease import LEASE
from thinkdiff.storage.records import RECORD, altered_files, inconsistencies, missing_files, other_version
from thinkdiff.storage.root import Folder


def verify_root(root: str, deep: bool) -> tuple[int, list[str]]:
    """Number of records looked at and a line for each problem; `deep` reads and hashes every byte again."""
    checked, problems = 0, []
    for folder in artifact_folders(root):
        try:
            data = folder.read(RECORD)
        except FileNotFoundError:
            continue
        checked += 1
        try:
            artifact = Artifact.model_validate_json(data).model_copy(update={"uri": folder.uri})
        except ValidationError as error:
            broken = f"found a record that cannot be read ({error.error_count()} complaints)"
            problems.append(f"{folder.uri}: {other_version(data, error) or broken}")
            continue
        found = altered_files(artifact) if deep else missing_files(artifact) + inconsistencies(artifact)
        problems += [f"{folder.uri}: found {phrase}" for phrase in found]
    return checked, problems


def artifact_folders(root: str) -> list[Folder]:
    """The folders under a root that are, or may become, artifacts."""
    return [Folder.at(root) / stage / name for stage in EVERY_STAGE for name in (Folder.at(root) / stage).children()]


def garbage(root: str) -> dict[str, int]:
    """Names and sizes of files under a root that no record lists.

    A folder with a lease is being worked on and is left alone, and so are the parts of a folder that has no record
    yet: a re-run continues from them. One whose record another version of thinkdiff wrote is not touched.
    """
    found: dict[str, int] = {}
    for folder in artifact_folders(root):
        sizes = all_sizes(folder)
        if LEASE in sizes:
            continue
        listed: set[str] = set(sizes)
        if RECORD in sizes:
            data = folder.read(RECORD)
            try:
                artifact = Artifact.model_validate_json(data)
                listed = {entry.path for entry in artifact.files} | {RECORD}
            except ValidationError as error:
                listed = set(sizes) if other_version(data, error) else set(sizes) - {RECORD}
        prefix = folder.uri.removeprefix(Folder.at(root).uri).lstrip("/")
        temporary = {name for name in sizes if TEMPORARY in name}
        found |= {f"{prefix}/{name}": sizes[name] for name in sorted((set(sizes) - listed) | temporary)}
    return found


def all_sizes(folder: Folder) -> dict[str, int]:
    """Names and sizes of all files of a folder, temporary ones too."""
    start = len(folder.fs._strip_protocol(folder.uri).rstrip("/")) + 1
    found = folder.fs.find(folder.uri, detail=True)
    return {path[start:]: int(info["size"] or 0) for path, info in found.items()}


def remove(root: str, names: dict[str, int]) -> None:
    """Deletes what `garbage` listed."""
    base = Folder.at(root)
    for name in names:
        base.delete(name)
