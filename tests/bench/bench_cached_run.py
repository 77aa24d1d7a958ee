"""What a fully cached `thinkdiff run mini` costs above a bare Prefect flow of as many empty tasks, in CPU seconds.

    python tests/bench/bench_cached_run.py --root runs --pairs 5

Both run in fresh processes, interleaved; the difference is a median over pairs with a bootstrap 95 % interval. The
embedded server of each run is a child of it and is counted. Run `thinkdiff run mini --root runs` first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from medians import median

BARE = """
import os
from prefect import flow, task
@task
def empty(): return 1
@flow(name="bare", persist_result=False)
def bare():
    for _ in range(9): empty()  # the plan and eight calls of stages
bare()
"""
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


def cost(command: list[str]) -> tuple[float, float, str]:
    """CPU seconds (children too), wall seconds and standard output of a command."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, env=os.environ | SETTINGS, capture_output=True, text=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{command[:4]} failed:\n{done.stderr[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", default="runs")
    parser.add_argument("--recipe", default="mini")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    ours = [sys.executable, "-m", "thinkdiff.flows.cli", "run", arguments.recipe, "--root", arguments.root, "--json"]
    bare = [sys.executable, "-c", BARE]
    extra, walls = [], []
    for pair in range(arguments.pairs):
        bare_cpu, bare_wall, _ = cost(bare)
        our_cpu, our_wall, output = cost(ours)
        states = {line["state"] for line in json.loads(output)["stages"]}
        if states != {"Cached"}:
            raise SystemExit(f"found states {states}, expected all Cached: run the recipe once first")
        extra.append(our_cpu - bare_cpu)
        walls.append(our_wall - bare_wall)
        print(
            f"pair {pair}: bare {bare_cpu:.1f} CPU s ({bare_wall:.1f} s), ours {our_cpu:.1f} CPU s ({our_wall:.1f} s)"
        )
    print(f"extra CPU: median {median(extra)} s")
    print(f"extra wall: median {statistics.median(walls):.2f} s; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
