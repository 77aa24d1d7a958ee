"""Where a training is drawn: TensorBoard's event files, and runs of Weights & Biases."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import wandb
from meters import Killed
from small_training import features, spec, work

from thinkdiff.schemas.errors import SpecError
from thinkdiff.tasks.train_aligner import train_aligner

__all__ = ["features"]


def test_curves_are_the_records_that_tensorboardx_would_write(features, tmp_path):
    from tensorboardX.record_writer import RecordWriter

    made = train_aligner.body(work(tmp_path, tracker="tensorboard"), spec(steps=20), features)
    (entry,) = [entry for entry in made.files if entry.path.startswith("tensorboard/")]
    assert not entry.content
    events = read_events((tmp_path / entry.path).read_bytes())
    losses = json.loads((tmp_path / "losses.json").read_bytes())
    told = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    assert told[20, "loss"] == pytest.approx(losses["training"][19])
    assert told[8, "validation loss"] == pytest.approx(losses["validation"][1][1])
    assert {"tokens per second", "samples per second", "utilisation", "padding avoided"} <= {tag for _, tag in told}
    text = next(v for e in events for v in e.summary.value if v.tag == "read back/text_summary")
    assert b"| the VLM | the T5 |" in text.tensor.string_val[0]
    again = tmp_path / "again"
    writer = RecordWriter(str(again))  # the same records by tensorboardX's own writer
    for event in events:
        writer.write(event.SerializeToString())
    writer.close()
    assert again.read_bytes() == (tmp_path / entry.path).read_bytes()


def read_events(data: bytes) -> list:
    """The events of a file of TFRecords."""
    from tensorboardX.proto import event_pb2

    events, at = [], 0
    while at < len(data):
        (length,) = struct.unpack("<Q", data[at : at + 8])
        events.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + length]))  # pyright: ignore[reportAttributeAccessIssue]
        at += 16 + length
    return events


def test_training_goes_on_in_its_run_of_wandb(features, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    folder = tmp_path / ("a" * 32)
    with pytest.raises(Killed):
        train_aligner.body(work(folder, die_at=15, tracker="wandb"), spec(steps=20), features)
    train_aligner.body(work(folder, tracker="wandb"), spec(steps=20), features)
    files = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{'a' * 32}.wandb"))
    told: dict[int, dict[str, Any]] = {}
    for record in (record for file in files for record in wandb_records(file.read_bytes())):
        if items := {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
        }:
            told.setdefault(items["_step"], {}).update(items)
    losses = json.loads((folder / "losses.json").read_bytes())
    assert {step: told[step]["loss"] for step in (10, 20)} == {step: losses["training"][step - 1] for step in (10, 20)}
    assert {step: told[step]["validation loss"] for step, _ in losses["validation"]} == dict(losses["validation"])
    assert any("| the VLM | the T5 |" in page.read_text() for page in tmp_path.glob("wandb/*/files/media/html/*"))


def wandb_records(data: bytes) -> Iterator[Any]:
    """The records of a file of wandb: after 7 bytes, LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record: Any = wandb_internal_pb2
            yield record.Record.FromString(parts)
            parts = b""


def test_tracker_that_is_not_installed_or_lets_no_one_in_is_told_in_a_sentence(features, tmp_path, monkeypatch):
    wandb.teardown()  # it reads its environment once
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with pytest.raises(SpecError, match=r"found wandb not willing to begin .*WANDB_MODE=offline"):
        train_aligner.body(work(tmp_path / "a", tracker="wandb"), spec(), features)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SpecError, match=r"found no package wandb, expected it\. Install"):
        train_aligner.body(work(tmp_path / "b", tracker="wandb"), spec(), features)
