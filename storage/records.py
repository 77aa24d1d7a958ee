"""The one record of an artifact, `artifact.json`, written last and read first.

No record, no artifact. A record that cannot be read, or whose files are missing or of another size, is a miss with a
warning, never a hit. A record of another version of thinkdiff is neither: it is refused, so that nothing writes over
what that version made. Layout: `<root>/<stage>/<fingerprint>/artifact.json` beside the files that it lists.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from thinkdiff.schemas.artifact import EVERY_STAGE, Artifact, FileEntry, Spec, Stage, content_digest, one_sentence
from thinkdiff.schemas.errors import SpecError, StoreError
from thinkdiff.storage.disk import Octets
from thinkdiff.storage.root import Folder, sha256_hex

RECORD = "artifact.json"
INPUTS = "inputs.json"  # what an artifact is being made of; it goes once there is a record
READINGS = 2
A = TypeVar("A", bound=Artifact)
S = TypeVar("S", bound=Spec)
log = logging.getLogger(__name__)


def artifact_folder(root: str, stage: Stage, fingerprint: str) -> Folder:
    """Where an artifact of that identity lives."""
    return Folder.at(root) / stage / fingerprint


def write_record(artifact: Artifact) -> None:
    """Commits an artifact; all its files must have been written before."""
    Folder(artifact.uri).write(RECORD, artifact.model_dump_json(indent=1).encode())


def write_inputs(folder: Folder, parents: Iterable[Artifact]) -> None:
    """Says in an artifact's folder what it is being made of, so that `unreferenced` keeps that."""
    folder.write(INPUTS, json.dumps([f"{parent.stage}/{parent.fingerprint}" for parent in parents]).encode())


def read_inputs(folder: Folder) -> list[str]:
    """`stage/fingerprint` of what an artifact is being made of, [] where none is or that cannot be read."""
    try:
        found = json.loads(folder.read(INPUTS))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def read_record(folder: Folder, kind: type[A]) -> A | None:
    """The artifact in a folder, or None when there is none that can be trusted.

    The location is taken from where the record was found, so a root may be moved or copied. Raises StoreError for the
    record of another version of thinkdiff.
    """
    try:
        data = folder.read(RECORD)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        artifact = kind.model_validate_json(data).model_copy(update={"uri": folder.uri})
    except ValidationError as error:
        if other := other_version(data, error):
            raise StoreError(f"{folder.uri}/{RECORD}: {other}") from None
        log.warning(
            "%s/%s: found a record that cannot be read (%d complaints), expected a whole one. The stage is run again.",
            folder.uri, RECORD, error.error_count(),
        )  # fmt: skip
        return None
    problems = missing_files(artifact) + inconsistencies(artifact)
    if problems:
        log.warning("%s: found %s. The record is not used; the stage is run again.", folder.uri, problems[0])
        return None
    return artifact


