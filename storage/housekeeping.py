"""What is whole and what is left over under a root: `thinkdiff verify` and `thinkdiff gc`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from thinkdiff.schemas.artifact import EVERY_STAGE, Artifact, Stage
from thinkdiff.storage.disk import TEMPORARY
from thinkdiff.storage.lease import LEASE, Lease
from thinkdiff.storage.records import (
    RECORD,
    altered_files,
    artifact_folder,
    find_artifacts,
    inconsistencies,
    missing_files,
    other_version,
    read_inputs,
    with_ancestors,
)  # fmt: skip
from thinkdiff.storage.refusals import readable
from thinkdiff.storage.root import Folder

ENDS: tuple[Stage, ...] = ("train_aligner", "score_cobsat", "score_gallery", "render_report", "render_gallery")


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
        sizes = folder.all_sizes()
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


def remove(root: str, names: dict[str, int]) -> None:
    """Deletes what `garbage` listed."""
    base = Folder.at(root)
    for name in names:
        base.delete(name)


def unreferenced(root: str, days: float) -> list[Artifact]:
    """Artifacts of which no aligner, score or page was made or is being made, older than so many days.

    What a killed run was made of is kept, as that run can go on.
    """
    everything = list(find_artifacts(root))
    needed = {name for folder in artifact_folders(root) for name in read_inputs(folder)}
    ends = (a for a in everything if a.stage in ENDS or f"{a.stage}/{a.fingerprint}" in needed)
    kept = with_ancestors(ends, root)
    before = datetime.now(UTC) - timedelta(days=days)
    return [
        artifact
        for artifact in everything
        if (artifact.stage, artifact.fingerprint) not in kept
        and made_before(artifact, before)
        and not Folder(artifact.uri).exists(LEASE)
    ]


def made_before(artifact: Artifact, moment: datetime) -> bool:
    """Whether an artifact says that it is older; one that says no time is not."""
    try:
        return datetime.fromisoformat(artifact.provenance.created).astimezone(UTC) < moment
    except ValueError:
        return False


def drop(folder: Folder) -> None:
    """Removes an artifact: the record first, so that a crash on the way leaves no record over lost data."""
    folder.delete(RECORD)
    for name in folder.sizes():
        if name != LEASE:
            folder.delete(name)


def discard(artifact: Artifact, root: str) -> None:
    """Removes an artifact and its folder. Raises LockedError when a run works on it."""
    folder = artifact_folder(root, artifact.stage, artifact.fingerprint)
    with Lease(folder, 30.0):
        drop(folder)
        folder.delete_all()


def abandoned_uploads(root: str, days: float) -> list[dict[str, str]]:
    """Multipart uploads below a root in a bucket that were begun so many days ago and neither ended nor given up.

    Each has `Key` and `UploadId`. A store keeps, and bills, their parts, and lists them among no files.
    Raises RootError for an identity that may not list them.
    """
    folder = Folder.at(root)
    if folder.scheme != "s3":
        return []
    bucket, _, prefix = folder.uri.removeprefix("s3://").partition("/")
    before, found, marks = datetime.now(UTC) - timedelta(days=days), list[dict[str, str]](), dict[str, str]()
    while True:
        with readable(folder.uri):
            answer: dict[str, Any] = folder.fs.call_s3(
                "list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", **marks
            )
        for upload in answer.get("Uploads", ()):
            if upload["Initiated"] < before:
                found.append({"Key": upload["Key"], "UploadId": upload["UploadId"]})
        if not answer.get("IsTruncated"):
            return found
        marks = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}


def give_up(root: str, uploads: list[dict[str, str]]) -> None:
    """Ends multipart uploads, and with them their parts."""
    folder = Folder.at(root)
    bucket = folder.uri.removeprefix("s3://").partition("/")[0]
    for upload in uploads:
        folder.fs.call_s3("abort_multipart_upload", Bucket=bucket, **upload)
