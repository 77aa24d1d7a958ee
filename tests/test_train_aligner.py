"""Training: the paper's learning rates, resuming to the bit, what never reaches the model."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from thinkdiff.mini.release import weights_folder
from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.artifact import Execution, Model, Provenance, content_digest
from thinkdiff.schemas.errors import SpecError
from thinkdiff.schemas.features import FeatureSet, FeatureSpec
from thinkdiff.storage.feature_rows import FeatureRow
from thinkdiff.storage.feature_store import FeatureWriter
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.step import Work
from thinkdiff.tasks.aligner_training import learning_rate
from thinkdiff.tasks.train_aligner import train_aligner

WIDTH, ROWS = 16, 48


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test catches it."""


class Meter:
    """A progress bar that can end the process at a given step."""

    def __init__(self, die_at: int | None) -> None:
        self.done, self.die_at = 0, die_at

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None: ...

    note = None

    def resume(self, count: int) -> None:
        self.done += count

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.done == self.die_at:
            raise Killed


def work(folder, die_at: int | None = None) -> Work:
    run = Execution(model_dirs=(str(weights_folder()),), device="cpu", threads=1, tracker="none")
    found = Work(Folder.at(str(folder)), run, SimpleNamespace(), logging.getLogger("test"))  # pyright: ignore[reportArgumentType]
    object.__setattr__(found, "progress", lambda total, unit: Meter(die_at))
    return found


def spec(**changes) -> AlignerSpec:
    return AlignerSpec(
        t5=Model(name="mini-t5"), hidden=24, steps=12, batch=8, lr=2e-3, warmup_steps=2, validation_rows=8,
        validation_every=4, checkpoint_every=3, schedule_steps=12, clip_grad_norm=1.0,
    ).but(**changes)  # fmt: skip


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> FeatureSet:
    """Answers in the miniature's words whose features are a fixed random code of each word."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights_folder() / "mini-qwen2-vl")
    words = tokenizer("a photo of a red star . the star is red .", add_special_tokens=False)["input_ids"]
    rng = np.random.default_rng(0)
    code = rng.normal(size=(len(tokenizer), WIDTH)).astype(np.float32)
    folder = Folder.at(str(tmp_path_factory.mktemp("features")))
    writer = FeatureWriter(folder, rows=ROWS, tokens=16, width=WIDTH, dtype="float32", shard_size=16)
    writer.prepare()
    rows = []
    for i in range(ROWS):
        ids = [int(x) for x in rng.permutation(words)[: rng.integers(4, 12)]] if i else [tokenizer.eos_token_id]
        rows.append(FeatureRow(f"{i:032x}", "p", tuple(ids), -1, tokenizer.decode(ids), code[ids]))
    for shard in range(3):
        writer.commit(shard, rows[shard * 16 : (shard + 1) * 16])
    files = writer.files()
    vlm = FeatureSpec(vlm=Model(name="mini-qwen2-vl"))
    return FeatureSet(
        stage="extract_features", fingerprint="0" * 32, digest=content_digest(files), uri=folder.uri, version=1,
        spec=vlm.model_dump(mode="json"), parents={}, files=files, counts={"rows": ROWS}, stats={"hidden_size": WIDTH},
        provenance=Provenance(created="", seconds=0, host="", git_commit=None, packages={}),
    )  # fmt: skip


def test_learning_rate_is_the_authors_at_known_steps():
    paper = AlignerSpec(t5=Model(name="google/flan-t5-xxl"))
    assert learning_rate(paper, 0) == pytest.approx(1e-6)
    assert learning_rate(paper, 1000) == pytest.approx(5.05e-5)
    assert learning_rate(paper, 25_000) == pytest.approx(9.92e-5, rel=1e-3)
    assert learning_rate(paper, 100_000) == pytest.approx(9.0e-5, rel=1e-3)


def test_training_resumed_after_a_kill_ends_in_the_same_bytes(features, tmp_path):
    calm = train_aligner.body(work(tmp_path / "calm"), spec(), features)
    for die_at in (2, 5, 10):
        with pytest.raises(Killed):
            train_aligner.body(work(tmp_path / "rough", die_at), spec(), features)
    rough = train_aligner.body(work(tmp_path / "rough"), spec(), features)
    assert rough.note == "resumed at step 9"
    assert content_digest(rough.files) == content_digest(calm.files)
    assert {entry.path for entry in rough.files} == {"aligner.safetensors", "config.json", "losses.json"}


def test_training_lowers_the_loss_and_skips_answers_of_one_token(features, tmp_path):
    made = train_aligner.body(work(tmp_path), spec(steps=60, schedule_steps=60), features)
    assert made.counts["skipped_rows"] == 1
    assert made.counts["training_rows"] + made.counts["validation_rows"] == ROWS - 1
    training = json.loads(Folder.at(str(tmp_path)).read("losses.json"))["training"]
    assert len(training) == 60
    assert np.isfinite(training).all()
    assert np.mean(training[-10:]) < np.mean(training[:10])


@pytest.mark.parametrize("change", [{"masking": "none"}, {"norm": "none"}, {"norm": "default"}, {"steps": 0}])
def test_training_variants_make_other_aligners(features, tmp_path, change):
    base = train_aligner.body(work(tmp_path / "base"), spec(), features)
    other = train_aligner.body(work(tmp_path / "other"), spec(**change), features)
    assert content_digest(base.files) != content_digest(other.files)


def test_spec_refuses_to_split_input_tokens():
    with pytest.raises(SpecError, match="input tokens cannot be split"):
        spec(features="input")
