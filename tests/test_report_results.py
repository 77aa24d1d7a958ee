"""The report's parts that compare: failures, confusions, shots, other systems, files for papers, filters."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from pathlib import Path

import pytest
from browser import NO_CHROMIUM, Browser, css
from report_artifacts import (
    ASKED,
    METHODS,
    Parsed,
    artifact,
    build,
    make_media,
    make_scores,
    png,
    stage_folder,
)

from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.report import ReportSpec
from thinkdiff.schemas.scores import ClipJudge, Scorecard, ScoreSpec, VlmJudge
from thinkdiff.storage.lease import Lease
from thinkdiff.storage.media_files import MediaWriter
from thinkdiff.storage.score_tables import (
    PROMPTS,
    VERDICTS,
    AskedPrompt,
    Verdict,
    read_prompts,
    read_verdicts,
    write_rows,
)
from thinkdiff.tasks import published
from thinkdiff.tasks.cobsat import COBSAT_FAMILIES, prompts
from thinkdiff.tasks.render_report import render_report
from thinkdiff.tasks.report_numbers import Cell, Scores, gained
from thinkdiff.tasks.report_reader import read_scores
from thinkdiff.tasks.report_tables import latex
from thinkdiff.tasks.score_cobsat import WORDS, count, headline
from thinkdiff.tasks.step import Made, Work

OTHER, MISSING = "their <b>system", 3


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(root, parents by role, another system's scorecard, which lacks some pictures)."""
    root = tmp_path_factory.mktemp("report")
    parents, _ = build(root)
    folder, asked = stage_folder(root, "generate_media", 40), prompts(ASKED)
    files = [write_rows(folder, PROMPTS, AskedPrompt, read_prompts(parents["media"]))]
    files += MediaWriter(folder).commit(OTHER, 0, [(p.name, png(OTHER + p.name)) for p in asked[MISSING:]])
    media = artifact(MediaSet, root, "generate_media", 40, files, stats={"methods": [OTHER]})
    return root, parents, make_scores(root, 41, media, {OTHER: 0.5}, seed=5)


def made(built, number: int, others=None, variants=None, **changes) -> tuple[Made, str]:
    """What the stage's own body leaves, and the page."""
    root, parents, _ = built
    folder = stage_folder(root, "render_report", number)
    work = Work(folder, Execution(root=str(root)), Lease(folder, 30), logging.getLogger("test"))
    found = render_report.body(work, ReportSpec(**changes), **parents, variants=variants or {}, others=others or {})
    return found, folder.read("report.html").decode()


@pytest.fixture(scope="module")
def report(built):
    return made(built, 1, others={OTHER: built[2]})


def test_every_failure_is_put_down_to_one_part_and_shares_add_up(built, report):
    verdicts = read_verdicts(built[1]["scores"])
    stats = report[0].stats["failures"]
    table = Parsed(report[1]).table("diffusion model")
    for shots in (2, 4):
        wrong = [v for v in verdicts if v.method == "aligned" and v.shots == shots and not v.right]
        assert sum(stats[str(shots)].values()) == len(wrong) > 0
        *causes, total = table[f"{shots} shots"]
        assert abs(sum(float(cell.split("%")[0]) for cell in causes) - 100) < 0.3
        assert sum(int(cell.rpartition("= ")[2]) for cell in causes) == len(wrong)
        assert total == f"{len(wrong)} pictures"
    assert sum(map(Counter, stats.values()), Counter()).keys() == {"vlm", "aligner", "decoder", "judge"}


def test_failures_of_every_kind_are_among_the_cards(report):
    cards = [attrs for _, attrs in Parsed(report[1]).tags if "data-prompt" in attrs]
    assert {attrs["data-blamed"] for attrs in cards if attrs["data-outcome"] == "1"} == {"0", "1", "2", "3"}
    assert {attrs["data-blamed"] for attrs in cards if attrs["data-outcome"] == "0"} == {"none"}


def test_confusions_count_the_words_that_the_judge_saw(built, report):
    verdicts = [v for v in read_verdicts(built[1]["scores"]) if v.method == "aligned"]
    table = Parsed(report[1]).table("Wanted")
    name, (wanted, seen, count) = next(iter(table.items()))
    family = name.split(":")[0]
    assert seen == "none"  # the judge's word was none of the benchmark's
    assert int(count) == sum(v.family == family and v.target_value == wanted and not v.right_value for v in verdicts)
    parsed = Parsed(report[1])
    color = next(t for t in parsed.tables if t[0][1].strip() == "color-0")
    assert [row[0].split()[0] for row in color[1:]] == [f"color-{n}" for n in range(6)]
    for n, row in enumerate(color[1:]):
        right = [v.right_value for v in verdicts if v.target_value == f"color-{n}"]
        assert row[1 + n].strip() == (f"{100 * sum(right) / len(right):.0f}" if any(right) else "")