def other_version(data: bytes, error: ValidationError) -> str | None:
    """The sentence for a record that is whole and of another version of thinkdiff, None for one that is damaged.

    Such a record has another layout, or fields that are not known here and is good but for them.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None
    layout = record.get("schema_version", 1) if isinstance(record, dict) else None
    if not isinstance(layout, int):
        return None
    complaints = error.errors(include_url=False, include_input=False)
    if layout != 1:
        found = f"a record of layout {layout}"
    elif all(complaint["type"] == "extra_forbidden" for complaint in complaints):
        found = f"a record with the field {'.'.join(map(str, complaints[0]['loc']))}"
    else:
        return None
    return (
        f"found {found}, written by {writer_of(record)}, expected layout 1 without other fields. This version does not "
        "know it and leaves it as it is; use that version, or another root, or make it again with --refresh."
    )


def writer_of(record: Any) -> str:
    """Which thinkdiff wrote a record, in words."""
    try:
        return writer(record["provenance"]["packages"])
    except (LookupError, TypeError, AttributeError):
        return writer({})


def writer(packages: Mapping[str, str]) -> str:
    """Which thinkdiff wrote something beside these packages, in words."""
    version = packages.get("thinkdiff")
    return f"thinkdiff {version}" if version else "an unknown version of thinkdiff"


def written_by(artifact: Artifact) -> str:
    """Which thinkdiff made an artifact, in words."""
    about = getattr(artifact, "provenance", None)  # what a stage has made so far has none
    return writer(about.packages if about else {})


def spec_of(artifact: Artifact, kind: type[S]) -> S:
    """What an artifact was asked for. Raises StoreError when another version of thinkdiff knew more of it."""
    try:
        return kind.model_validate(artifact.spec)
    except ValidationError as error:
        raise StoreError(
            f"{artifact.uri}/{RECORD}: {one_sentence(kind.__name__, error)} It was written by {written_by(artifact)}; "
            f"use that version, or re-run {artifact.stage} with --refresh."
        ) from None


def missing_files(artifact: Artifact) -> list[str]:
    """A phrase for each listed file that is absent or of another size."""
    sizes = Folder(artifact.uri).sizes()
    found = [(entry, sizes.get(entry.path)) for entry in artifact.files]
    return [
        f"{entry.path} {'missing' if size is None else f'with {size} bytes'}, expected {entry.size} bytes"
        for entry, size in found
        if size != entry.size
    ]


def inconsistencies(artifact: Artifact) -> list[str]:
    """A phrase for each way in which a record contradicts itself or its place."""
    parts = artifact.uri.rstrip("/").split("/")
    problems = []
    if artifact.digest != content_digest(artifact.files):
        problems.append("a digest that is not that of the listed files")
    if parts[-2:] != [artifact.stage, artifact.fingerprint]:
        problems.append(f"the record of {artifact.stage}/{artifact.fingerprint} in another artifact's folder")
    return problems


def altered_files(artifact: Artifact) -> list[str]:
    """A phrase for each listed file whose bytes, re-read and re-hashed, are not those recorded."""
    folder, problems = Folder(artifact.uri), missing_files(artifact) + inconsistencies(artifact)
    sizes = folder.sizes()
    for entry in artifact.files:
        if sizes.get(entry.path) == entry.size and folder.hash(entry.path).sha256 != entry.sha256:
            problems.append(f"{entry.path} with other bytes than recorded")
    return problems


def checked_bytes(artifact: Artifact, name: str) -> bytes:
    """The bytes of a listed file, verified against the record.

    Raises StoreError when the file is not listed, missing or altered.
    """
    entry: FileEntry | None = next((f for f in artifact.files if f.path == name), None)
    if entry is None:
        raise StoreError(f"{artifact.uri}: found no file {name} in the record, expected one. The record is foreign.")
    return verified_bytes(Folder(artifact.uri), entry)


def checked_object(artifact: Artifact, name: str) -> dict[str, Any]:
    """The JSON object of a listed file. Raises StoreError when it is missing, altered or none."""
    try:
        found = json.loads(checked_bytes(artifact, name))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise foreign(artifact, name)
    return found


def foreign(artifact: Artifact, name: str) -> StoreError:
    """The sentence for a file whose bytes are those recorded and that its stage would not have written."""
    return StoreError(
        f"{artifact.path(name)}: found no JSON of {artifact.stage}, expected what that stage writes. Another program "
        "wrote it; re-run the stage with --refresh."
    )


def verified_bytes(folder: Folder, entry: FileEntry) -> bytes:
    """The bytes of a file, verified against its entry. Raises StoreError when it is missing or altered."""
    data = b""
    for _ in range(READINGS):  # they may have been altered on their way alone
        try:
            data = folder.read(entry.path)
        except FileNotFoundError:
            data = b""
        if len(data) == entry.size and sha256_hex(data) == entry.sha256:
            return data
    must_be_recorded(folder, entry, data)
    return data


def must_be_recorded(folder: Folder, entry: FileEntry, data: Octets) -> None:
    """Raises StoreError unless these are the bytes of the file's entry."""
    if len(data) != entry.size or sha256_hex(data) != entry.sha256:
        raise StoreError(
            f"{folder.uri}/{entry.path}: found other bytes than recorded ({len(data)} bytes), expected {entry.size} "
            f"bytes of sha256 {entry.sha256[:12]}…. The file is lost or altered; re-run its stage with --refresh."
        )


def find_artifacts(root: str, stages: tuple[Stage, ...] = EVERY_STAGE) -> Iterator[Artifact]:
    """All trusted artifacts under a root, in the order of the stages, then by fingerprint.

    Those of another version of thinkdiff are left out with a warning.
    """
    for stage in stages:
        base = Folder.at(root) / stage
        for name in base.children():
            try:
                artifact = read_record(base / name, Artifact)
            except StoreError as error:
                log.warning("%s", error)
                continue
            if artifact is not None:
                yield artifact


def find_artifact(root: str, reference: str) -> Artifact:
    """The one artifact whose fingerprint starts with `reference`. Raises SpecError when there is none or several."""
    found = [a for a in find_artifacts(root) if a.fingerprint.startswith(reference) or a.digest.startswith(reference)]
    if len(found) == 1:
        return found[0]
    raise SpecError(
        f"artifact: found {len(found)} under {root} that start with {reference!r}, expected exactly one. "
        "`thinkdiff artifacts` lists them."
    )


def with_ancestors(artifacts: Iterable[Artifact], root: str) -> set[tuple[Stage, str]]:
    """Stage and fingerprint of artifacts, of their parents, and so on, as far as records under a root name them."""
    found, open_ones = set[tuple[Stage, str]](), list(artifacts)
    while open_ones:
        artifact = open_ones.pop()
        if (key := (artifact.stage, artifact.fingerprint)) not in found:
            found.add(key)
            parents = (
                read_record(artifact_folder(root, p.stage, p.fingerprint), Artifact) for p in artifact.parents.values()
            )
            open_ones += [parent for parent in parents if parent is not None]
    return found
