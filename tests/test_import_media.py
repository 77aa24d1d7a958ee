"""Pictures of another system: taken from the benchmark's layout, decoded safely, missing ones counted, told apart."""

from __future__ import annotations

import io
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hostile_images import pictures as hostile_pictures
from meters import Killed, Meter
from PIL import Image
from s3_server import place, s3  # noqa: F401
from small_benchmark import SMALL
from small_media import media_set, png
from small_run import thinkdiff
from store_artifacts import artifact_of

from thinkdiff.schemas.artifact import Execution, content_digest, fingerprint
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.media import GivenMedia, MediaSet
from thinkdiff.storage.media_files import MediaReader
from thinkdiff.storage.records import write_record
from thinkdiff.storage.root import Folder
from thinkdiff.storage.score_tables import read_prompts
from thinkdiff.tasks import import_media as stage
from thinkdiff.tasks.cobsat import prompts
from thinkdiff.tasks.export_cobsat import export_cobsat
from thinkdiff.tasks.given_pictures import given_media, imported
from thinkdiff.tasks.step import Made, Work

MODEL = "seed-llama"


def places(spec: CobsatPrompts = SMALL) -> dict[str, str]:
    """By prompt the path of its files without extension, put together from the layout's description."""
    numbers = {"Style-I": 1, "Style-II": 2, "Background-I": 3, "Background-II": 4}
    return {
        p.name: f"results/exps/{MODEL}_image/shot_{p.shots}/{spec.prompt_type}/task_{numbers[p.task]}/"
        + p.name.rsplit("/", 1)[1]
        for p in prompts(spec)
    }


def give(folder: Folder, without: int = 0) -> dict[str, str]:
    """Writes a picture and a description for all prompts but the first few."""
    found = places()
    for name, path in list(found.items())[without:]:
        sink = io.BytesIO()
        Image.open(io.BytesIO(png(name))).save(sink, "JPEG", quality=95)
        folder.write(f"{path}.jpg", sink.getvalue())
        folder.write(f"{path}.json", json.dumps({"description": f"I see {name}", "time": 3.5}).encode())
    return found


def take(source: Folder, spec: GivenMedia, folder: Path, die_at: int | None = None) -> tuple[Made, MediaSet, Meter]:
    """The stage's body, outside of any flow."""
    run, target, meter = Execution(given=source.uri), Folder.at(str(folder)), Meter(die_at)
    work = Work(target, run, SimpleNamespace(), logging.getLogger("test"))  # pyright: ignore[reportArgumentType]
    object.__setattr__(work, "progress", lambda total, unit: meter)
    made = stage.import_media.body(work, spec)
    media = artifact_of(MediaSet, target, made.files, "generate_media")
    return made, media.model_copy(update={"counts": made.counts, "stats": made.stats}), meter


def shown(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_every_picture_is_taken_pixel_by_pixel_with_what_was_said_of_it(tmp_path: Path, place: Folder):  # noqa: F811
    paths = give(place)
    made, media, _ = take(place, given_media(place.uri, MODEL, SMALL), tmp_path / "media")
    assert made.counts == {"prompts": 24, "pictures": 24, "missing": 0}
    assert made.stats == {"methods": [MODEL]}
    reader = MediaReader(media)
    assert reader.names(MODEL) == list(paths)
    for name, path in paths.items():
        data = reader.read(MODEL, name)
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
        assert (shown(data) == shown(place.read(f"{path}.jpg"))).all()
    rows = {row.name: row for row in read_prompts(media)}
    assert {name: row.answer for name, row in rows.items()} == {name: f"I see {name}" for name in paths}
    for prompt in prompts(SMALL):
        row = rows[prompt.name]
        assert (row.task, row.shots, row.target_value, row.target_thing) == (
            prompt.task, prompt.shots, prompt.target_value, prompt.target_thing,
        )  # fmt: skip


def test_missing_pictures_are_counted_and_their_prompts_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = Folder.at(str(tmp_path / "given"))
    paths = list(give(source, without=5))
    made, media, _ = take(source, given_media(source.uri, MODEL, SMALL), tmp_path / "media")
    assert made.counts == {"prompts": 24, "pictures": 19, "missing": 5}
    assert MediaReader(media).names(MODEL) == paths[5:]
    assert [row.name for row in read_prompts(media)] == paths
    assert [row.answer for row in read_prompts(media)][:5] == [""] * 5
    assert f"found no picture for 5 of 24 prompts ({paths[0]} and so on); they count as wrong" in caplog.text


def test_spec_tells_bytes_and_not_places(tmp_path: Path):
    one, other = Folder.at(str(tmp_path / "one")), Folder.at(str(tmp_path / "other"))
    path = next(iter(give(one).values()))
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    other.write("results/exps/another_image/shot_2/default/task_1/x.jpg", b"of another model")
    specs = [given_media(folder.uri, MODEL, SMALL) for folder in (one, other)]
    assert fingerprint(specs[0], {}) == fingerprint(specs[1], {})
    elsewhere = SMALL.model_copy(update={"images": "elsewhere", "instruction": "Draw."})
    assert given_media(one.uri, MODEL, elsewhere) == specs[0]
    data = bytearray(other.read(f"{path}.jpg"))
    data[-1] ^= 1
    other.write(f"{path}.jpg", data)
    found = [given_media(other.uri, MODEL, SMALL)]
    other.delete(f"{path}.jpg")
    found.append(given_media(other.uri, MODEL, SMALL))
    one.write(f"{path}.json", b'{"description": "other words"}')
    found.append(given_media(one.uri, MODEL, SMALL))
    assert len({fingerprint(spec, {}) for spec in (specs[0], *found)}) == 4


def test_pictures_that_have_changed_since_are_refused(tmp_path: Path):
    source = Folder.at(str(tmp_path / "given"))
    paths = give(source)
    spec = given_media(source.uri, MODEL, SMALL)
    source.write(f"{paths[next(iter(paths))]}.jpg", source.read(f"{list(paths.values())[1]}.jpg"))
    with pytest.raises(InputError, match=f"expected {spec.digest[:12]}… as the spec says. They have changed"):
        take(source, spec, tmp_path / "media")
    assert not (tmp_path / "media").exists()


GOOD = {name: data for name, (data, reason) in hostile_pictures().items() if not reason and name != "60000-wide"}


def test_pictures_of_every_kind_become_rgb(tmp_path: Path):
    source = Folder.at(str(tmp_path / "given"))
    paths = give(source)
    kinds = dict(zip(list(paths)[: len(GOOD)], GOOD, strict=True))
    for name, kind in kinds.items():
        source.write(f"{paths[name]}.jpg", GOOD[kind])
    _, media, _ = take(source, given_media(source.uri, MODEL, SMALL), tmp_path / "media")
    for name, kind in kinds.items():
        with Image.open(io.BytesIO(MediaReader(media).read(MODEL, name))) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 48)), kind


