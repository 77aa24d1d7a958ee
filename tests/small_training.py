"""Small trainings: features that are a fixed random code of the miniature's words, and runs that can be killed."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from meters import Killed

from thinkdiff.mini.release import weights_folder
from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.artifact import Execution, Model, Provenance, content_digest
from thinkdiff.schemas.features import FeatureSet, FeatureSpec, PictureTokens
from thinkdiff.storage.feature_rows import FeatureRow
from thinkdiff.storage.feature_store import FeatureWriter
from thinkdiff.storage.records import write_record
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.qwen_engine import prepare_torchvision
from thinkdiff.tasks.step import Work

WIDTH, ROWS = 16, 48


class Meter:
    """A progress bar that can end the process at a given step."""

    def __init__(self, die_at: int | None) -> None:
        self.done, self.die_at = 0, die_at

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None: ...

    note = None

    def page(self, name: str, markdown: str) -> None: ...

    def resume(self, count: int) -> None:
        self.done += count

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.done == self.die_at:
            raise Killed


def work(folder, die_at: int | None = None, **options) -> Work:
    about = {"device": "cpu", "threads": 1, "tracker": "none", "checkpoint_every": 3} | options
    run = Execution(model_dirs=(str(weights_folder()),)).model_copy(update=about)
    lease: Any = SimpleNamespace(check=bool, lost=threading.Event())
    found = Work(Folder.at(str(folder)), run, lease, logging.getLogger("test"))
    object.__setattr__(found, "progress", lambda total, unit: Meter(die_at))
    return found


def spec(**changes) -> AlignerSpec:
    return AlignerSpec(
        t5=Model(name="mini-t5"), hidden=24, steps=12, batch=8, lr=2e-3, warmup_steps=2, validation_rows=8,
        validation_every=4, schedule_steps=12, clip_grad_norm=1.0,
    ).but(**changes)  # fmt: skip


def make_features(root: Path, poisoned: int | None = None) -> FeatureSet:
    """Answers in the miniature's words whose features are a fixed random code of each word; the first is too short.

    The states of the row `poisoned` are so large that no loss comes of them.
    """
    prepare_torchvision()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights_folder() / "mini-qwen2-vl")
    words = tokenizer("a photo of a red star . the star is red .", add_special_tokens=False)["input_ids"]
    rng = np.random.default_rng(0)
    code = rng.normal(size=(len(tokenizer), WIDTH)).astype(np.float32)
    folder = Folder.at(str(root / "extract_features" / ("0" * 32)))
    writer = FeatureWriter(folder, rows=ROWS, tokens=16, width=WIDTH, dtype="float32", shard_size=16)
    writer.prepare()
    rows = []
    for i in range(ROWS):
        ids = [int(x) for x in rng.permutation(words)[: rng.integers(4, 12)]] if i else [tokenizer.eos_token_id]
        states = np.full((len(ids), WIDTH), 3e38, np.float32) if i == poisoned else code[ids]
        rows.append(FeatureRow(f"{i:032x}", "p", tuple(ids), -1, tokenizer.decode(ids), states))
    for shard in range(3):
        writer.commit(shard, rows[shard * 16 : (shard + 1) * 16])
    return recorded(folder, writer, FeatureSpec(vlm=Model(name="mini-qwen2-vl")))


def make_captions(root: Path) -> FeatureSet:
    """Pictures of five random tokens and captions of one to nine words, as a vision tower's store has them."""
    folder, rng = Folder.at(str(root / "extract_features" / ("0" * 32))), np.random.default_rng(1)
    writer = FeatureWriter(folder, rows=ROWS, tokens=1, width=WIDTH, dtype="float32", shard_size=16, input_tokens=5)
    writer.prepare()
    words, none = "A photo of a red star. The STAR is (red)!".split(), np.zeros((0, WIDTH), np.float32)
    rows = [
        FeatureRow(
            f"{i:032x}", "", (), -1, " ".join(rng.permutation(words)[: i % 10]), none,
            rng.normal(size=(5, WIDTH)).astype(np.float32),
        )
        for i in range(ROWS)
    ]  # fmt: skip
    for shard in range(3):
        writer.commit(shard, rows[shard * 16 : (shard + 1) * 16])
    spec = FeatureSpec(
        vlm=Model(name="mini-eva-clip"), prompts=PictureTokens(), tokens=("input",), max_input_tokens=5, max_tokens=1
    )
    return recorded(folder, writer, spec)


def recorded(folder: Folder, writer: FeatureWriter, vlm: FeatureSpec) -> FeatureSet:
    """The artifact of a store that is written."""
    files = writer.files()
    artifact = FeatureSet(
        stage="extract_features", fingerprint="0" * 32, digest=content_digest(files), uri=folder.uri, version=1,
        spec=vlm.model_dump(mode="json"), parents={}, files=files, counts={"rows": ROWS}, stats={"hidden_size": WIDTH},
        provenance=Provenance(created="", seconds=0, host="", git_commit=None, packages={}),
    )  # fmt: skip
    write_record(artifact)
    return artifact


@pytest.fixture(scope="session")
def features(tmp_path_factory) -> FeatureSet:
    """The small store, once."""
    return make_features(tmp_path_factory.mktemp("features"))