def test_other_system_takes_part_in_every_table_and_card(built, report):
    parsed, card = Parsed(report[1]), built[2]
    stored = json.loads(Path(card.path("scores.json")).read_text())["methods"][OTHER]
    table = parsed.table("2 shots")
    assert [row[len(METHODS)] for row in table.values()][-1] == f"{100 * stored['2']['mean']['accuracy']:.1f}"
    assert parsed.table("mean, 2 shots")[OTHER][1] == f"{100 * stored['4']['mean']['accuracy']:.1f}%"
    shown = [p.name for p in prompts(ASKED)[:MISSING] if f'data-prompt="{p.name}"' in report[1]]
    assert report[1].count(f"{OTHER.replace('<', '&lt;').replace('>', '&gt;')}: the judge sees") >= 20 - len(shown)
    assert OTHER in report[0].page
    assert "<b>system" not in report[1]


def test_more_shots_are_compared_with_an_interval_worked_out_by_hand():
    cells = {
        ("m", 2, "a"): Cell(0.5, 0, 1, 50, 100, 1, 1),
        ("m", 2, "b"): Cell(0.2, 0, 1, 20, 100, 1, 1),
        ("m", 4, "a"): Cell(0.7, 0, 1, 70, 100, 1, 1),
        ("m", 4, "b"): Cell(0.3, 0, 1, 30, 100, 1, 1),
    }
    found = gained(Scores(("m",), (2, 4), ("a", "b"), 0.95, cells), "m", 2, 4)
    half = 1.959964 * (0.0025 + 0.0016 + 0.0021 + 0.0021) ** 0.5 / 2
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.15, 0.15 - half, 0.15 + half), abs=1e-6)


def test_tables_for_papers_are_rows_in_the_papers_order(built, report):
    scores = read_scores(
        built[1]["scores"], [f"{f.name.capitalize()}-{v}" for f in ASKED.families for v in ("I", "II")]
    )
    lines = built[0].joinpath("render_report", f"{1:032x}", "tables.tex").read_text().splitlines()
    assert lines[0] == f"% method & {' & '.join(published.TASKS)} & mean \\\\"
    row = next(line for line in lines if line.startswith("Aligned &"))
    expected = [
        f"{scores.cells['aligned', 2, task].accuracy:.3f}".removeprefix("0") for task in (*published.TASKS, "mean")
    ]
    assert [cell.strip(" \\").removeprefix("textbf{").rstrip("}") for cell in row.split("&")[1:]] == expected
    assert "their <b>system &" in "\n".join(lines)
    notes = built[0].joinpath("render_report", f"{1:032x}", "tables.md").read_text()
    assert notes == report[0].page
    assert "## Where it fails" in notes


def test_latex_escapes_names_and_marks_the_best():
    cells = {(m, 2, t): Cell(a, 0, 1, 1, 2, 1, 1) for m, a in (("a_b&\\", 0.25), ("c", 1.0)) for t in ("x", "mean")}
    rows = latex(Scores(("a_b&\\", "c"), (2,), ("x",), 0.95, cells), comparable=False)
    assert r"a\_b\&\textbackslash{} & .250 & .250 \\" in rows
    assert r"c & \textbf{1.000} & \textbf{1.000} \\" in rows


def test_published_rows_stand_beside_the_same_questions_and_judge_alone(report):
    asked = CobsatPrompts(families=COBSAT_FAMILIES, images="x")
    llava = VlmJudge(model=Model(name="llava-hf/llava-1.5-13b-hf"))
    judged = ScoreSpec(judge=llava, families=COBSAT_FAMILIES)
    assert published.comparable(asked, judged)
    for prompts_asked in (100, 5000):
        assert not published.comparable(asked.model_copy(update={"per_task": prompts_asked}), judged)
    for change in ({"pad": False}, {"conversation": "template"}, {"max_tokens": 1}):
        assert not published.comparable(asked, judged.but(judge=llava.model_copy(update=change)))
    assert not published.comparable(asked, judged.but(families=COBSAT_FAMILIES[::-1]))
    assert not published.comparable(asked.model_copy(update={"prompt_type": "exact"}), judged)
    assert not published.comparable(asked.model_copy(update={"families": COBSAT_FAMILIES[:4]}), judged)
    assert not published.comparable(asked, judged.but(judge=ClipJudge(model=Model(name="clip"))))
    assert not published.comparable(asked, judged.but(mode="text"))
    assert "SEED-LLaMA" not in report[1]
    means = [published.accuracy(system, 4, "mean") for system in published.PUBLISHED]
    assert means == pytest.approx([0.192, 0.07, 0.058, 0.463], abs=0.00051)  # as the paper's text has them
    cells = {("aligned", 4, t): Cell(0.5, 0, 1, 1, 2, 1, 1) for t in (*published.TASKS, "mean")}
    assert "Emu & .063 & .018 & .045" in latex(Scores(("aligned",), (4,), published.TASKS, 0.95, cells), True)


