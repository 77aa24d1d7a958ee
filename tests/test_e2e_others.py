"""In one run beside the pipeline's own: pictures of another system, and a condition that asks the VLM otherwise."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from small_run import SETTINGS, small_run, states
from store_artifacts import artifact_of

from thinkdiff.flows.cli import assign
from thinkdiff.flows.recipes import recipe
from thinkdiff.schemas.artifact import Execution, fingerprint
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.pipeline import PipelineSpec, Variant
from thinkdiff.schemas.report import Report
from thinkdiff.schemas.scores import Scorecard
from thinkdiff.storage.feature_reader import FeatureReader
from thinkdiff.storage.media_files import MediaReader
from thinkdiff.storage.records import read_record, write_record
from thinkdiff.storage.root import Folder
from thinkdiff.storage.score_tables import read_verdicts
from thinkdiff.tasks.export_cobsat import export_cobsat
from thinkdiff.tasks.given_pictures import given_media
from thinkdiff.tasks.import_media import import_media
from thinkdiff.tasks.step import Work

OTHER = "other-text_bridge"


def small_spec() -> PipelineSpec:
    values = recipe("mini").model_dump()
    for name, value in SETTINGS.items():
        if not name.startswith("run."):
            assign(values, f"{name}={value}")
    return PipelineSpec.model_validate(values)


def bring(source: Path, root: Path, asked: CobsatPrompts) -> None:
    """Imports pictures into a root, outside of any flow."""
    spec = given_media(str(source), OTHER, asked)
    folder = Folder.at(str(root)) / "generate_media" / fingerprint(spec, {})
    work = Work(folder, Execution(given=str(source)), SimpleNamespace(), logging.getLogger("test"))  # pyright: ignore[reportArgumentType]
    object.__setattr__(work, "progress", lambda total, unit: nullcontext(SimpleNamespace(resume=abs, advance=abs)))
    made = import_media.body(work, spec)
    media = artifact_of(MediaSet, folder, made.files, "generate_media")
    told = {"spec": spec.model_dump(mode="json"), "counts": made.counts, "stats": made.stats}
    write_record(media.model_copy(update=told))


def test_e2e_pictures_of_another_system_and_forced_rows_are_scored_beside_the_pipelines_own(first, world, tmp_path):
    root, out, spec = tmp_path / "root", tmp_path / "out", small_spec()
    shutil.copytree(first[0], root)
    assert spec.queries is not None
    assert spec.media is not None
    assert isinstance(spec.queries.prompts, CobsatPrompts)
    own = MediaReader(record(MediaSet, root, first[1], "generate_media"))
    export_cobsat(str(root), own.artifact.fingerprint, str(out), "other")
    for name in own.names("text_bridge"):  # without loss, so that both are the same pictures
        (path,) = out.glob(f"results/exps/{OTHER}_image/**/{name.rsplit('/', 1)[1]}.jpg")
        path.write_bytes(own.read("text_bridge", name))
    bring(out, root, spec.queries.prompts)
    media = spec.media.but(methods=("aligned",), keep_eos=True, read_back=False)
    forced = Variant(name="forced", aligner=spec.aligner, media=media, queries=spec.queries.but(end_policy="forced"))
    variants = json.dumps([forced.model_dump(mode="json")])
    again = small_run(root, world, "--with", OTHER, variants=variants, run__engine="transformers")

    made = {role for role, state in states(again).items() if state != "Cached"}
    assert made == {f"scores of {OTHER}", "prompts of forced", "forced, seed 0", "render_report"}
    assert again["others"] == {OTHER: again["scores"]["text_bridge"]}
    cards = [record(Scorecard, root, again, role) for role in ("score_cobsat", f"scores of {OTHER}")]
    ours, theirs = (
        {v.name: (v.value, v.thing, v.right) for v in read_verdicts(c) if v.method.endswith("text_bridge")}
        for c in cards
    )
    assert len(ours) == len(own.names("text_bridge")) == 20
    assert ours == theirs
    report = record(Report, root, again, "render_report")
    assert report.parents[f"others/{OTHER}"].fingerprint == cards[1].fingerprint
    assert "variants/forced, seed 0" in report.parents

    asked, stopped = (record(FeatureSet, root, again, role) for role in ("prompts of forced", "benchmark prompts"))
    lengths = [[len(row.token_ids) for row in FeatureReader(each).rows(range(20))] for each in (asked, stopped)]
    assert set(lengths[0]) == {spec.queries.max_tokens}
    assert max(lengths[1]) < spec.queries.max_tokens
    texts = zip(FeatureReader(asked).texts(), FeatureReader(stopped).texts(), strict=True)
    assert all(whole.startswith(answer) and whole != answer for whole, answer in texts)
    drawn = record(MediaSet, root, again, "forced, seed 0", "generate_media")
    assert drawn.parents["queries"].fingerprint == asked.fingerprint


def record(kind: Any, root: Path, result: dict[str, Any], role: str, stage: str = "") -> Any:
    """The artifact of a role in a run, perhaps that of one of its stages."""
    lines = [line for line in result["stages"] if line["role"] == role and stage in ("", line["stage"])]
    found = read_record(Folder.at(str(root)) / lines[0]["stage"] / lines[0]["fingerprint"], kind)
    assert found is not None
    return found
