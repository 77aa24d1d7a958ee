"""Counting verdicts: Wilson intervals against the textbook, means of tasks, what a picture needs to be right."""

from __future__ import annotations

import io
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from meters import Meter
from store_artifacts import artifact_of
from tiny_diffusion import make_tiny_judge
from tiny_models import random_image

from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.scores import ClassifierJudge, Scorecard, ScoreSpec
from thinkdiff.storage.media_files import MediaWriter
from thinkdiff.storage.root import Folder
from thinkdiff.storage.score_tables import PROMPTS, AskedPrompt, Verdict, read_verdicts, write_rows
from thinkdiff.tasks.judge import Wanted
from thinkdiff.tasks.judge_classifier import ClassifyingJudge
from thinkdiff.tasks.score_cobsat import agreement, count, score_cobsat, wilson
from thinkdiff.tasks.step import Work

LABELS = ("object/car", "object/hat", "color/none", "color/red", "color/blue", "style/old", "style/wireframe")


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: Wilson's score without correction.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_one(right, total, low, high):
    found = wilson(right, total, 0.95)
    assert found == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_nothing_is_everything_and_grows_with_confidence():
    assert wilson(0, 0, 0.95) == (0.0, 1.0)
    assert wilson(20, 20, 0.95)[1] == 1.0
    low, high = wilson(7, 20, 0.9)
    wide_low, wide_high = wilson(7, 20, 0.99)
    assert wide_low < low < 7 / 20 < high < wide_high


def verdict(task: str, shots: int, thing: bool, value: bool, held_out: bool = False) -> Verdict:
    return Verdict(
        "aligned", "n", task, "color", shots, held_out, "red", "car", "", "", value, thing, thing and value, 0.0
    )


