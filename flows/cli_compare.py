"""The command `thinkdiff compare`: two scorecards side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    first: Annotated[str, typer.Argument(help="start of a scorecard's fingerprint, or that and :method")],
    second: Annotated[str, typer.Argument(help="the one that is set against it")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="HTML page to write, with pictures")] = None,
    root: Annotated[
        str, typer.Option(help="artifact root: a path or s3://bucket/prefix", envvar="THINKDIFF_ROOT")
    ] = "runs",
    questions: Annotated[
        int, typer.Option(min=0, help="shown on the page, those that one side alone got right first")
    ] = 60,
) -> None:
    """Compares two runs, or two methods of one run, on the questions that both were asked."""
    from thinkdiff.storage.root import locate
    from thinkdiff.tasks.compare_page import markdown, page
    from thinkdiff.tasks.compare_scores import compared, side

    found = compared(root, side(root, first), side(root, second))
    typer.echo(markdown(found))
    if out is not None:
        folder, name = locate(".", str(out))
        folder.write(name, page(found, questions))
        typer.echo(f"\npage: {out}")
