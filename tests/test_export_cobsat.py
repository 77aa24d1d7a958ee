"""Results as the benchmark's code keeps them, walked by a reader that knows the layout's description alone."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from s3_server import place, s3  # noqa: F401
from small_benchmark import SMALL
from small_media import asked_rows, media_set, pixels, scorecard, verdict
from small_run import thinkdiff

from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import InputError, SpecError, StoreError
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.export_cobsat import Exported, export_cobsat

# The tasks of the small benchmark by the number of their folder: x and theta, as in the benchmark's own table.
TASKS = {
    1: ("style", ("lego", "wireframe", "old", "icon"), ("car", "cup", "hat", "bag")),
    2: ("style", ("car", "cup", "hat", "bag"), ("lego", "3d", "old", "icon")),
    3: ("background", ("amusement park", "cave", "gym"), ("cat", "cow", "pig", "dog")),
    4: ("background", ("cat", "cow", "pig", "dog"), ("park", "cave", "gym")),
}
RAW = {"wireframe": "3d", "amusement park": "park"}


def walk(
    folder: Folder, model: str, prompt_type: str = "default", shots: int = 2
) -> dict[str, tuple[dict, bytes | None]]:
    """Every sample of a model, by the path of its picture: what its JSON says, and the picture.

    Names are not looked up but drawn anew, as the benchmark's loader does: one generator, x and theta in turn.
    """
    found: dict[str, tuple[dict, bytes | None]] = {}
    for task, (_, x_words, theta_words) in TASKS.items():
        rng = random.Random(123)
        x, theta = list(range(len(x_words))), list(range(len(theta_words)))
        for i in range(6):
            rng.shuffle(x)
            rng.shuffle(theta)
            name = "_".join(
                [str(i), theta_words[theta[(shots + 1) % len(theta)]], *(x_words[j] for j in x[: shots + 1])]
            )
            path = f"results/exps/{model}_image/shot_{shots}/{prompt_type}/task_{task}/{name}"
            picture = folder.read(f"{path}.jpg") if folder.exists(f"{path}.jpg") else None
            found[f"{path}.jpg"] = json.loads(folder.read(f"{path}.json")), picture
    listed = {name for name in folder.sizes(f"results/exps/{model}_image") if name.endswith(".jpg")}
    assert listed == {path for path, (_, picture) in found.items() if picture}
    return found


def summary(folder: Folder, model: str, judge: str, task: int) -> list[dict[str, str]]:
    """The lines of an evaluation."""
    path = f"results/evals/{model}_image/{judge}_eval/shot_2/default/task_{task}_summary.csv"
    return list(csv.DictReader(io.StringIO(folder.read(path).decode(), newline="")))


def test_results_are_found_by_the_benchmarks_names(tmp_path: Path, place: Folder):  # noqa: F811
    media = media_set(tmp_path, ("aligned", "true_caption"))
    root, target = str(tmp_path), place.uri
    assert export_cobsat(root, media.fingerprint, target, "our-model") == Exported(48, 0, 0, 0)
    rows = {row.name.rsplit("/", 1)[1]: row for row in asked_rows(SMALL)}
    for method in ("aligned", "true_caption"):
        samples = walk(place, f"our-model-{method}")
        assert len(samples) == 4 * 6
        for path, (about, jpeg) in samples.items():
            task, name = int(path.split("/task_")[1].split("/")[0]), path.rsplit("/", 1)[1].removesuffix(".jpg")
            _, latent, *words = name.split("_")
            assert about["description"] == f"Create {rows[name].name}"
            assert (about["time"], about["text_inputs"]) == (0, [f"{word}: " for word in words])
            pairs = [(RAW.get(word, word), latent) for word in words[:2]]
            family = TASKS[task][0]
            assert about["image_inputs"] == [
                f"datasets/{family}_{theta}/{x}_{theta}.jpg" if task % 2 else f"datasets/{family}_{x}/{theta}_{x}.jpg"
                for x, theta in pairs
            ]
            assert jpeg is not None
            with Image.open(io.BytesIO(jpeg)) as picture:
                assert (picture.format, picture.mode) == ("JPEG", "RGB")
                shown = np.asarray(picture).astype(int)
            assert np.abs(shown - pixels(method + rows[name].name)).mean() < 3
    before = {name: place.read(name) for name in place.sizes()}
    assert export_cobsat(root, media.fingerprint, target, "our-model") == Exported(0, 48, 0, 0)
    assert {name: place.read(name) for name in place.sizes()} == before


@pytest.mark.parametrize("prompt_type", ["misleading", "exact", "caption"])
def test_other_prompt_types_have_folders_and_words_of_their_own(tmp_path: Path, prompt_type: str):
    spec = CobsatPrompts.model_validate(SMALL.model_dump() | {"prompt_type": prompt_type})
    media = media_set(tmp_path, ("aligned",), spec)
    export_cobsat(str(tmp_path), media.fingerprint, str(tmp_path / "out"))
    samples = walk(Folder.at(str(tmp_path / "out")), "thinkdiff", prompt_type)
    for path, (about, _) in samples.items():
        _, latent, *words = path.rsplit("/", 1)[1].removesuffix(".jpg").split("_")
        shown = {"3d": "wireframe", "park": "amusement park"}.get(latent, latent)
        if prompt_type == "exact":
            assert about["text_inputs"] == [f"{word} {shown}: " for word in words]
        elif prompt_type == "caption":
            assert about["text_inputs"] == [f"{word}: " for word in words]
        else:
            assert all(text.startswith(f"{word} ") for text, word in zip(about["text_inputs"], words, strict=True))
            assert about["text_inputs"] != [f"{word} {shown}: " for word in words]


def test_killed_export_goes_on_and_mends_what_a_copy_cut(tmp_path: Path):
    media, target = media_set(tmp_path, ("aligned",)), tmp_path / "out"
    export_cobsat(str(tmp_path), media.fingerprint, str(target))
    calm = {path: path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()}
    paths = sorted(calm)
    pictures, texts = ([path for path in paths if path.suffix == kind] for kind in (".jpg", ".json"))
    texts[0].unlink()  # killed between the two files
    pictures[1].write_bytes(calm[pictures[1]][:100])
    texts[2].write_bytes(calm[texts[2]][:30])
    pictures[3].unlink()
    assert export_cobsat(str(tmp_path), media.fingerprint, str(target)) == Exported(4, 20, 0, 0)
    assert {path: path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()} == calm


def test_results_of_other_pictures_are_not_written_over(tmp_path: Path):
    media, target = media_set(tmp_path, ("aligned",)), str(tmp_path / "out")
    other = media_set(tmp_path, ("text_bridge",), number=9)
    export_cobsat(str(tmp_path), media.fingerprint, target)
    with pytest.raises(InputError, match="found the result of other pictures, expected none or this set's own"):
        export_cobsat(str(tmp_path), other.fingerprint, target)
    assert export_cobsat(str(tmp_path), other.fingerprint, target, "other").written == 24
    foreign = next((tmp_path / "out").rglob("shot_2/default/task_1/*.json"))
    foreign.write_text(json.dumps({"description": "of another program"}))
    with pytest.raises(InputError, match="found the result of other pictures"):
        export_cobsat(str(tmp_path), media.fingerprint, target)


def test_evaluations_are_the_benchmarks_tables(tmp_path: Path):
    media, rows = media_set(tmp_path, ("aligned",)), asked_rows(SMALL)
    verdicts = []
    for number, row in enumerate(rows):
        value = row.target_value if number % 2 else "none"
        thing = row.target_thing if number % 3 else "car" if row.target_thing != "car" else "cup"
        verdicts.append(verdict("aligned", row, value, thing))
    scorecard(tmp_path, media, verdicts, "liuhaotian/llava-v1.5-13b", 7)
    scorecard(tmp_path, media, verdicts, "elsewhere/llava-v1.5-13b", 8)
    scorecard(tmp_path, media_set(tmp_path, ("aligned",), number=9), verdicts, "of-another-set", 10)
    done = export_cobsat(str(tmp_path), media.fingerprint, str(tmp_path / "out"), "m")
    assert done == Exported(24, 0, 0, 8)
    folder = Folder.at(str(tmp_path / "out"))
    assert folder.sizes("results/evals/m_image").keys() == {
        f"results/evals/m_image/{judge}_eval/shot_2/default/task_{task}_summary.csv"
        for judge in ("llava-v1.5-13b", "llava-v1.5-13b-00000000") for task in (1, 2, 3, 4)
    }  # fmt: skip
    paths = list(walk(folder, "m"))
    for task, (_, x_words, theta_words) in TASKS.items():
        *lines, last = summary(folder, "m", "llava-v1.5-13b", task)
        of_task = [v for v, path in zip(verdicts, paths, strict=True) if f"/task_{task}/" in path]
        assert [line["file_path"] for line in lines] == [path for path in paths if f"/task_{task}/" in path]
        values, things = (x_words, theta_words) if task % 2 else (theta_words, x_words)
        values = [RAW.get(word, word) for word in values]
        for line, v in zip(lines, of_task, strict=True):
            assert (line["ground_truth_detail"], line["ground_truth_obj"]) == (v.target_value, v.target_thing)
            assert int(line["true_label_detail"]) == values.index(v.target_value) + 1
            assert int(line["true_label_obj"]) == list(things).index(v.target_thing) + 1
            assert int(line["answer_detail"]) == (values.index(v.value) + 1 if v.value != "none" else -1)
            assert (line["check_detail"], line["check_obj"]) == (str(v.right_value), str(v.right_thing))
            assert line["correct"] == str(v.right_value and v.right_thing)
            written = "detail" if task % 2 else "obj"
            assert line["check_textual"] == line[f"check_{written}"]
            assert line["check_visual"] == line[f"check_{'obj' if task % 2 else 'detail'}"]
        assert (last["file_path"], last["prompt_detail"]) == ("SUMMARY", "Valid Count: 6")
        for name in ("check_detail", "check_obj", "check_textual", "check_visual", "correct"):
            assert int(last[name]) == sum(line[name] == "True" for line in lines)
    assert 0 < sum(v.right for v in verdicts) < len(verdicts)


def test_what_cannot_be_exported_is_refused(tmp_path: Path):
    media, target = media_set(tmp_path, ("aligned",)), str(tmp_path / "out")
    root, queries = str(tmp_path), media.parents["queries"]
    for name in ("../up", "a/b", " ", ".hidden", "a" * 101):
        with pytest.raises(SpecError, match="name: found"):
            export_cobsat(root, media.fingerprint, target, name)
    with pytest.raises(SpecError, match="found 2 under"):
        export_cobsat(root, media.fingerprint[:4], target)
    with pytest.raises(SpecError, match="found one of extract_features, expected one of generate_media"):
        export_cobsat(root, queries.fingerprint, target)
    tuned = CobsatPrompts.model_validate(SMALL.model_dump() | {"split": "ft_test", "shots": (1,)})
    ft = media_set(tmp_path, ("aligned",), tuned, number=9)
    with pytest.raises(SpecError, match="split: found ft_test, expected default"):
        export_cobsat(root, ft.fingerprint, target)
    shutil.rmtree(tmp_path / "extract_features" / queries.fingerprint)
    with pytest.raises(StoreError, match=r"found its prompts extract_features/.* missing"):
        export_cobsat(root, media.fingerprint, target)
    assert not Path(target).exists()


def test_command_exports_and_says_how_much(tmp_path: Path):
    media = media_set(tmp_path, ("aligned",))
    scorecard(tmp_path, media, [verdict("aligned", row, "x", "y") for row in asked_rows(SMALL)], "judge", 7)
    done = thinkdiff("export-cobsat", media.digest[:12], str(tmp_path / "out"), "--root", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout == f"24 samples written, 0 there already, 0 without a picture, 4 evaluations: {tmp_path / 'out'}\n"
    )
    done = thinkdiff("export-cobsat", "f00", str(tmp_path / "out"), "--root", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
