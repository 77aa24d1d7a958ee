"""Specs, fingerprints and digests: what changes an identity and what does not."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from thinkdiff.schemas.artifact import Execution, FileEntry, Model, canonical, content_digest, fingerprint, sha256_json
from thinkdiff.schemas.captions import CaptionSpec, Collection, sample_key
from thinkdiff.schemas.errors import SpecError, ThinkDiffError
from thinkdiff.schemas.features import CaptionPrompts, FeatureSpec


def caption_spec(**changes):
    collection = Collection(name="cc3m", format="cc3m-tsv", url="cc3m.tsv")
    return CaptionSpec(collections=(collection,), n=10).but(**changes)


def test_sample_key_is_frozen_for_ever():
    assert sample_key("cc3m", "https://a.example/1.jpg", "a red star") == "49bb6f9602b91c9cf874f146d7702456"


def test_sample_key_fields_do_not_run_into_each_other():
    assert sample_key("a", "bc", "d") != sample_key("ab", "c", "d") != sample_key("a", "b", "cd")


def test_but_validates_the_change():
    with pytest.raises(SpecError, match=r"CaptionSpec\.n: found -5, expected"):
        caption_spec(n=-5)
    with pytest.raises(SpecError, match=r"CaptionSpec\.m: found 5, expected"):
        caption_spec(m=5)
    assert caption_spec(n=11).n == 11


def test_fingerprint_changes_with_spec_version_and_parents_only():
    base = fingerprint(caption_spec(), {})
    assert fingerprint(caption_spec(), {}) == base
    assert fingerprint(caption_spec(n=11), {}) != base

    class Raised(CaptionSpec):
        version = CaptionSpec.version + 1

    assert fingerprint(Raised(**caption_spec().model_dump()), {}) != base
    assert not {"root", "device", "batch", "threads"} & set(CaptionSpec.model_fields)


def test_fingerprint_knows_nothing_of_a_later_field_at_its_first_value():
    spec = FeatureSpec(vlm=Model(name="a model"))
    assert fingerprint(spec, {}) == "3f6571e9df1fa2c5ae093f215acb64b2"  # without `codec`
    found = {fingerprint(spec.but(codec=codec), {}) for codec in ("none", "zstd", "int8", "fp8")}
    assert len(found) == 4


def test_canonical_refuses_what_has_no_stable_form():
    with pytest.raises(TypeError, match="no deterministic form"):
        canonical({"a": {1, 2}})
    with pytest.raises(TypeError, match="finite"):
        canonical(float("nan"))
    assert sha256_json({"b": 1, "a": [2.0]}) == sha256_json({"a": (2,), "b": 1})


def test_content_digest_depends_on_bytes_not_on_order():
    one = FileEntry(path="a", size=1, sha256="0" * 64)
    two = FileEntry(path="b", size=1, sha256="1" * 64)
    assert content_digest((one, two)) == content_digest((two, one))
    assert content_digest((one,)) != content_digest((two,))
    assert content_digest((one, two.model_copy(update={"content": False}))) == content_digest((one,))
    named = FileEntry(path='é"1', size=7, sha256="2" * 64)
    assert content_digest((named, two)) == sha256_json([["b", 1, "1" * 64], ['é"1', 7, "2" * 64]])
    assert content_digest((named, two)) == "56f60a1266d35c4ef923d458a0a149e804f4c4b8f09adf4a70b574309d5d2524"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a//b", "a\\b", ""])
def test_file_entry_refuses_a_path_that_leaves_the_artifact(path):
    with pytest.raises(ValidationError):
        FileEntry(path=path, size=0, sha256="0" * 64)


def test_execution_is_not_a_spec_and_has_a_data_root():
    assert Execution(root="s3://b/p/").data_root == "s3://b/p/data"


def test_errors_are_what_callers_expect():
    assert issubclass(SpecError, ValueError)
    assert issubclass(SpecError, ThinkDiffError)


def test_feature_spec_defaults_are_the_papers():
    spec = FeatureSpec(vlm=Model(name="Qwen/Qwen2-VL-7B-Instruct"))
    assert isinstance(spec.prompts, CaptionPrompts)
    assert (spec.max_tokens, spec.end_policy, len(spec.prompts.texts)) == (64, "forced", 16)
