"""The command line `thinkdiff`: one thin command per thing a person does. Errors are one sentence and exit code 2."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from thinkdiff.flows import cli_compare, cli_plan, cli_store
from thinkdiff.flows.cli_gallery import gallery
from thinkdiff.schemas.artifact import STAGES, Artifact, Execution
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import SpecError, ThinkDiffError

if TYPE_CHECKING:
    from thinkdiff.schemas.pipeline import PipelineSpec

app = typer.Typer(
    name="thinkdiff", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="ThinkDiff as a staged, cacheable pipeline: captions, features, aligner, pictures, CoBSAT.",
)  # fmt: skip

app.command()(gallery)

Root = Annotated[str, typer.Option(help="artifact root: a path or s3://bucket/prefix", envvar="THINKDIFF_ROOT")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on standard output and nothing else")]
License = Annotated[str, typer.Option(help="of the weights, for the model card: an identifier of the hub")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]

# Prefect's own defaults call home and give a loaded laptop 20 s to start its embedded server.
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


class Quiet(logging.Filter):
    """Drops Prefect's traceback of an error that the command line reports as one sentence."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, ThinkDiffError) and "Finished in state Failed" not in record.getMessage()


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="a named experiment; `thinkdiff recipes` lists them")] = "mini",
    root: Root = "runs",
    until: Annotated[str, typer.Option(help=f"last stage to build: {', '.join(STAGES)}")] = STAGES[-1],
    refresh: Annotated[list[str] | None, typer.Option(help="stage to compute again (repeatable)")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="a value of the spec, e.g. aligner.lr=0.001, or of the run, e.g. run.workers=4"),
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", help="imported pictures of another system to score beside these (repeatable)"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="where relative collection URLs start; default ROOT/data")] = None,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads of a model; 0 leaves it to the recipe")] = 0,
    refetch_failed: Annotated[
        bool, typer.Option("--refetch-failed", help="try the pictures that failed again, keep the others")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Builds a recipe up to a stage; stages that are in the root already are taken from there."""
    for stage in (until, *(refresh or ())):
        known_stage(stage)
    options = {"root": root, "data": data, "device": device, "threads": threads, "refetch_failed": refetch_failed}
    spec, execution = asked(recipe, set_, options)
    result = run_flow(recipe=recipe, target=until, spec=spec, run=execution, refresh=refresh or [], others=with_ or [])
    if as_json:
        typer.echo(json.dumps(result))
        return
    for line in result["stages"]:
        if line["role"] == line["stage"] or len(result["stages"]) < 20:
            typer.echo(f"{line['state']:<10} {line['role']:<18} {line['seconds']:8.1f} s  {line['uri']}")
    for method, by_shots in (result["scores"] | result["others"]).items():
        typer.echo(f"{method:<14} " + "  ".join(f"{shots}-shot {value:.3f}" for shots, value in by_shots.items()))
    if result["report"]:
        typer.echo(f"report: {result['report']}")


def asked(recipe: str, assignments: list[str] | None, options: dict[str, Any]) -> tuple[PipelineSpec, Execution]:
    """A recipe and how to run it, with what the command line changes of both. Raises SpecError for a bad change."""
    from thinkdiff.flows.recipes import recipe as named
    from thinkdiff.schemas.artifact import validated
    from thinkdiff.schemas.pipeline import PipelineSpec

    values = named(recipe).model_dump() | {"run": Execution().model_dump() | options}
    for assignment in assignments or ():
        assign(values, assignment)
    execution = validated(Execution, values.pop("run"))
    return validated(PipelineSpec, values), execution


def run_flow(**parameters: Any) -> dict[str, Any]:
    """Calls the flow of the pipeline."""
    prepare_prefect()
    from thinkdiff.flows.thinkdiff_flow import thinkdiff

    result: Any = thinkdiff(**parameters)
    return result


def prepare_prefect() -> None:
    """Puts Prefect's settings in place, and leaves its tracebacks of known errors out; before a flow is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("task_runs", "flow_runs", "task_engine", "flow_engine", "engine"):
        logging.getLogger(f"prefect.{name}").addFilter(Quiet())


def known_stage(name: str, stages: Sequence[str] = STAGES) -> None:
    """Raises SpecError for a stage that is none of `stages`."""
    if name not in stages:
        raise SpecError(f"stage: found {name!r}, expected one of {', '.join(stages)}.")


def assign(values: dict[str, Any], assignment: str) -> None:
    """Puts `a.b=value` into nested values. Raises SpecError for a key that the spec does not have."""
    path, equals, text = assignment.partition("=")
    *folders, last = path.split(".")
    place: Any = values
    for name in folders:
        place = place.get(name) if isinstance(place, dict) else None
    if not equals or not isinstance(place, dict) or last not in place:
        where = f"one of {', '.join(place)}" if isinstance(place, dict) else "a path such as aligner.lr=0.001"
        raise SpecError(f"--set: found {assignment!r}, expected {where}. The spec has no such key.")
    try:
        place[last] = json.loads(text)
    except ValueError:
        place[last] = text


app.command()(cli_plan.plan)


@app.command()
def recipes(as_json: AsJson = False) -> None:
    """Lists the named experiments."""
    from thinkdiff.flows.recipes import RECIPES

    if as_json:
        typer.echo(json.dumps({name: make().model_dump(mode="json") for name, make in RECIPES.items()}))
        return
    for name, make in RECIPES.items():
        typer.echo(f"{name:<12} {(make.__doc__ or '').strip().splitlines()[0]}")


@app.command()
def artifacts(root: Root = "runs", as_json: AsJson = False) -> None:
    """Lists the artifacts under a root."""
    from thinkdiff.storage.records import find_artifacts

    found = list(find_artifacts(root))
    if as_json:
        typer.echo(json.dumps([summary(artifact) for artifact in found]))
        return
    for artifact in found:
        counts = ", ".join(f"{name} {value}" for name, value in list(artifact.counts.items())[:3])
        typer.echo(f"{artifact.stage:<17} {artifact.fingerprint[:12]} {artifact.provenance.created}  {counts}")


def summary(artifact: Artifact) -> dict[str, Any]:
    """What a listing says of an artifact: all but its spec and its files."""
    brief = artifact.model_dump(mode="json", exclude={"spec", "files", "parents"})
    return brief | {"files": len(artifact.files), "bytes": sum(entry.size for entry in artifact.files)}


@app.command()
def show(artifact: Annotated[str, typer.Argument(help="start of a fingerprint")], root: Root = "runs") -> None:
    """Prints an artifact's record."""
    from thinkdiff.storage.records import find_artifact

    typer.echo(find_artifact(root, artifact).model_dump_json(indent=1))


for command in (cli_store.verify, cli_store.gc, cli_store.mirror):
    app.command()(command)


@app.command()
def generate(
    parts: Annotated[list[str], typer.Argument(metavar="IMAGE|TEXT...", help="picture files and words, in order")],
    aligner: Annotated[
        str, typer.Option(help="start of a fingerprint, `latest`, or ./a-folder or name of the hub")
    ] = "latest",
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG file to write")] = Path("out.png"),
    root: Root = "runs",
    recipe: Annotated[str, typer.Option(help="whose VLM, decoder and settings to use")] = "mini",
    seed: Annotated[int, typer.Option(help="of the picture")] = 0,
    device: Device = "auto",
) -> None:
    """Pictures and words in, one picture out, through a trained aligner."""
    from thinkdiff.flows.recipes import execution
    from thinkdiff.flows.recipes import recipe as named
    from thinkdiff.schemas.artifact import validated
    from thinkdiff.tasks.compose import chosen_aligner, compose

    spec = named(recipe)
    where = execution(validated(Execution, {"root": root, "device": device}), spec)
    text = compose(spec, chosen_aligner(where, aligner), parts, out, seed, where)
    if text:
        typer.echo(f"the VLM's words: {text}")
    typer.echo(f"picture: {out}")


app.command()(cli_compare.compare)


@app.command("export-aligner")
def export_aligner(
    aligner: Annotated[str, typer.Argument(help="start of an aligner's fingerprint, or `latest`")],
    target: Annotated[str, typer.Argument(help="folder to write, or a .pth file with --format authors")],
    root: Root = "runs",
    layout: Annotated[
        Literal["hub", "authors"],
        typer.Option("--format", help="hub: safetensors and a model card; authors: the .pth that their code loads"),
    ] = "hub",
    license: License = "other",
) -> None:
    """Writes a trained aligner for others, as the hub or the authors' code has it."""
    from thinkdiff.tasks.aligner_files import export_aligner as export
    from thinkdiff.tasks.compose import trained_aligner

    artifact = trained_aligner(Execution(root=root), aligner)
    export(artifact, target, layout, license)
    typer.echo(f"aligner {artifact.fingerprint[:12]}: {target}")


@app.command("import-aligner")
def import_aligner(
    source: Annotated[str, typer.Argument(help="a .pth of the authors' layout; nothing in it is run")],
    target: Annotated[str, typer.Argument(help="folder to write, for `thinkdiff generate --aligner ./folder`")],
    license: License = "other",
) -> None:
    """Makes a folder as the hub has it of an aligner that the authors' code wrote."""
    from thinkdiff.tasks.aligner_files import import_aligner as convert

    config = convert(source, target, license)
    typer.echo(f"aligner {config.in_features} -> {config.hidden} -> {config.out_features}: {target}")


@app.command("verify-cobsat")
def verify_cobsat(
    path: Annotated[str, typer.Argument(help="the data set: a folder, a .zip, or either in a bucket")],
    recipe: Annotated[str, typer.Option(help="whose benchmark")] = "lvlm-paper",
    as_json: AsJson = False,
) -> None:
    """Reads and decodes every picture of the benchmark's data set; prints its digest."""
    from thinkdiff.tasks.cobsat_data import verify

    found = verify(path, benchmark_of(recipe))
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, value in found.items():
        typer.echo(f"{name}: {value}")


def benchmark_of(recipe: str) -> CobsatPrompts:
    """The benchmark of a recipe. Raises SpecError when it has none."""
    from thinkdiff.flows.recipes import recipe as named

    queries = named(recipe).queries
    if queries is None or not isinstance(queries.prompts, CobsatPrompts):
        raise SpecError(f"recipe: found {recipe!r}, which has no benchmark, expected one that has. Take lvlm-paper.")
    return queries.prompts


@app.command("export-cobsat")
def export_cobsat(
    media: Annotated[str, typer.Argument(help="start of the fingerprint of generated pictures")],
    target: Annotated[str, typer.Argument(help="folder or s3://bucket/prefix to write `results` into")],
    name: Annotated[str | None, typer.Option(help="the model in the benchmark's folders; default thinkdiff")] = None,
    root: Root = "runs",
) -> None:
    """Writes pictures, and what a judge said of them, as the benchmark's own scripts keep results."""
    from thinkdiff.tasks.export_cobsat import export_cobsat as export

    done = export(root, media, target, name)
    typer.echo(
        f"{done.written} samples written, {done.kept} there already, {done.missing} without a picture, "
        f"{done.summaries} evaluations: {target}"
    )


@app.command("import-media")
def import_media(
    folder: Annotated[str, typer.Argument(help="folder or s3://bucket/prefix that holds `results/exps/<name>_image`")],
    name: Annotated[str, typer.Option(help="the model in the benchmark's folders")],
    root: Root = "runs",
    recipe: Annotated[str, typer.Option(help="whose benchmark")] = "lvlm-paper",
    shots: Annotated[list[int] | None, typer.Option(help="numbers of shots (repeatable); default the recipe's")] = None,
    prompt_type: Annotated[str, typer.Option(help="as in the benchmark's folders")] = "default",
    as_json: AsJson = False,
) -> None:
    """Takes pictures that another system made of the benchmark's prompts into the root, to be scored."""
    from thinkdiff.schemas.artifact import validated
    from thinkdiff.tasks.given_pictures import given_media

    asked = benchmark_of(recipe)
    changes = {"prompt_type": prompt_type, "shots": tuple(shots or asked.shots)}
    where = folder if "://" in folder else str(Path(folder).absolute())
    spec = given_media(where, name, validated(CobsatPrompts, asked.model_dump() | changes))
    prepare_prefect()
    from thinkdiff.flows.import_media_flow import import_given

    result: Any = import_given(spec=spec, run=validated(Execution, {"root": root, "given": where}))
    if as_json:
        typer.echo(json.dumps(result))
        return
    (line,) = result["stages"]
    counts = ", ".join(f"{kind} {value}" for kind, value in result["counts"].items())
    typer.echo(f"{line['state']:<10} {name:<18} {counts}  {line['uri']}")


@app.command("build-mini")
def build_mini(
    out: Annotated[Path, typer.Option(help="folder for the weights")] = Path("mini-weights"),
    seed: Annotated[int, typer.Option(help="of every model")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="train only this model (repeatable)")] = None,
) -> None:
    """Trains the miniature's models from scratch."""
    from thinkdiff.mini.build import build_mini as build

    build(out, seed, tuple(only or ()))
    typer.echo(f"weights: {out}")


def main() -> None:
    """Entry point: runs the app; a known error becomes one sentence on standard error and exit code 2."""
    try:
        app()
    except ThinkDiffError as error:
        typer.echo(f"thinkdiff: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
