"""Training: the paper's learning rates, resuming to the bit, what never reaches the model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from meters import Killed
from safetensors.torch import load_file
from small_training import ROWS, features, make_captions, make_features, spec, work

from thinkdiff.mini.release import weights_folder
from thinkdiff.schemas.aligner import AlignerSpec
from thinkdiff.schemas.artifact import Model, content_digest
from thinkdiff.schemas.errors import InputError, LockedError, SpecError, TrainingError
from thinkdiff.storage.checkpoints import CheckpointWriter
from thinkdiff.storage.feature_store import FeatureStore
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.aligner import Aligner, AlignerConfig
from thinkdiff.tasks.aligner_training import adamw, learning_rate, prepared, train
from thinkdiff.tasks.ranks import Ranks
from thinkdiff.tasks.train_aligner import train_aligner

__all__ = ["features"]


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


def forked(features, folder, signal_name: str, times: int) -> dict:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("forked_training.py"), features.uri, folder, signal_name, str(times)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def undisturbed(features, tmp_path_factory) -> list[list[str]]:
    """The files of a training that nobody killed, with their digests."""
    return forked(features, tmp_path_factory.mktemp("calm"), "SIGKILL", 0)["files"]


def test_killed_at_ten_random_steps_it_ends_in_the_same_bytes(features, undisturbed, tmp_path):
    rough = forked(features, tmp_path, "SIGKILL", 10)
    assert rough["signals"] == [signal.SIGKILL] * 10
    assert rough["files"] == undisturbed


def test_sigterm_leaves_a_checkpoint_of_the_step_in_hand(features, undisturbed, tmp_path):
    stopped = forked(features, tmp_path, "SIGTERM", 4)
    assert stopped["signals"] == [signal.SIGTERM] * 4
    steps = stopped["checkpoints"]
    for before, step, at in zip([0, *steps], steps, stopped["killed"], strict=False):
        assert at <= step - before <= at + 8  # it ran on for a few milliseconds before it was told
    assert stopped["files"] == undisturbed


def test_loss_that_explodes_stops_the_training_with_step_and_samples(features, tmp_path):
    with pytest.raises(
        TrainingError, match=r"found the loss [\d.]+ at step 1 \(of the samples [0-9a-f]{32}, .*\), expected"
    ):
        train_aligner.body(work(tmp_path, stop_loss=0.1), spec(), features)


def test_sample_that_gives_no_loss_is_named_and_the_last_checkpoint_stands(tmp_path):
    bad = make_features(tmp_path, poisoned=20)
    with pytest.raises(TrainingError, match=rf"found the loss nan at step \d+ \(of the samples {20:032x}") as caught:
        train_aligner.body(work(tmp_path / "run", checkpoint_every=1), spec(steps=20), bad)
    step = int(re.findall(r"at step (\d+)", str(caught.value))[0])
    found = CheckpointWriter(Folder.at(str(tmp_path / "run"))).latest()
    assert (found[0] if found else 0) == step - 1
    if found:
        assert all(np.isfinite(value).all() for value in found[1].values())


def test_held_out_sample_that_gives_no_loss_is_named(tmp_path):
    bad = make_features(tmp_path, poisoned=3)
    with pytest.raises(
        TrainingError, match=rf"no finite validation loss at step 4 \(of the held-out samples {3:032x}\)"
    ):
        train_aligner.body(work(tmp_path / "run"), spec(), bad)


def test_features_that_are_not_there_are_refused(features, tmp_path):
    with pytest.raises(InputError, match="found no features of input tokens"):
        train_aligner.body(work(tmp_path), spec(features="input", masking="none"), features)
    with pytest.raises(InputError, match="found a vision tower's features, expected a VLM's generated tokens"):
        train_aligner.body(work(tmp_path), spec(masking="none"), make_captions(tmp_path))


def test_checkpoints_stand_until_the_record_is_written(features, tmp_path):
    made = train_aligner.body(work(tmp_path), spec(), features)
    found = CheckpointWriter(Folder.at(str(tmp_path))).latest()
    assert found
    assert found[0] == 12
    made.after()
    assert CheckpointWriter(Folder.at(str(tmp_path))).latest() is None


def test_run_that_has_lost_its_lease_stops(features, tmp_path):
    found = work(tmp_path)

    def refuse() -> None:
        raise LockedError("lost")

    found.lease.lost.set()
    object.__setattr__(found.lease, "check", refuse)
    with pytest.raises(LockedError):
        train_aligner.body(found, spec(), features)


def test_optimizer_decays_matrices_alone_and_keeps_the_papers_betas():
    aligner = Aligner(AlignerConfig(6, 5, 4))
    optimizer = adamw(AlignerSpec(t5=Model(name="t5")), aligner)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    decay = {name: found[id(p)]["weight_decay"] for name, p in aligner.named_parameters()}
    assert decay == {
        "mm_projector.0.weight": 0.05, "mm_projector.0.bias": 0, "mm_projector.2.weight": 0.05,
        "mm_projector.2.bias": 0, "mm_projector.3.weight": 0,
    }  # fmt: skip
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}
    assert {group["eps"] for group in optimizer.param_groups} == {1e-8}


def test_steps_are_adamws_as_loshchilov_and_hutter_wrote_it(features, tmp_path):
    """Three steps of float64 beside plain formulas, gradients from the loss of one padded Hugging Face batch."""
    from transformers.modeling_outputs import BaseModelOutput

    job = prepared(
        (plan := spec(precision="float64", clip_grad_norm=None, steps=3, weight_decay=0.05, validation_rows=0)),
        work(tmp_path).run, FeatureStore(features), Folder.at(str(tmp_path)), Ranks("cpu"),
    )  # fmt: skip
    weights = {name: value.detach().clone() for name, value in job.aligner.named_parameters()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in weights.items()}
    losses = []
    for number, batch in enumerate(job.data.training(0, 3)):
        (share,) = batch.shares
        trained = {name: value.requires_grad_() for name, value in weights.items()}
        states = torch.func.functional_call(job.aligner, trained, (torch.from_numpy(share.x_PQ).double(),))
        x_BLD = torch.nn.utils.rnn.pad_sequence(list(states.split(share.prompts)), batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(n).long() for n in share.prompts], batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in share.targets], True, -100)
        outputs = BaseModelOutput(last_hidden_state=x_BLD)  # pyright: ignore[reportArgumentType]
        loss = job.t5.model(encoder_outputs=outputs, attention_mask=mask, labels=labels).loss
        losses.append(loss.item())
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(trained.values())), strict=True))
        lr = learning_rate(plan, number)
        for name, g in gradients.items():
            m, v = moments[name] = (0.9 * moments[name][0] + 0.1 * g, 0.999 * moments[name][1] + 0.001 * g * g)
            decayed = weights[name].detach() * (1 - lr * (0.05 if g.ndim == 2 else 0))
            m, v = m / (1 - 0.9 ** (number + 1)), v / (1 - 0.999 ** (number + 1))
            weights[name] = decayed - lr * m / (v.sqrt() + 1e-8)
    history = train(job, Ranks("cpu"), lambda event: None, lambda: False)
    np.testing.assert_allclose(history.training, losses, rtol=1e-6)  # HF's norms are float32
    for name, value in job.aligner.named_parameters():
        torch.testing.assert_close(value.detach(), weights[name], rtol=1e-4, atol=1e-7)


def test_captions_are_read_behind_the_picture_as_hugging_faces_whole_t5_would(tmp_path):
    """The decoder reads [picture rows ; the encoder's states of the shown words], one sample at a time."""
    from transformers import T5ForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    captions = make_captions(tmp_path)
    plan = spec(
        features="input", masking="words", max_target_tokens=32, steps=1, validation_rows=0, precision="float32"
    )
    job = prepared(plan, work(tmp_path).run, FeatureStore(captions), Folder.at(str(tmp_path / "run")), Ranks("cpu"))
    whole = T5ForConditionalGeneration.from_pretrained(weights_folder() / "mini-t5", dtype=torch.float32).eval()
    (batch,) = job.data.training(0, 1)
    (share,) = batch.shares
    total, count = 0.0, 0
    with torch.no_grad():
        for x_LQ, words, target in zip(
            torch.from_numpy(share.x_PQ).split(share.prompts), share.words, share.targets, strict=True
        ):
            states = torch.cat([job.aligner(x_LQ), whole.encoder(torch.tensor([words])).last_hidden_state[0]])
            outputs = BaseModelOutput(last_hidden_state=states[None])  # pyright: ignore[reportArgumentType]
            total += whole(encoder_outputs=outputs, labels=torch.tensor([target])).loss.item() * len(target)
            count += len(target)
    history = train(job, Ranks("cpu"), lambda event: None, lambda: False)
    assert history.training[0] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("norm", ["t5", "default", "none"])
def test_norm_starts_as_the_t5_encoders_or_as_ones(features, tmp_path, norm):
    train_aligner.body(work(tmp_path), spec(steps=0, norm=norm), features)
    weights = load_file(tmp_path / "aligner.safetensors")
    theirs = load_file(weights_folder() / "mini-t5" / "model.safetensors")["encoder.final_layer_norm.weight"].float()
    found = weights.get("mm_projector.3.weight")
    if norm == "none":
        assert found is None
    else:
        np.testing.assert_array_equal(found, theirs if norm == "t5" else np.ones_like(theirs))


def test_gradients_of_micro_batches_are_those_of_the_batch(features, tmp_path):
    whole = train_aligner.body(work(tmp_path / "whole"), spec(precision="float64"), features)
    parts = train_aligner.body(work(tmp_path / "parts", micro_batch=3), spec(precision="float64"), features)
    assert parts.stats["final_training_loss"] == whole.stats["final_training_loss"]
    one, two = (load_file(tmp_path / name / "aligner.safetensors") for name in ("whole", "parts"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-6, atol=1e-9)


def test_best_weights_are_those_of_the_lowest_validation_loss(features, tmp_path):
    changes = {"lr": 0.3, "validation_every": 2, "steps": 24}
    last = train_aligner.body(work(tmp_path / "last"), spec(**changes), features)
    best = train_aligner.body(work(tmp_path / "best", keep_checkpoints=1), spec(**changes, weights="best"), features)
    step = best.stats["best_step"]
    assert step == last.stats["best_step"] < 24
    there = train_aligner.body(work(tmp_path / "there"), spec(**{**changes, "steps": step}), features)
    assert best.files[0].sha256 == there.files[0].sha256 != last.files[0].sha256


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
