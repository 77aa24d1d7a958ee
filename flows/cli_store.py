"""The commands that look after a root: `verify`, `gc` and `mirror`, which `cli` adds to its own."""

from __future__ import annotations

from typing import Annotated

import typer

Root = Annotated[str, typer.Option(help="artifact root: a path or s3://bucket/prefix", envvar="THINKDIFF_ROOT")]


def verify(
    root: Root = "runs",
    deep: Annotated[bool, typer.Option("--deep", help="read and hash every byte again")] = False,
) -> None:
    """Checks that every artifact is whole; exit code 1 when one is not."""
    from thinkdiff.storage.housekeeping import verify_root

    checked, problems = verify_root(root, deep)
    for problem in problems:
        typer.echo(problem)
    typer.echo(f"{checked} artifacts checked, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


def gc(
    root: Root = "runs",
    delete: Annotated[bool, typer.Option("--delete", help="remove what is listed; without it nothing changes")] = False,
    unreferenced: Annotated[
        bool,
        typer.Option("--unreferenced", help="also artifacts of which no aligner, score or page was or is being made"),
    ] = False,
    days: Annotated[float, typer.Option(help="how old these, and uploads to a bucket, must be", min=0)] = 7.0,
) -> None:
    """Lists (or removes) what no record names: parts of broken runs, temporary files, unfinished uploads."""
    from thinkdiff.schemas.errors import LockedError, RootError
    from thinkdiff.storage import housekeeping

    found, uploads = housekeeping.garbage(root), list[dict[str, str]]()
    try:
        uploads = housekeeping.abandoned_uploads(root, days)
    except RootError as error:
        typer.echo(f"uploads are left out: {error}", err=True)
    unused = housekeeping.unreferenced(root, days) if unreferenced else []
    names = {f"{one.stage}/{one.fingerprint}/ (whole)": one for one in unused}
    sizes = {name: sum(file.size for file in one.files) for name, one in names.items()}
    for name, size in (found | sizes).items():
        typer.echo(f"{size:>12} {name}")
    for upload in uploads:
        typer.echo(f"{'upload':>12} {upload['Key']}")
    if delete:
        housekeeping.remove(root, found)
        housekeeping.give_up(root, uploads)
        for name, artifact in names.items():
            try:
                housekeeping.discard(artifact, root)
            except LockedError as error:
                typer.echo(f"left: {error}", err=True)
                del sizes[name]
    total = sum((found | sizes).values()) / 1e6
    what = f"{len(found)} files, {len(uploads)} uploads, {len(sizes)} artifacts, {total:.1f} MB"
    typer.echo(f"{what} {'removed' if delete else 'could be removed with --delete'}")


def mirror(
    source: Annotated[str, typer.Argument(help="root to copy from: a path or s3://bucket/prefix")],
    target: Annotated[str, typer.Argument(help="root to copy to")],
    artifact: Annotated[
        list[str] | None,
        typer.Option("--artifact", help="start of a fingerprint, copied with all that it was made of (repeatable)"),
    ] = None,
) -> None:
    """Copies artifacts to another root, verified as they go; those that are there are kept, nothing is deleted."""
    from thinkdiff.storage import mirror as copies
    from thinkdiff.storage.records import find_artifact, with_ancestors

    chosen = with_ancestors([find_artifact(source, name) for name in artifact], source) if artifact else None
    done = [0, 0, 0]
    for copied in copies.mirror(
        source, target, wanted=lambda one: chosen is None or (one.stage, one.fingerprint) in chosen
    ):
        state = "kept" if copied.size is None else "copied"
        typer.echo(f"{state:<7} {copied.artifact.stage:<17} {copied.artifact.fingerprint[:12]}")
        done = [done[0] + (copied.size is not None), done[1] + (copied.size is None), done[2] + (copied.size or 0)]
    typer.echo(f"{done[0]} artifacts copied ({done[2] / 1e6:.1f} MB), {done[1]} there already")