def test_text_bridge_of_the_seeds_is_a_condition_of_its_own(built):
    root, parents, _ = built
    media = make_media(root, 50, parents["media"].model_copy(update={"stage": "extract_features"}))
    odds = {"aligned": 0.7, "text_bridge": 0.1, "true_caption": 0.9}
    cards = {f"aligned, seed {seed}": make_scores(root, 51 + seed, media, odds, seed) for seed in range(3)}
    found, page = made(built, 2, variants=cards)
    costs = Parsed(page).table("Reads as")
    assert set(costs) == {"text bridge", "true caption"}
    assert costs["text bridge"][-1].startswith("worse than aligned")
    assert costs["true caption"][-1].startswith("better than aligned")
    assert "| text bridge | 3 |" in found.page


def test_answers_in_words_have_verdicts_and_no_pictures(built):
    root, parents, _ = built
    spoken = [
        Verdict(
            WORDS, p.name, p.task, p.family, p.shots, p.held_out, p.target_value, p.target_thing, "", p.target_thing,
            False, True, False, 0.0,
        )
        for p in read_prompts(parents["media"])
    ]  # fmt: skip
    folder, judge = stage_folder(root, "score_cobsat", 60), VlmJudge(model=Model(name="some/judge"))
    scores = {"confidence": 0.95, "methods": {WORDS: count(spoken, 0.95)}}
    card = artifact(
        Scorecard, root, "score_cobsat", 60,
        [write_rows(folder, VERDICTS, Verdict, spoken), folder.write("scores.json", json.dumps(scores).encode())],
        ScoreSpec(judge=judge, families=ASKED.families, mode="text").model_dump(mode="json"),
        {"media": parents["media"]}, stats={"scores": headline(scores["methods"])},
    )  # fmt: skip
    answered = root, parents | {"scores": card}, None
    page = Parsed(made(answered, 3, others={OTHER: card})[1])
    shown = [attrs["aria-label"] or "" for _, attrs in page.tags if "the judge sees" in (attrs.get("aria-label") or "")]
    assert len([label for label in shown if label.startswith("Answer in words: the judge sees")]) == 20
    assert all(label.endswith("wrong: no picture") for label in shown)
    assert page.table("2 shots")["Mean"] == ["0.0", "0.0"]
    assert "No picture is judged here" in page.text
    assert "No picture of the aligned route is judged." in page.text
    assert "route is wrong" not in Parsed(made(answered, 4, examples=0, failures=0)[1]).text


@NO_CHROMIUM
def test_filters_work_offline_when_they_are_clicked(report, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(report[1])
    cards = [attrs for _, attrs in Parsed(report[1]).tags if "data-prompt" in attrs]
    shown = "[...document.querySelectorAll('#pictures .card')].filter(c => c.offsetParent).map(c => c.dataset.prompt)"
    with Browser(tmp_path) as browser:
        browser.open(page.as_uri())
        assert browser.value(shown) == [attrs["data-prompt"] for attrs in cards]
        wrong = next(attrs for attrs in cards if (attrs["data-shots"], attrs["data-outcome"]) == ("1", "1"))
        chosen = [(key, wrong[f"data-{key}"]) for key in ("shots", "outcome", "blamed", "task")]
        for count in range(1, len(chosen) + 1):
            key, value = chosen[count - 1]
            browser.click(css(f"label:has(#pictures-{key}-{value})"))
            left = [a["data-prompt"] for a in cards if all(a[f"data-{k}"] == v for k, v in chosen[:count])]
            assert browser.value(shown) == left
            assert 0 < len(left) < len(cards)
        for key, _ in chosen:
            browser.click(css(f"label:has(#pictures-{key}-all)"))
        assert len(browser.value(shown)) == len(cards)
        assert browser.problems == []
        assert [url for url in browser.requests if not re.match("(file|data|about):", url)] == []
