"""A MediaSet of the small benchmark under a root, with its prompts and a scorecard, as the stages would leave them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from report_artifacts import artifact, stage_folder
from small_benchmark import SMALL

from thinkdiff.schemas.artifact import Model
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.features import FeatureSet, FeatureSpec
from thinkdiff.schemas.media import MediaSet, MediaSpec
from thinkdiff.schemas.scores import ClassifierJudge, Scorecard, ScoreSpec
from thinkdiff.storage.media_files import MediaWriter
from thinkdiff.storage.score_tables import PROMPTS, VERDICTS, AskedPrompt, Verdict, write_rows
from thinkdiff.tasks.cobsat import prompts, true_caption

SIDE = 24


def pixels(seed: str) -> np.ndarray:
    """A smooth picture of its own for every seed, uint8 (SIDE, SIDE, 3)."""
    corners = np.random.default_rng(list(seed.encode())).integers(0, 256, (2, 2, 3), np.uint8)
    return np.asarray(Image.fromarray(corners).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def png(seed: str) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels(seed)).save(sink, "PNG")
    return sink.getvalue()


def asked_rows(spec: CobsatPrompts) -> list[AskedPrompt]:
    return [
        AskedPrompt(
            p.name, p.task, p.family, p.shots, p.held_out, p.target_value, p.target_thing, f"Create {p.name}",
            true_caption(spec, p),
        )
        for p in prompts(spec)
    ]  # fmt: skip


def media_set(root: Path, methods: Sequence[str], spec: CobsatPrompts = SMALL, number: int = 6) -> MediaSet:
    """Every prompt by every method, in two parts."""
    queries = artifact(
        FeatureSet, root, "extract_features", 1000 + number,
        spec=FeatureSpec(vlm=Model(name="vlm"), prompts=spec).model_dump(mode="json"),
    )  # fmt: skip
    folder, rows = stage_folder(root, "generate_media", number), asked_rows(spec)
    files = [write_rows(folder, PROMPTS, AskedPrompt, rows)]
    for method in methods:
        pictures = [(row.name, png(method + row.name)) for row in rows]
        files += MediaWriter(folder).commit(method, 0, pictures[:5])
        files += MediaWriter(folder).commit(method, 1, pictures[5:])
    made = MediaSpec(decoder=Model(name="flux"), t5=Model(name="t5")).model_dump(mode="json")
    counts = {"prompts": len(rows), "pictures": len(rows) * len(methods)}
    return artifact(
        MediaSet, root, "generate_media", number, files, made, {"queries": queries}, counts, {"methods": list(methods)}
    )


def verdict(method: str, row: AskedPrompt, value: str, thing: str) -> Verdict:
    right = value == row.target_value, thing == row.target_thing
    return Verdict(
        method, row.name, row.task, row.family, row.shots, row.held_out, row.target_value, row.target_thing, value,
        thing, *right, all(right), 0.0,
    )  # fmt: skip


def scorecard(root: Path, media: MediaSet, verdicts: list[Verdict], judge: str, number: int) -> Scorecard:
    folder = stage_folder(root, "score_cobsat", number)
    files = [write_rows(folder, VERDICTS, Verdict, verdicts), folder.write("scores.json", json.dumps({}).encode())]
    spec = ScoreSpec(judge=ClassifierJudge(model=Model(name=judge))).model_dump(mode="json")
    return artifact(Scorecard, root, "score_cobsat", number, files, spec, {"media": media})
