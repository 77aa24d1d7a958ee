"""The recipes' conditions: which pictures are drawn for each, from which noise, and of whose answers."""

from __future__ import annotations

import pytest

from thinkdiff.flows.recipes import ABLATION_SEEDS, MINI_PROMPT_ROWS, execution, recipe, rooted
from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.media import MediaSpec
from thinkdiff.schemas.pipeline import PipelineSpec, Variant

METHODS = ("aligned", "text_bridge", "text_prompt", "true_caption")


def by_name(spec: PipelineSpec) -> dict[str, list[Variant]]:
    found: dict[str, list[Variant]] = {}
    for variant in spec.variants:
        found.setdefault(variant.name, []).append(variant)
    return found


@pytest.mark.parametrize(("name", "forced"), [("ablations", 48), ("lvlm-paper-ablations", 128)])
def test_conditions_of_one_seed_share_their_noise_and_only_aligned_draws_texts_too(name, forced):
    spec = recipe(name)
    assert spec.media is not None
    assert spec.queries is not None
    conditions = by_name(spec)
    for variants in conditions.values():
        assert [variant.aligner.seed for variant in variants] == list(range(ABLATION_SEEDS))
    drawn = {key: [v.media for v in found if v.media is not None] for key, found in conditions.items()}
    seeds = [spec.media.seed + seed for seed in range(ABLATION_SEEDS)]
    assert all([media.seed for media in found] == seeds for found in drawn.values() if found)
    assert drawn["aligned"][0] == spec.media  # the pipeline's own artifact is the first seed's
    assert {media.methods for media in drawn.pop("aligned")} == {METHODS}
    assert {media.methods for found in drawn.values() for media in found} == {("aligned",)}
    for variant in conditions[f"forced {forced} rows"]:
        assert variant.aligner == spec.aligner.but(seed=variant.aligner.seed)
        assert variant.queries == spec.queries.but(end_policy="forced")
        assert variant.queries is not None
        assert variant.queries.max_tokens == forced
        assert variant.media is not None
        assert variant.media.keep_eos


def test_prompt_of_the_miniature_has_room_for_the_worlds_longest_caption_and_no_more():
    import numpy as np

    from thinkdiff.mini import words, world

    rows, tokenizer = world.sample_attributes(600, np.random.default_rng(0)), words.t5_tokenizer()
    longest = max(len(words.ids_of(tokenizer, world.caption(row, lead))) for row in rows for lead in range(5))
    media = recipe("mini").media
    assert media is not None
    assert media.prompt_rows == MINI_PROMPT_ROWS == longest + 1
    assert MediaSpec.model_fields["prompt_rows"].default == 512


def test_run_that_names_no_root_goes_to_the_workers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("THINKDIFF_ROOT", raising=False)
    assert rooted(Execution(engines=2)) == Execution(engines=2)
    monkeypatch.setenv("THINKDIFF_ROOT", "s3://bucket/runs")
    assert rooted(Execution(engines=2)) == Execution(engines=2, root="s3://bucket/runs")
    assert rooted(Execution(root="runs")).root == "runs"
    assert execution(Execution(), recipe("mini")).root == "s3://bucket/runs"
