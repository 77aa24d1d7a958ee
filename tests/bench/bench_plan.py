"""Memory and time of the extraction's driver for many rows: the real stage with an engine that has no model.

    python tests/bench/bench_plan.py [--rows 10000 100000 1000000] [--engines 1] [--shard-size 256] [--image-shard 1000]

Each number of rows with a picture has a process of its own, in which the stage runs in a flow: plan, calls on the task
runner, rows and pictures read, shards committed, the record written; and then a flow that finds it cached. Engines are
threads of that process, so its memory is the driver's and the workers' together. What is not real is the engine
(`keyed_engine`) and the size of the features (2 tokens of 4 channels). Printed are the largest resident set (VmHWM)
when the stage starts and when it has ended, the size of the artifact's record and the seconds that reading it takes,
requests to the Prefect server, and by how much its database (SQLite) has grown.

For the bookkeeping of 100 M rows in 400,000 shards without 100 M rows: `--rows 400000 --shard-size 1 --image-shard 4`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROWS = (10_000, 100_000, 1_000_000)


def largest() -> float:
    """The largest resident set of this process so far, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


class Sent:
    """Counts the requests that this process sends over HTTP, which all go to the Prefect server."""

    def __init__(self) -> None:
        import httpx

        self.count = 0
        for kind in (httpx.Client, httpx.AsyncClient):
            kind.send = self.counting(kind.send)  # pyright: ignore[reportAttributeAccessIssue]

    def counting(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """The same method, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return send(*args, **kwargs)

        return counted


def database() -> int:
    """Bytes of the server's database, once its log is written into it."""
    file = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    with closing(sqlite3.connect(file, timeout=60)) as opened:
        opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file.stat().st_size


def build(base: str, rows: int, image_shard: int) -> None:
    """Writes the pictures, and a model folder that says how wide states are."""
    from keyed_engine import WIDTH
    from many_images import FAILING, write_images

    from thinkdiff.storage.records import write_record
    from thinkdiff.storage.root import Folder

    captions = rows + (rows - 1) // (FAILING - 1)
    images = write_images(Folder(f"{base}/fetch_images/{'0' * 32}"), captions, image_shard)
    assert images.counts["images"] == rows
    write_record(images)
    Folder(f"{base}/models/none").write("config.json", json.dumps({"hidden_size": WIDTH}).encode())


def drive(base: str, rows: int, engines: int, shard_size: int) -> None:
    """Runs the stage, and prints what it took."""
    import keyed_engine
    from prefect import flow

    from thinkdiff.schemas.artifact import Execution, Model
    from thinkdiff.schemas.features import FeatureSet, FeatureSpec
    from thinkdiff.schemas.images import ImageSet
    from thinkdiff.storage.records import read_record
    from thinkdiff.storage.root import Folder
    from thinkdiff.tasks.extract_features import extract_features

    keyed_engine.install()
    sent = Sent()
    spec = FeatureSpec(
        vlm=Model(name="none"), max_tokens=2, compute_dtype="float32", dtype="float32", shard_size=shard_size
    )
    run = Execution(root=base, model_dirs=(f"{base}/models",), engines=engines, device="cpu")
    images = read_record(Folder(f"{base}/fetch_images/{'0' * 32}"), ImageSet)
    assert images is not None

    @flow(name="bench-plan", persist_result=False)
    def extraction() -> dict[str, float]:
        before, began, used = (sent.count, database(), largest()), time.monotonic(), time.process_time()
        outcome = extract_features(run, spec, images)
        return {
            f"{outcome.state.lower()}_s": round(time.monotonic() - began, 1),
            "cpu_s": round(time.process_time() - used, 1),
            "requests": sent.count - before[0],
            "database_kib": round((database() - before[1]) / 1024),
            "before_mib": round(before[2], 1),
            "after_mib": round(largest(), 1),
        }

    made, cached = extraction(), extraction()
    (name,) = (Folder(base) / "extract_features").children()
    folder = Folder(base) / "extract_features" / name
    began = time.monotonic()
    artifact = read_record(folder, FeatureSet)
    parsed = time.monotonic() - began
    assert artifact is not None
    assert artifact.counts["rows"] == rows
    print(json.dumps({"rows": rows, "shards": artifact.counts["shards"], "engines": engines, "made": made}))
    told = {"files": len(artifact.files), "record_mib": round(folder.size("artifact.json") / 2**20, 2)}
    print(json.dumps({**told, "read_record_s": round(parsed, 2), "cached": cached}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--image-shard", type=int, default=1000)
    parser.add_argument("--only", choices=("build", "drive"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only == "build":
        build(arguments.folder, arguments.rows[0], arguments.image_shard)
    elif arguments.only == "drive":
        drive(arguments.folder, arguments.rows[0], arguments.engines, arguments.shard_size)
    else:
        for rows in arguments.rows:
            base = tempfile.mkdtemp(prefix="bench-plan-")
            own = {"PREFECT_HOME": f"{base}/prefect", "PREFECT_LOGGING_LEVEL": "WARNING"}
            quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
            slow = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
            for only in ("build", "drive"):
                words = ["--rows", str(rows), "--engines", str(arguments.engines), "--only", only, "--folder", base]
                words += ["--shard-size", str(arguments.shard_size), "--image-shard", str(arguments.image_shard)]
                subprocess.run([sys.executable, __file__, *words], check=True, env=os.environ | own | quiet | slow)
            shutil.rmtree(base)


if __name__ == "__main__":
    main()
