"""Two runs side by side: pairs counted by hand, textbook intervals, settings that differ, the page in a browser."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import pytest
from browser import NO_CHROMIUM, Browser, css
from report_artifacts import METHODS, ODDS, Parsed, artifact, build, make_media, make_scores, stage_folder
from typer.testing import CliRunner

from thinkdiff.flows.cli import app
from thinkdiff.schemas.artifact import Model
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.features import FeatureSet, FeatureSpec
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.scores import ClassifierJudge, ClipJudge, ScoreSpec
from thinkdiff.storage.records import artifact_folder, read_record
from thinkdiff.tasks.cobsat import COBSAT_FAMILIES
from thinkdiff.tasks.compare_page import markdown, page
from thinkdiff.tasks.compare_scores import Pairs, compared, gained, side

FIRST, SECOND = f"{7:032x}", f"{71:032x}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with a run of `build`, and another one of another VLM, whose aligned pictures are better."""
    root = tmp_path_factory.mktemp("compare")
    queries = build(root)[0]["media"]
    old = read_record(artifact_folder(str(root), "extract_features", f"{4:032x}"), FeatureSet)
    assert old is not None
    spec = FeatureSpec.model_validate(old.spec).but(vlm=Model(name="another/vlm")).model_dump(mode="json")
    asked = artifact(FeatureSet, root, "extract_features", 69, spec=spec)
    make_scores(root, 71, make_media(root, 70, asked), ODDS | {"aligned": 0.95}, seed=1)
    make_scores(root, 73, make_media(root, 72, asked, ("text_bridge",)), {"text_bridge": 0.5}, seed=2)
    assert queries.stage == "generate_media"
    return root


def test_pairs_are_counted_and_their_means_are_of_tasks(root):
    one, two = side(str(root), FIRST), side(str(root), SECOND)
    found = compared(str(root), one, two)
    for shots in (2, 4):
        tasks = [gain for (n, task), gain in found.gains.items() if n == shots and task != "mean"]
        for (n, task), gain in found.gains.items():
            names = [name for name, p in one.prompts.items() if (p.shots, p.task) == (n, task)]
            if names:
                right = [(one.verdicts[name].right, two.verdicts[name].right) for name in names]
                assert gain.pairs == Pairs(
                    *(right.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
                )
                assert (gain.first, gain.second) == (fmean(a for a, _ in right), fmean(b for _, b in right))
        mean = found.gains[shots, "mean"]
        assert mean.gain == pytest.approx(fmean(gain.gain for gain in tasks))
        assert mean.second - mean.first == pytest.approx(mean.gain)
        assert mean.pairs.total == 60


@pytest.mark.parametrize(
    ("pairs", "p"), [((0, 1, 9, 0), 0.021484), ((3, 5, 5, 2), 1.0), ((9, 0, 0, 9), 1.0), ((0, 0, 6, 0), 0.03125)]
)
def test_p_is_mcnemars_exact_one(pairs, p):
    assert Pairs(*pairs).chance == pytest.approx(p, abs=5e-7)


def test_p_of_many_pairs_goes_on_from_that_of_few():
    few, many = Pairs(0, 450, 520, 0).chance, Pairs(0, 480, 550, 0).chance
    exact = 2 * sum(math.comb(1030, k) for k in range(481)) / 2**1030
    assert many == pytest.approx(exact, rel=0.01)
    assert few == pytest.approx(many, rel=0.2)


def test_interval_of_paired_shares_is_the_textbooks():
    found = gained([Pairs(20, 5, 15, 10)])
    half = 1.959964 * math.sqrt(5 + 15 - (15 - 5) ** 2 / 50) / 50
    assert (found.gain, found.low, found.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-6)
    assert gained([Pairs(20, 5, 15, 10), Pairs(30, 0, 0, 20)]).gain == pytest.approx(0.1)


def test_settings_that_differ_are_told_wherever_they_stand(root):
    found = compared(str(root), side(str(root), FIRST), side(str(root), SECOND))
    assert found.differing == {"queries.vlm.name": ("some/vlm", "another/vlm")}
    methods = compared(str(root), side(str(root), FIRST), side(str(root), f"{FIRST}:true_caption"))
    assert methods.differing == {"method": ("aligned", "true_caption")}
    assert methods.same_judge


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"confidence": 0.9}, True),
        ({"second": ClipJudge(model=Model(name="clip"))}, True),
        ({"judge": ClassifierJudge(model=Model(name="another/judge"))}, False),
        ({"families": COBSAT_FAMILIES}, False),
    ],
)
def test_sides_are_judged_alike_where_what_verdicts_depend_on_is_the_same(root, change, same):
    one, two = side(str(root), FIRST), side(str(root), SECOND)
    plain = ScoreSpec.model_validate(one.card.spec)
    spec = ScoreSpec.model_validate(plain.model_dump() | {"families": COBSAT_FAMILIES[:1]})
    cards = [each.model_dump(mode="json") for each in (spec, spec.but(**change))]
    sides = [replace(s, card=s.card.model_copy(update={"spec": c})) for s, c in zip((one, two), cards, strict=True)]
    found = compared(str(root), *sides)
    assert found.same_judge is same
    assert ("They were judged differently" in markdown(found)) is not same


