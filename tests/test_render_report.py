"""The report: what it says equals what was scored, strangers' text stays text, nothing is loaded from outside."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import NO_CHROMIUM, Browser
from PIL import Image
from report_artifacts import ASKED, HOSTILE, KEYS, METHODS, Parsed, artifact, build, png, stage_folder

from thinkdiff.schemas.aligner import AlignerCheckpoint, AlignerSpec
from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.captions import CaptionSpec, Collection
from thinkdiff.schemas.features import STATISTICS
from thinkdiff.schemas.report import ReportSpec
from thinkdiff.storage.lease import Lease
from thinkdiff.storage.media_files import MediaReader
from thinkdiff.storage.score_tables import read_verdicts
from thinkdiff.tasks.cobsat import prompts
from thinkdiff.tasks.page_pictures import inline, pictured
from thinkdiff.tasks.render_report import render_report
from thinkdiff.tasks.report_data import data
from thinkdiff.tasks.report_examples import choose
from thinkdiff.tasks.report_markup import code
from thinkdiff.tasks.report_numbers import T_975, Condition, differences, mean_interval, reading
from thinkdiff.tasks.step import Made, Work

SECTIONS = ["accuracy", "pictures", "tasks", "failures", "training", "data", "features", "ablations", "provenance"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(root, the stage's parents by role, variants)."""
    root = tmp_path_factory.mktemp("report")
    return (root, *build(root))


def made(root: Path, parents, variants, number: int = 0, others=None, **changes) -> Made:
    """What the stage's own body leaves, outside of Prefect."""
    folder = stage_folder(root, "render_report", number)
    work = Work(folder, Execution(root=str(root)), Lease(folder, 30), logging.getLogger("test"))
    return render_report.body(
        work, ReportSpec(title="A <i>title</i>", **changes), **parents, variants=variants, others=others or {}
    )


def render(built, variants, number: int = 0, **changes) -> str:
    """The page of a report."""
    root, parents, _ = built
    found = made(root, parents, variants, number, **changes)
    assert [entry.path for entry in found.files] == ["report.html", "tables.md", "tables.tex"]
    return stage_folder(root, "render_report", number).read("report.html").decode()


@pytest.fixture(scope="module")
def html(built):
    return render(built, built[2])


@pytest.fixture(scope="module")
def parsed(html):
    return Parsed(html)


def stored_scores(built) -> dict:
    return json.loads(Path(built[1]["scores"].path("scores.json")).read_text())["methods"]


def shown(share: float) -> str:
    return f"{100 * share:.1f}"


def test_report_has_its_sections_in_order_and_the_title_as_text(parsed):
    assert [attrs["id"] for tag, attrs in parsed.tags if tag == "section"] == SECTIONS
    assert "A <i>title</i>" in parsed.text
    assert "200 steps" in parsed.text
    assert "250 captioned pictures" in parsed.text


def test_report_task_tables_equal_the_scores(built, parsed):
    for shots in (2, 4):
        table = parsed.table(f"{shots} shots")
        for place, method in enumerate(METHODS):
            cells = stored_scores(built)[method][str(shots)]
            expected = {task: cell["accuracy"] for task, cell in cells["tasks"].items()} | {
                "Mean": cells["mean"]["accuracy"]
            }
            assert {task: row[place] for task, row in table.items()} == {t: shown(a) for t, a in expected.items()}


def test_report_headline_and_held_out_pairs_equal_the_scores(built, parsed):
    table = parsed.table("2 shots, seen")
    for name, method in zip(("Aligned", "Text bridge", "True caption"), METHODS, strict=True):
        cells = [stored_scores(built)[method][shots][group] for shots in ("2", "4") for group in ("seen", "held_out")]
        assert table[name] == [
            f"{shown(c['accuracy'])}% {shown(c['low'])} – {shown(c['high'])} n = {c['pictures']}" for c in cells
        ]
        mean = stored_scores(built)[method]["4"]["mean"]
        assert f"{shown(mean['accuracy'])}% {shown(mean['low'])} – {shown(mean['high'])}" in parsed.text


