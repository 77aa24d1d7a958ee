"""Artifacts copied from one root to another: `thinkdiff mirror`.

In: two roots, local or in buckets. Out: the same artifacts under the other root, byte for byte as their records name
them, each record written last. What is there whole already is kept; a copy that was broken off goes on with the next
file. Neither root's other files are touched, and nothing is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from thinkdiff.schemas.artifact import EVERY_STAGE, Artifact, FileEntry, Stage
from thinkdiff.schemas.errors import StoreError
from thinkdiff.storage.lease import Lease
from thinkdiff.storage.records import artifact_folder, find_artifacts, read_record, write_record
from thinkdiff.storage.root import Folder

LEASE_SECONDS = 30.0


@dataclass(frozen=True)
class Copied:
    """What became of one artifact: bytes that were copied, None where it was there already."""

    artifact: Artifact
    size: int | None


def mirror(
    source: str, target: str, stages: tuple[Stage, ...] = EVERY_STAGE, wanted: Callable[[Artifact], bool] = bool
) -> Iterator[Copied]:
    """Copies the artifacts of some stages that are `wanted`, one after the other.

    Raises StoreError for a file that is not as its record says, or another artifact of that fingerprint at the target,
    LockedError while a run makes the artifact there.
    """
    for artifact in find_artifacts(source, stages):
        if wanted(artifact):
            yield Copied(artifact, copied(artifact, target))


def copied(artifact: Artifact, target: str) -> int | None:
    """Copies an artifact unless it is there; returns how many bytes went."""
    folder = artifact_folder(target, artifact.stage, artifact.fingerprint)
    there = read_record(folder, type(artifact))
    if there is not None:
        if there.digest != artifact.digest:
            raise StoreError(
                f"{folder.uri}: found an artifact of digest {there.digest[:16]}, expected {artifact.digest[:16]} as in "
                f"{artifact.uri}. It was made from other bytes; remove one of them, or take another root."
            )
        return None
    source, size = Folder.at(artifact.uri), 0
    with Lease(folder, LEASE_SECONDS) as lease:
        sizes = folder.sizes()
        for entry in artifact.files:
            if sizes.get(entry.path) != entry.size or folder.hash(entry.path).sha256 != entry.sha256:
                copy_file(source, folder, entry)
                size += entry.size
            lease.check()
        parents = {
            role: parent.model_copy(update={"uri": artifact_folder(target, parent.stage, parent.fingerprint).uri})
            for role, parent in artifact.parents.items()
        }
        write_record(artifact.model_copy(update={"uri": folder.uri, "parents": parents}))
    return size


def copy_file(source: Folder, target: Folder, entry: FileEntry) -> None:
    """Streams one file. Raises StoreError, and leaves none at the target, when it is not as its entry says."""
    found = target.write_pieces(entry.path, source.chunks(entry.path))
    if (found.size, found.sha256) != (entry.size, entry.sha256):
        target.delete(entry.path)
        raise StoreError(
            f"{source.full(entry.path)}: found {found.size} bytes of sha256 {found.sha256[:16]}, expected {entry.size} "
            f"of {entry.sha256[:16]} as its record says. It is not copied; run its stage again with --refresh."
        )