def test_files_that_are_no_pictures_are_told_together(tmp_path: Path):
    source = Folder.at(str(tmp_path / "given"))
    paths = list(give(source).values())
    bad = {name: data for name, (data, reason) in hostile_pictures().items() if name in ("html", "bomb-pixels", "apng")}
    for path, data in zip(paths, bad.values(), strict=False):
        source.write(f"{path}.jpg", data)
    with pytest.raises(InputError) as caught:
        take(source, given_media(source.uri, MODEL, SMALL), tmp_path / "media")
    said = str(caught.value)
    assert said.startswith(f"{source.uri}: found 3 files that are no picture ({paths[0]}.jpg: not a JPEG, PNG")
    assert "30000x30000 pixels, more than 50000000" in said
    assert said.endswith("make these again, or take them away.")


SAID: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", ""),
    "no JSON": (b"{", ""),
    "a list": (b"[1]", ""),
    "no text": (b'{"description": {"a": 1}}', ""),
    "none": (b'{"description": null}', ""),
    "deep": (b"[" * 100_000, ""),
    "long number": (b'{"a": ' + b"1" * 5000 + b', "description": "x"}', ""),
    "no UTF-8": (b'{"description": "\xff"}', ""),
    "control": (b'{"description": "a\\u001b[2J\\nb\\u0000"}', "a\ufffd[2J\nb\ufffd"),
    "surrogate": (b'{"description": "a\\ud800"}', "a\ufffd"),
    "long": (json.dumps({"description": "ä" * 20_000}).encode(), "ä" * 10_000),
}


def test_descriptions_are_a_strangers_words(tmp_path: Path):
    source = Folder.at(str(tmp_path / "given"))
    paths = give(source)
    for path, (data, _) in zip(paths.values(), SAID.values(), strict=False):
        source.write(f"{path}.json", data)
    _, media, _ = take(source, given_media(source.uri, MODEL, SMALL), tmp_path / "media")
    answers = [row.answer for row in read_prompts(media)]
    assert answers[: len(SAID)] == [text for _, text in SAID.values()]
    assert answers[len(SAID)] == f"I see {list(paths)[len(SAID)]}"


def test_killed_import_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage, "PART", 5)
    source = Folder.at(str(tmp_path / "given"))
    give(source, without=1)
    spec = given_media(source.uri, MODEL, SMALL)
    calm, _, _ = take(source, spec, tmp_path / "calm")
    with pytest.raises(Killed):
        take(source, spec, tmp_path / "rough", die_at=10)
    rough, _, meter = take(source, spec, tmp_path / "rough")
    assert (meter.resumed, meter.done) == (10, 13)
    assert content_digest(rough.files) == content_digest(calm.files)


