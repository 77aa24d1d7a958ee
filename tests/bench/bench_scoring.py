"""Our own share of scoring, and its memory: `score_cobsat` with the VLM's judge on an engine of constant cost.

    python tests/bench/bench_scoring.py                                  20,000 small pictures, and 2,000
    python tests/bench/bench_scoring.py --per-task 25 --side 512         500 pictures of the paper's size

The judge is that of a VLM (its questions, digests, padding, answers kept under the root); in place of vLLM stands an
engine that waits a given time for every question and names an option. So the processor time of the calling thread is
ours, all but nothing: reading and checking tars, decoding, asking, keeping answers, verdicts, tables, counting. The
share is that time over itself and what was waited. Each size runs in a process of its own, whose largest resident set
(VmHWM) is read before the stage and when it has ended. Then the stage runs again on the answers that are kept.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from meters import Meter
from PIL import Image
from small_benchmark import REAL
from small_media import asked_rows
from store_artifacts import artifact_of

from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.scores import ScoreSpec, VlmJudge
from thinkdiff.storage.media_files import MediaWriter
from thinkdiff.storage.root import Folder
from thinkdiff.storage.score_tables import PROMPTS, AskedPrompt, write_rows
from thinkdiff.tasks import judge_vlm
from thinkdiff.tasks.qwen_chat import Request
from thinkdiff.tasks.score_cobsat import score_cobsat
from thinkdiff.tasks.step import Work

PART = 128  # pictures of a tar, as generate_media has them


class ConstantEngine:
    """Waits for every question, and names an option that the question's key gives."""

    seconds = waited = thread = 0.0
    asked = 0

    def generate(self, requests: Sequence[Request]) -> list[SimpleNamespace]:
        """An answer to each request."""
        began, own = time.perf_counter(), time.thread_time()
        time.sleep(self.seconds * len(requests))
        found = [SimpleNamespace(key=one.key, text=str(int(one.key[:4], 16) % 10 + 1)) for one in requests]
        ConstantEngine.waited += time.perf_counter() - began
        ConstantEngine.thread += time.thread_time() - own
        ConstantEngine.asked += len(requests)
        return found

    def close(self) -> None: ...


class ConstantJudge(judge_vlm.AskingJudge):
    """A VLM's judge on that engine."""

    engine: Any = ConstantEngine()


def media_set(folder: Folder, per_task: int, side: int) -> MediaSet:
    """A picture of its own for every prompt of ten tasks with two and four shots."""
    rows, rng = asked_rows(REAL.model_copy(update={"per_task": per_task})), np.random.default_rng(0)
    files, writer = [write_rows(folder, PROMPTS, AskedPrompt, rows)], MediaWriter(folder)
    for part in range(0, len(rows), PART):
        pictures = []
        for row in rows[part : part + PART]:
            sink, rough = io.BytesIO(), rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC).save(sink, "PNG")
            pictures.append((row.name, sink.getvalue()))
        files += writer.commit("aligned", part // PART, pictures)
    made = artifact_of(MediaSet, folder, files, "generate_media")
    return made.model_copy(update={"counts": {"prompts": len(rows)}, "stats": {"methods": ["aligned"]}})


def peak() -> float:
    """MB of the largest resident set so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def score(folder: str, media: MediaSet, name: str) -> dict[str, float]:
    """Runs the stage once. Returns seconds waited, and of our thread, the questions asked, and the peaks in MB."""
    Folder.at(f"{folder}/judge").write("config.json", b"{}")
    judge = VlmJudge(model=Model(name=f"{folder}/judge"))
    run = Execution(root=folder, device="cpu", threads=1)
    lease: Any = SimpleNamespace(check=bool)
    work = Work(Folder.at(f"{folder}/{name}"), run, lease, logging.getLogger("bench"))
    object.__setattr__(work, "progress", lambda total, unit: Meter())
    ConstantEngine.waited = ConstantEngine.thread = ConstantEngine.asked = 0
    before, began, own = peak(), time.perf_counter(), time.thread_time()
    made = score_cobsat.body(work, ScoreSpec(judge=judge, families=REAL.families), media)
    thread, wall = time.thread_time() - own - ConstantEngine.thread, time.perf_counter() - began
    return {
        "pictures": made.counts["pictures"], "asked": ConstantEngine.asked, "waited": ConstantEngine.waited,
        "own": thread, "wall": wall, "before": before, "peak": peak(),
    }  # fmt: skip


def child(folder: str, seconds: float) -> None:
    """One size in a process of its own: scored, and scored again."""
    import torch  # noqa: F401  its memory is not the stage's

    judge_vlm.AskingJudge = ConstantJudge
    ConstantEngine.seconds = seconds
    media = MediaSet.model_validate_json(Path(folder, "media.json").read_text())
    print(json.dumps([score(folder, media, name) for name in ("first", "again")]))


def measured(per_task: int, side: int, seconds: float) -> list[dict[str, float]]:
    """Makes the pictures, and scores them in a child."""
    with tempfile.TemporaryDirectory() as folder:
        media = media_set(Folder.at(f"{folder}/media"), per_task, side)
        Path(folder, "media.json").write_text(media.model_dump_json())
        command = [sys.executable, __file__, "--child", folder, "--seconds", str(seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--per-task", type=int, nargs="+", default=[1000, 100])
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--seconds", type=float, default=0.02, help="that the judge takes for a question")
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.seconds)
        return
    for per_task in options.per_task:
        first, again = measured(per_task, options.side, options.seconds)
        share = first["own"] / (first["own"] + first["waited"])
        print(
            f"{first['pictures']} pictures of {options.side}x{options.side}, {first['asked']} questions: ours "
            f"{first['own'] / first['pictures'] * 1e6:.0f} us a picture, {share:.2%} beside "
            f"{first['waited'] / first['asked'] * 1e3:.1f} ms a question ({first['wall']:.0f} s); "
            f"memory {first['before']:.0f} -> {first['peak']:.0f} MB; again {again['own']:.1f} s, "
            f"{again['asked']} questions, {again['peak']:.0f} MB"
        )


if __name__ == "__main__":
    main()