def test_report_pictures_and_verdicts_are_those_of_the_artifacts(built, html, parsed):
    media, scores = built[1]["media"], built[1]["scores"]
    verdicts = {(v.method, v.name): v.right for v in read_verdicts(scores)}
    names = [attrs["data-prompt"] for _, attrs in parsed.tags if "data-prompt" in attrs]
    assert len(names) == 20 + 12  # and the failures
    assert len({name.rsplit("/", 1)[0] for name in names}) == 20  # ten tasks at 2 and 4 shots
    for name, card in zip(names, html.split("<article")[1 : len(names) + 1], strict=True):
        answers = card.split('class="answers"')[1]
        marks = [part.split('"')[0] == "right" for part in answers.split('<figure class="')[1:]]
        assert marks == [verdicts[method, name] for method in METHODS]
        drawn = [base64.b64decode(part.split('"')[0]) for part in answers.split("data:image/png;base64,")[1:]]
        assert drawn == [MediaReader(media).read(method, str(name)) for method in METHODS]


def test_report_shows_the_first_training_pictures_with_the_vlms_words(built, html, parsed):
    assert [attrs["data-row"] for _, attrs in parsed.tags if "data-row" in attrs] == list(KEYS)
    section = html.split('<section id="features">')[1].split("</section>")[0]
    for place, (key, article) in enumerate(zip(KEYS, section.split("<article")[1:], strict=True)):
        drawn = [base64.b64decode(part.split('"')[0]) for part in article.split("data:image/png;base64,")[1:]]
        assert drawn == ([] if key == KEYS[-1] else [png(key)])
        assert f"ask {place}?" in article
        assert f"answer {place} &lt;/p&gt;" in article
    page = Parsed(render(built, {}, 6, answers=3))
    assert [attrs["data-row"] for _, attrs in page.tags if "data-row" in attrs] == list(KEYS[:3])


def test_report_shows_the_statistics_of_the_features(built, parsed):
    assert "10 rows of 2.0 tokens; the VLM ended 100.0% of them itself" in parsed.text
    assert parsed.table("Median")["Generated tokens"] == ["2"] * 6
    label = next(attrs["aria-label"] for _, attrs in parsed.tags if "channels" in (attrs.get("aria-label") or ""))
    assert label == "Root mean square of 5 channels; outliers: 3"
    assert "1 of 5 exceed 6 times that: 3 (62)" in parsed.text
    root, parents, _ = built
    files = tuple(entry for entry in parents["features"].files if entry.path != STATISTICS)
    older = parents["features"].model_copy(update={"files": files})
    page = Parsed(render((root, parents | {"features": older}, {}), {}, 7))
    assert "made before statistics were kept" in page.text


def test_report_shows_a_strangers_text_as_text_and_runs_nothing(html, parsed):
    assert HOSTILE in " ".join(parsed.words)
    assert "<b>heart" in parsed.text
    assert "<i>none" in parsed.text
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "i title"}
    assert not [key for _, attrs in parsed.tags for key in attrs if key.startswith("on")]
    assert "<script" not in html


