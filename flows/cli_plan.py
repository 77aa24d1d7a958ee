"""The command `thinkdiff plan`: what a run would need and lacks, before it costs anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from thinkdiff.schemas.artifact import EVERY_STAGE

if TYPE_CHECKING:
    from thinkdiff.schemas.artifact import PipelineStage


def plan(
    recipe: Annotated[str, typer.Argument(help="a named experiment; `thinkdiff recipes` lists them")] = "mini",
    root: Annotated[
        str, typer.Option(help="artifact root: a path or s3://bucket/prefix", envvar="THINKDIFF_ROOT")
    ] = "runs",
    until: Annotated[str | None, typer.Option(help="last stage to build; default the last that the recipe has")] = None,
    refresh: Annotated[list[str] | None, typer.Option(help="stage to compute again (repeatable)")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a value of the spec or of the run, as `thinkdiff run` takes it")
    ] = None,
    data: Annotated[str | None, typer.Option(help="where relative collection URLs start; default ROOT/data")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    folder: Annotated[
        str | None, typer.Option(help="of a recipe with a gallery: its pictures and prompts.jsonl")
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="of one GPU, in any currency", min=0)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on standard output and nothing else")] = False,
) -> None:
    """Names all that a run lacks, at once: models, licences, data, room, GPUs; exit code 2 when something blocks."""
    from thinkdiff.flows.cli import asked, known_stage, prepare_prefect

    if until:
        known_stage(until)
    for stage in refresh or ():
        known_stage(stage, EVERY_STAGE)
    spec, run = asked(recipe, set_, {"root": root, "data": data, "device": device, "refresh": tuple(refresh or ())})
    prepare_prefect()
    from thinkdiff.flows import cli_gallery, gallery_flow, thinkdiff_flow
    from thinkdiff.tasks.plan import lines

    if spec.gallery is not None and until is None:
        found = gallery_flow.planned(spec, run, cli_gallery.place(folder), price_per_hour)
    else:
        last = cast("PipelineStage", until or thinkdiff_flow.last_stage(spec))
        found = thinkdiff_flow.planned(spec, last, run, price_per_hour)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
    else:
        typer.echo("\n".join(lines(found)))
    if found.of("blocks"):
        raise typer.Exit(2)
