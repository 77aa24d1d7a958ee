"""The command `thinkdiff gallery`, which `cli` adds to its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from thinkdiff.schemas.artifact import EVERY_STAGE

if TYPE_CHECKING:
    from thinkdiff.schemas.artifact import Stage


def gallery(
    recipe: Annotated[str, typer.Argument(help="a recipe with a gallery: mini-clip or clip-paper")] = "mini-clip",
    folder: Annotated[
        str | None, typer.Option(help="pictures and prompts.jsonl, a path or URL; default the miniature's own")
    ] = None,
    beside: Annotated[
        str | None, typer.Option(help="other systems' pictures, <system>/<prompt>.png or .jpg, for the same tables")
    ] = None,
    root: Annotated[
        str, typer.Option(help="artifact root: a path or s3://bucket/prefix", envvar="THINKDIFF_ROOT")
    ] = "runs",
    refresh: Annotated[list[str] | None, typer.Option(help="stage to compute again (repeatable)")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="a value of the spec, e.g. gallery.draw.media.steps=20, or of the run"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="where relative collection URLs start; default ROOT/data")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads of a model; 0 leaves it to the recipe")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on standard output and nothing else")] = False,
) -> None:
    """Draws a folder of pictures and prompts with ThinkDiff-CLIP; tables of likeness and a page."""
    from thinkdiff.flows.cli import asked, known_stage, prepare_prefect

    for stage in refresh or ():
        known_stage(stage, EVERY_STAGE)
    spec, run = asked(recipe, set_, {"root": root, "data": data, "device": device, "threads": threads})
    prepare_prefect()
    from thinkdiff.flows.gallery_flow import gallery as flow

    stages = cast("list[Stage] | None", refresh)
    result: Any = flow(recipe, place(folder), place(beside), spec=spec, run=run, refresh=stages)
    if as_json:
        typer.echo(json.dumps(result))
        return
    for line in result["stages"]:
        typer.echo(f"{line['state']:<10} {line['role']:<36} {line['seconds']:8.1f} s  {line['uri']}")
    for system, by_measure in result["scores"].items():
        typer.echo(f"{system:<20} " + "  ".join(f"{measure} {value:.3f}" for measure, value in by_measure.items()))
    typer.echo(f"gallery: {result['report']}")


def place(path: str | None) -> str | None:
    """A path made absolute, a URL as it is."""
    return path if path is None or "://" in path else str(Path(path).expanduser().absolute())