def test_headline_is_the_plain_mean_of_the_tasks():
    verdicts = [verdict("Color-I", 2, True, True)] * 3 + [verdict("Color-I", 2, True, False, True)]
    verdicts += [verdict("Color-II", 2, False, True), verdict("Color-II", 2, True, True)]
    verdicts += [verdict("Color-I", 4, False, False)]
    found = count(verdicts, 0.95)
    assert list(found) == ["2", "4"]
    two = found["2"]
    assert two["mean"]["accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert (two["mean"]["right"], two["mean"]["pictures"]) == (4, 6)
    assert two["tasks"]["Color-I"]["accuracy"] == 0.75
    assert (two["tasks"]["Color-I"]["thing"], two["tasks"]["Color-I"]["value"]) == (1.0, 0.75)
    assert two["tasks"]["Color-II"]["thing"] == 0.5
    assert (two["held_out"]["pictures"], two["held_out"]["right"]) == (1, 0)
    assert (two["seen"]["pictures"], two["seen"]["right"]) == (5, 4)
    assert found["4"]["mean"]["accuracy"] == 0.0


def png(picture: np.ndarray) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> ClassifyingJudge:
    return ClassifyingJudge(str(make_tiny_judge(tmp_path_factory.mktemp("models") / "judge", LABELS)))


@pytest.fixture
def media(tmp_path) -> MediaSet:
    """Two methods of 20 random pictures each, in two parts."""
    folder = Folder.at(str(tmp_path / "media"))
    writer, files = MediaWriter(folder), []
    prompts = [
        AskedPrompt(
            f"t/{i}", "Color-I" if i % 2 else "Style-II", "color" if i % 2 else "style", 2 + 2 * (i % 4 > 1), i == 3,
            ("red", "blue")[i % 3 > 0] if i % 2 else ("3d", "old")[i % 3 > 0], ("car", "hat")[i % 5 > 2], "a", "b",
        )
        for i in range(20)
    ]  # fmt: skip
    for start, method in ((0, "aligned"), (100, "true_caption")):
        for part in (1, 0):
            pictures = [(f"t/{i}", png(random_image(start + i))) for i in range(part * 10, part * 10 + 10)]
            files += writer.commit(method, part, pictures)
    files.append(write_rows(folder, PROMPTS, AskedPrompt, prompts))
    made = artifact_of(MediaSet, folder, files, "generate_media")
    return made.model_copy(
        update={"counts": {"prompts": 20, "pictures": 40}, "stats": {"methods": ["aligned", "true_caption"]}}
    )


def work(tmp_path, judge: ClassifyingJudge, batch: int = 7) -> Work:
    run = Execution(device="cpu", threads=1, batch=batch)
    found = Work(Folder.at(str(tmp_path / "scores")), run, SimpleNamespace(check=bool), logging.getLogger("test"))  # pyright: ignore[reportArgumentType]
    object.__setattr__(found, "progress", lambda total, unit: Meter())
    return found


def judge_spec(judge: ClassifyingJudge) -> ScoreSpec:
    return ScoreSpec(judge=ClassifierJudge(model=Model(name=judge.model.config._name_or_path)))


def test_every_picture_is_judged_once_and_right_only_when_both_words_are(tmp_path, media, judge):
    made = score_cobsat.body(work(tmp_path, judge), judge_spec(judge), media)
    card = artifact_of(Scorecard, Folder.at(str(tmp_path / "scores")), made.files, "score_cobsat")
    verdicts = read_verdicts(card)
    assert [(v.method, v.name) for v in verdicts] == [
        (method, f"t/{i}") for method in ("aligned", "true_caption") for i in range(20)
    ]
    for v in verdicts:
        number = int(v.name[2:]) + (100 if v.method == "true_caption" else 0)
        (seen,) = judge.see([png(random_image(number))], [Wanted(v.family, "", "")])
        value, thing = seen.value, seen.thing
        assert (v.thing, v.value) == (thing, value)
        assert v.right_thing == (thing == v.target_thing)
        assert v.right_value == (value == {"3d": "wireframe"}.get(v.target_value, v.target_value))
        assert v.right == (v.right_thing and v.right_value)
    assert made.counts == {"pictures": 40, "right": sum(v.right for v in verdicts)}
    assert 0 < made.counts["right"] < 40
    scores = json.loads(Folder(card.uri).read("scores.json"))
    for method, by_shots in made.stats["scores"].items():
        for shots, accuracy in by_shots.items():
            cells = scores["methods"][method][shots]
            assert cells["mean"]["accuracy"] == accuracy
            assert cells["mean"]["low"] <= accuracy <= cells["mean"]["high"]
    assert sum(scores["methods"]["aligned"][shots]["held_out"]["pictures"] for shots in ("2", "4")) == 1


def test_scores_do_not_depend_on_the_batch(tmp_path, media, judge):
    one, other = (
        score_cobsat.body(work(tmp_path / str(batch), judge, batch), judge_spec(judge), media) for batch in (3, 64)
    )
    assert one.files == other.files


def test_altered_picture_is_refused_before_it_is_judged(tmp_path, media, judge):
    tar = next(entry.path for entry in media.files if entry.path.endswith(".tar"))
    data = bytearray(Folder(media.uri).read(tar))
    data[700] ^= 1
    Folder(media.uri).write(tar, data)
    with pytest.raises(StoreError, match="found other bytes than recorded"):
        score_cobsat.body(work(tmp_path, judge), judge_spec(judge), media)


def test_missing_picture_is_wrong_and_counted(tmp_path, media, judge):
    part = next(entry.path for entry in media.files if entry.path == "aligned/00001.tar")
    kept = tuple(entry for entry in media.files if not entry.path.startswith(part.removesuffix(".tar")))
    spec = judge_spec(judge).but(second=judge_spec(judge).judge)
    made = score_cobsat.body(work(tmp_path, judge), spec, media.model_copy(update={"files": kept}))
    verdicts = read_verdicts(artifact_of(Scorecard, Folder.at(str(tmp_path / "scores")), made.files, "score_cobsat"))
    missing = [v for v in verdicts if v.method == "aligned" and int(v.name[2:]) >= 10]
    assert len(verdicts) == 40
    assert len(missing) == 10
    assert not any(v.thing or v.value or v.right for v in missing)
    assert made.counts["pictures"] == 40
    assert made.stats["no_answer"] == 0  # no judge was asked of what is not there
    assert made.stats["agreement"]["pictures"] == 30


def test_agreement_of_two_judges_is_counted_by_hand():
    def verdicts(*right: bool) -> list[Verdict]:
        return [verdict("Color-I", 2, one, True)._replace(name=str(i)) for i, one in enumerate(right)]

    yes, no = True, False
    found = agreement(verdicts(yes, yes, yes, no, no, no, no, no), verdicts(yes, yes, no, yes, no, no, no, no))
    # 6 of 8 agree; 3/8 are right by each, so by chance (9 + 25) / 64 would; kappa (3/4 - 17/32) / (15/32) = 7/15
    assert found["right"] == 0.75
    assert found["kappa"] == pytest.approx(7 / 15, abs=1e-6)
    assert agreement([], []) == {"pictures": 0}


def test_second_judge_is_asked_of_the_same_pictures(tmp_path, media, judge):
    spec = judge_spec(judge).but(second=judge_spec(judge).judge)
    made = score_cobsat.body(work(tmp_path, judge), spec, media)
    assert made.stats["agreement"] == {"pictures": 40, "right": 1.0, "kappa": 1.0, "thing": 1.0, "value": 1.0}
    assert made.stats["second_scores"] == made.stats["scores"]
    entries = {entry.path: entry.sha256 for entry in made.files}
    assert entries["second_verdicts.parquet"] == entries["verdicts.parquet"]