@pytest.mark.parametrize(
    ("reference", "says"),
    [("ffff", "found 0 scorecards"), ("0", "found 28 scorecards"), (f"{FIRST}:mine", "expected 'mine' among them")],
)
def test_reference_that_names_no_side_is_refused(root, reference, says):
    with pytest.raises(SpecError, match=says):
        side(str(root), reference)


def test_runs_of_other_questions_are_not_compared(root):
    one, two = side(str(root), FIRST), side(str(root), SECOND)
    other = {name: prompt._replace(target_thing="pear") for name, prompt in two.prompts.items()}
    with pytest.raises(InputError, match="no question that both were asked"):
        compared(str(root), one, type(two)(two.card, two.media, two.method, other, two.verdicts))


def test_command_prints_tables_and_writes_a_page(root, tmp_path):
    target = tmp_path / "page.html"
    ran = CliRunner().invoke(app, ["compare", FIRST[:32], SECOND, "--root", str(root), "-o", str(target)])
    assert ran.exit_code == 0, ran.output
    found = compared(str(root), side(str(root), FIRST), side(str(root), SECOND))
    assert markdown(found) in ran.output
    parsed = Parsed(target.read_text())
    row = parsed.table("difference")["2 shots n = 60"]
    mean = found.gains[2, "mean"]
    assert row[:2] == [f"{100 * mean.first:.1f}", f"{100 * mean.second:.1f}"]
    assert row[3:5] == [str(mean.pairs.first), str(mean.pairs.second)]
    cards = [attrs for _, attrs in parsed.tags if "data-prompt" in attrs]
    discordant = {name for name, outcome in found.outcomes.items() if "only" in outcome}
    assert len(cards) == 60
    assert {attrs["data-prompt"] for attrs in cards} >= discordant
    assert "script" not in {tag for tag, _ in parsed.tags}


def test_method_that_one_side_lacks_is_named(root):
    with pytest.raises(SpecError, match="found the methods text_bridge"):
        side(str(root), f"{73:032x}:aligned")
    assert side(str(root), f"{73:032x}").method == "text_bridge"
    assert isinstance(read_record(stage_folder(root, "generate_media", 72), MediaSet), MediaSet)
    assert set(METHODS) == {v.method for v in map(lambda m: side(str(root), f"{FIRST}:{m}"), METHODS)}


@NO_CHROMIUM
def test_page_filters_offline(root, tmp_path):
    found = compared(str(root), side(str(root), FIRST), side(str(root), SECOND))
    target = tmp_path / "page.html"
    target.write_bytes(page(found, 1000))
    with Browser(tmp_path) as browser:
        browser.open(target.as_uri())
        browser.click(css("label:has(#questions-outcome-2)"))
        shown = browser.value(
            "[...document.querySelectorAll('.card')].filter(c => c.offsetParent).map(c => c.dataset.prompt)"
        )
        assert set(shown) == {name for name, outcome in found.outcomes.items() if outcome == "second only"}
        assert browser.problems == []
