"""Artifacts around files that a test wrote, without running a stage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from thinkdiff.schemas.artifact import Artifact, FileEntry, Provenance, Stage, content_digest
from thinkdiff.storage.root import Folder

A = TypeVar("A", bound=Artifact)


def artifact_of(kind: type[A], folder: Folder, files: Iterable[FileEntry], stage: Stage = "extract_features") -> A:
    """An artifact of these files; its fingerprint is the folder's name when that is one."""
    entries = tuple(sorted(files, key=lambda entry: entry.path))
    name = folder.uri.rsplit("/", 1)[1]
    return kind(
        stage=stage,
        fingerprint=name if len(name) == 32 else "0" * 32,
        digest=content_digest(entries),
        uri=folder.uri,
        spec={},
        version=1,
        parents={},
        files=entries,
        provenance=Provenance(created="2026-01-01T00:00:00", seconds=0, host="test", git_commit=None, packages={}),
    )


def flip(folder: Folder, name: str, at: int) -> None:
    """Inverts one byte of a file in place; a negative place counts from the end."""
    data = bytearray(folder.read(name))
    data[at] ^= 0xFF
    folder.write(name, data)


def cut(folder: Folder, name: str, size: int) -> None:
    """Keeps the first `size` bytes of a file."""
    folder.write(name, folder.read(name)[:size])