def test_report_refers_to_nothing_outside(html, parsed):
    policy = [attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    targets = [attrs[key] for _, attrs in parsed.tags for key in ("src", "href", "srcset", "action") if attrs.get(key)]
    assert targets
    assert all(target.startswith(("data:image/", "#")) for target in targets)
    style = html.split("<style>")[1].split("</style>")[0]
    assert not any(word in style for word in ("url(", "@import", "http"))
    assert not any("url(" in (attrs.get("style") or "") for _, attrs in parsed.tags)


def test_report_curves_end_where_training_ended(parsed):
    label = next(attrs["aria-label"] for _, attrs in parsed.tags if attrs.get("class") == "plot")
    assert "200 steps" in label
    assert "validation ends at 0.875" in label


def test_report_says_what_became_of_the_rows_and_pictures(parsed):
    assert parsed.table("Collection")["cc3m"] == ["4,321", "300"]
    assert parsed.table("Left out because") == {"cc3m: not UTF-8": ["21"], "too few words": ["17"], "HTTP <404>": ["1"]}
    assert "299 pictures fetched, 1 not to be had" in parsed.text
    assert "Words in a caption" in parsed.text


@pytest.mark.parametrize(("weights", "says"), [((1, 1), "uniformly"), ((2, 2), "uniformly"), ((1, 2.5), "by weight")])
def test_report_says_how_captions_were_drawn(built, weights, says):
    collections = tuple(
        Collection(name=f"c{i}", format="cc3m-tsv", url="x.tsv", weight=weight) for i, weight in enumerate(weights)
    )
    spec = CaptionSpec(collections=collections, n=300).model_dump(mode="json")
    captions = built[1]["captions"].model_copy(update={"spec": spec})
    assert (
        f"300 captions drawn {says} from 4,321 rows, each URL once" in Parsed(data(captions, built[1]["images"])).text
    )


def test_report_provenance_names_every_ancestor(built, parsed):
    table = parsed.table("Artifact")
    for ancestor in (parent for role, parent in built[1].items() if role != "trained"):
        row = next(cells for name, cells in table.items() if name.endswith(ancestor.stage))
        assert row[2:5] == ["1.5 s", f"host-of-{ancestor.stage}", "c" * 10]
    assert "queries extract_features" in " ".join(" ".join(table).split())
    assert "2026-01-02 03:04:05" in parsed.text


def test_report_without_ablations_says_how_to_run_them(built):
    page = Parsed(render(built, {}, 1))
    assert "thinkdiff run ablations" in page.text
    assert "What each change costs" not in page.text
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == SECTIONS


def test_report_ablations_are_means_over_seeds_with_students_interval(built, parsed):
    cards = built[2]
    for name in ("aligned", "no masking", "no masking, less robust decoder"):
        values = [cards[f"{name}, seed {seed}"].stats["scores"]["aligned"]["2"] for seed in range(5)]
        half = 2.776 * statistics.stdev(values) / math.sqrt(5)
        mean = statistics.fmean(values)
        between = f"{shown(max(mean - half, 0))} – {shown(min(mean + half, 1))}"
        assert f"{name} {shown(mean)}% {between}" in parsed.text


def test_report_says_where_the_ablations_agree_with_the_paper_and_where_not(parsed):
    table = parsed.table("Change")
    assert table["no masking"][2:] == [
        "+13.0",
        "2 shots: worse than aligned, as in the paper 4 shots: worse than aligned",
    ]
    assert "unlike the paper" in table["input tokens"][3]
    assert "against the paper" in table["no masking, less robust decoder"][3]


def test_report_is_the_same_bytes_for_the_same_artifacts(built, html):
    assert render(built, built[2]) == html


def test_report_without_a_demonstration_picture_leaves_its_place_empty(built, tmp_path, caplog):
    root = tmp_path / "root"
    shutil.copytree(built[0], root)
    moved = {
        role: a.model_copy(update={"uri": a.uri.replace(str(built[0]), str(root))})
        for role, a in built[1].items()
        if role != "trained"
    }
    moved["trained"] = {}
    shutil.rmtree(root / "data")
    page = Parsed(render((root, moved, {}), {}, 2, examples=3, failures=0))
    assert page.text.count("Right answer:") == 3
    assert "its place stays empty" in caplog.text


def test_report_shows_what_the_t5_reads_back(parsed):
    assert parsed.table("The T5 reads") == {"a <b>red</b> hat": ["a green star"]}


def test_report_shows_the_losses_of_the_ablations_and_the_three_starts_of_the_norm(built, parsed):
    rows = parsed.table("Validation loss")
    assert set(rows) == {"aligned", "default norm", "no norm", "CLIP: aligned"}
    seeds, training, validation = rows["no norm"]
    assert seeds == "3"
    ends = [np.mean([2.0 + seed / 10 + 4 / (1 + i) for i in range(250, 300)]) for seed in range(3)]
    half = 4.302653 * np.std(ends, ddof=1) / np.sqrt(3)  # Student's, two degrees of freedom
    assert training == f"{np.mean(ends):.3f} ({np.mean(ends) - half:.3f} – {np.mean(ends) + half:.3f})"
    assert validation.startswith("4.200 (")
    plots = [attributes for tag, attributes in parsed.tags if attributes.get("role") == "img"]
    figure = next(one["aria-label"] for one in plots if "no norm" in (one["aria-label"] or ""))
    assert "with T5's norm it ends at 0.3" in figure
    assert "with norm from ones it ends at 0.6" in figure
    drawn = [one["class"] for tag, one in parsed.tags if tag == "path" and "norm" in (one.get("class") or "")]
    assert drawn == ["smooth norm0", "smooth norm1", "smooth norm2"]


def test_report_of_an_untrained_aligner_has_no_curve(built):
    root, parents, _ = built
    entry = stage_folder(root, "train_aligner", 9).write("losses.json", b'{"training": [], "validation": []}')
    spec = AlignerSpec(t5=Model(name="t5"), steps=0).model_dump(mode="json")
    untrained = artifact(AlignerCheckpoint, root, "train_aligner", 9, [entry], spec, counts={"steps": 0})
    page = Parsed(render((root, parents | {"aligner": untrained}, {}), {}, 3, examples=0, failures=0))
    assert "left untrained here" in page.text
    assert "has no step to show" in page.text
    assert "asked to show no examples" in page.text


def test_picture_that_is_large_is_shrunk_and_one_that_does_not_decode_is_left_out():
    small, large = png("a", 32), png("b", 600)
    assert inline(small) == (f"data:image/png;base64,{base64.b64encode(small).decode()}", True)
    source, is_small = inline(large) or ("", True)
    assert source.startswith("data:image/jpeg;base64,")
    assert not is_small
    assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size == (288, 288)
    assert inline(large[:100]) is None
    assert inline(b"<svg onload=alert(1)>") is None
    assert inline(None) is None


def test_pictures_of_a_stage_s_page_are_in_a_table_and_small():
    large, says = png("b", 600), code("a `bar` | and ![](http://evil.invalid)")
    head, line, first, second = pictured(("picture", "says"), [(large, says), (None, "")]).splitlines()
    assert (head, line, second) == ("| picture | says |", "| --- | --- |", "| – |  |")
    picture = first.split(" | ")[0].removeprefix("| ![](data:image/jpeg;base64,").removesuffix(")")
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (96, 96)
    assert first.endswith("| `a 'bar' / and ![](http://evil.invalid)` |")


def test_choice_of_examples_covers_the_tasks_evenly_and_follows_the_benchmarks_order():
    asked = prompts(ASKED)
    chosen = choose(asked, 33)
    assert choose(list(reversed(asked)), 33) != []
    assert {p.name for p in choose(asked, 10)} <= {p.name for p in chosen}
    per_cell = [sum((p.task, p.shots) == cell for p in chosen) for cell in {(p.task, p.shots) for p in asked}]
    assert sorted(set(per_cell)) == [1, 2]
    assert chosen == [p for p in asked if p in chosen]
    assert len(choose(asked, 10**6)) == len(asked)


def t_probability(t: float, df: int) -> float:
    """P(|T| < t) of Student's t by the trapezoid rule over its density."""
    x = np.linspace(0, t, 200_001)
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    return float(2 * np.trapezoid(scale * (1 + x * x / df) ** (-(df + 1) / 2), x))


@pytest.mark.parametrize("df", [1, 2, 4, 9, 29, 30, 31, 60, 500])
def test_students_quantiles_hold_95_percent(df):
    quantile = T_975[df - 1] if df <= len(T_975) else 1.96 + 2.46 / df
    assert t_probability(quantile, df) == pytest.approx(0.95, abs=2e-4)


def seeds(name: str, values: list[float]) -> Condition:
    return Condition(name, {seed: {2: {"mean": value}} for seed, value in enumerate(values)}, {2: 100})


@pytest.mark.parametrize(
    ("base", "changed", "says"),
    [
        ([0.5, 0.52, 0.48, 0.5, 0.51], [0.4, 0.43, 0.37, 0.4, 0.41], "worse than aligned, as in the paper"),
        ([0.4, 0.42, 0.38, 0.4, 0.41], [0.5, 0.53, 0.47, 0.5, 0.51], "better than aligned, against the paper"),
        ([0.5, 0.52, 0.48, 0.5, 0.51], [0.5, 0.51, 0.49, 0.51, 0.5], "no clear difference, unlike the paper"),
        ([0.5, 0.7, 0.3, 0.5, 0.4], [0.5, 0.3, 0.7, 0.5, 0.5], "undecided: both zero and the paper's figure fit"),
        ([0.5, 0.52, 0.48], [0.1, 0.1, 0.1], "worse than aligned, as in the paper (only 3 seeds)"),
        ([0.5], [0.1], "one pair of seeds: nothing can be said"),
    ],
)
def test_difference_is_read_by_its_interval(base, changed, says):
    found = differences([seeds("aligned", base), seeds("no masking", changed)])
    assert [reading(difference) for difference in found] == [says]
    assert found[0].gain == mean_interval([a - b for a, b in zip(base, changed, strict=True)])


def test_difference_pairs_equal_seeds_and_equal_decoders():
    base, other = seeds("aligned, weak decoder", [0.5, 0.6, 0.7]), seeds("no norm, weak decoder", [0.1, 0.1, 0.4])
    lost = replace(other, by_seed={seed: other.by_seed[seed] for seed in (0, 2)})
    found = differences([seeds("aligned", [0.9, 0.9, 0.9]), base, lost])
    assert [(d.condition.name, d.gain.mean, d.gain.seeds) for d in found] == [
        ("no norm, weak decoder", pytest.approx(0.35), 2)
    ]


def test_report_leaves_its_tables_as_markdown(built):
    root, parents, variants = built
    page = made(root, parents, variants, 4).page
    mean = stored_scores(built)["aligned"]["2"]["mean"]
    assert f"| Aligned | {shown(mean['accuracy'])} ({shown(mean['low'])} – {shown(mean['high'])}) |" in page
    assert "| no masking | 5 |" in page
    assert "| Color-I |" in page
    assert "thinkdiff run ablations" in made(root, parents, {}, 5).page


@NO_CHROMIUM
def test_report_in_a_browser_is_not_blank_and_follows_the_colour_scheme(html, tmp_path):
    page, grounds = tmp_path / "report.html", []
    page.write_text(html)
    with Browser(tmp_path, height=2400) as browser:
        browser.open(page.as_uri())
        for scheme in ("light", "dark"):
            wanted = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.command("Emulation.setEmulatedMedia", features=wanted)
            pixels = np.asarray(Image.open(browser.screenshot(scheme)).convert("RGB")).astype(int)
            ground = pixels[2, 2]
            marked = (np.abs(pixels - ground).max(2) > 40).mean(1)
            assert (marked > 0).mean() > 0.4  # rows that hold something, from the title down to the pictures
            assert marked[1600:].max() > 0.05
            grounds.append(ground.sum())
        assert browser.problems == []
    assert grounds[0] > 700 > 120 > grounds[1]