def test_what_is_not_there_is_told_with_what_is(tmp_path: Path):
    source = Folder.at(str(tmp_path))
    give(source)
    says = r"found no picture of 'emu' for any of 24 prompts \(default, shots 2; models there: seed-llama\)"
    with pytest.raises(InputError, match=says):
        given_media(source.uri, "emu", SMALL)
    exact = SMALL.model_copy(update={"prompt_type": "exact"})
    with pytest.raises(InputError, match="found no picture of 'seed-llama'"):
        given_media(source.uri, MODEL, exact)
    with pytest.raises(InputError, match="models there: none"):
        given_media(str(tmp_path / "nowhere"), MODEL, SMALL)
    with pytest.raises(SpecError, match=r"name: found '\.\./x'"):
        given_media(source.uri, "../x", SMALL)
    with pytest.raises(SpecError, match="split: found ft_test"):
        given_media(source.uri, MODEL, SMALL.model_copy(update={"split": "ft_test", "shots": (1,)}))
    spec = given_media(source.uri, MODEL, SMALL)
    work: Any = SimpleNamespace(run=Execution())
    with pytest.raises(SpecError, match=r"run\.given: found nothing"):
        stage.import_media.body(work, spec)


def test_what_we_export_can_be_imported_and_exported_again(tmp_path: Path):
    media = media_set(tmp_path / "root", ("aligned",))
    export_cobsat(str(tmp_path / "root"), media.fingerprint, str(tmp_path / "out"), MODEL)
    made, _, _ = take(
        Folder.at(str(tmp_path / "out")), given_media(str(tmp_path / "out"), MODEL, SMALL), tmp_path / "media"
    )
    assert made.counts == {"prompts": 24, "pictures": 24, "missing": 0}


def test_imported_pictures_are_found_by_name_or_fingerprint_when_they_are_of_the_same_prompts(tmp_path: Path):
    source, root = Folder.at(str(tmp_path / "given")), str(tmp_path / "root")
    path = next(iter(give(source).values()))
    made: list[MediaSet] = []

    def bring(asked: CobsatPrompts) -> None:
        spec = given_media(source.uri, MODEL, asked)
        name = fingerprint(spec, {})
        _, media, _ = take(source, spec, tmp_path / "root/generate_media" / name)
        made.append(media.model_copy(update={"spec": spec.model_dump(mode="json")}))
        write_record(made[-1])

    with pytest.raises(
        SpecError, match=rf"others: found 0 sets of pictures '{MODEL}' .* \(none\), expected exactly one"
    ):
        imported(root, MODEL, SMALL)
    bring(SMALL)
    bring(SMALL.model_copy(update={"per_task": 3}))
    media_set(tmp_path / "root", ("aligned",))  # our own are none of another system
    asked = SMALL.model_copy(update={"images": "elsewhere", "instruction": "Draw."})
    assert imported(root, MODEL, asked) == imported(root, made[0].fingerprint[:6], asked) == made[0]
    says = f"{MODEL} {made[1].fingerprint[:12]} of other prompts"
    for reference in ("emu", made[1].fingerprint[:6]):
        with pytest.raises(SpecError, match=says):
            imported(root, reference, SMALL)
    source.delete(f"{path}.jpg")
    bring(SMALL)
    with pytest.raises(SpecError, match="found 2 sets of pictures") as caught:
        imported(root, MODEL, SMALL)
    assert all(f"{MODEL} {media.fingerprint[:12]}" in str(caught.value) for media in made)
    assert imported(root, made[2].fingerprint[:6], SMALL) == made[2]


def test_command_imports_once_and_the_result_can_be_exported(tmp_path: Path):
    from thinkdiff.flows.recipes import recipe

    queries = recipe("mini").queries
    assert queries is not None
    assert isinstance(queries.prompts, CobsatPrompts)
    source, root = Folder.at(str(tmp_path / "given")), str(tmp_path / "root")
    tasks = list(dict.fromkeys(p.task for p in prompts(queries.prompts)))
    for p in prompts(queries.prompts):
        if p.shots == 2 and p.index:
            stem = (
                f"results/exps/{MODEL}_image/shot_2/default/task_{tasks.index(p.task) + 1}/{p.name.rsplit('/', 1)[1]}"
            )
            source.write(f"{stem}.jpg", png(p.name))
    command = [
        "import-media",
        source.uri,
        "--name",
        MODEL,
        "--root",
        root,
        "--recipe",
        "mini",
        "--shots",
        "2",
        "--json",
    ]
    said = []
    for _ in range(2):
        done = thinkdiff(*command)
        assert done.returncode == 0, done.stderr[-3000:]
        said.append(json.loads(done.stdout))
    assert [result["stages"][0]["state"] for result in said] == ["Completed", "Cached"]
    assert said[0]["counts"] == said[1]["counts"] == {"prompts": 100, "pictures": 90, "missing": 10}
    fingerprint = said[0]["stages"][0]["fingerprint"]
    done = thinkdiff("export-cobsat", fingerprint, str(tmp_path / "out"), "--root", root)
    assert done.stdout.startswith("100 samples written, 0 there already, 10 without a picture, 0 evaluations"), (
        done.stderr
    )
    pictures = {name for name in source.sizes() if name.endswith(".jpg")}
    again = Folder.at(str(tmp_path / "out")).sizes()
    assert {name for name in again if name.endswith(".jpg")} == pictures
    assert len([name for name in again if name.endswith(".json")]) == 100
    done = thinkdiff("import-media", source.uri, "--name", "nobody", "--root", root, "--recipe", "mini")
    assert (done.returncode, done.stdout) == (2, "")
    assert "models there: seed-llama" in done.stderr
