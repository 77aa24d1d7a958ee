"""Two users of the service of deploy/up.sh: the same run at once, two runs on one GPU slot, holders that are killed.

    python tests/bench/two_users.py --folder /tmp/users --kills 3

As root, on Linux. Both users start `thinkdiff/pipeline` on the miniature at the same moment. Printed are who made what,
how long the other waited, whether anything was made twice or lies in the bucket that a single run does not leave, and
whether two holders of the slot ever overlapped; then the seconds after `kill -9` of a holder until the one that waits
has the slot, or the artifact's lease. Exit code 1 when one of these is not as it should be.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import served
from served import SIZES, Service, digest, family, keys, parameters, records
from test_e2e_deploy import TASKS

USER = Path(__file__).resolve().parent.parent / "slot_user.py"
ENGINE = "transformers"  # the quickest to start
WRONG: list[str] = []


def check(right: bool, what: str) -> None:
    """Notes and prints what is not as it should be."""
    if not right:
        WRONG.append(what)
        print("WRONG:", what, flush=True)


def seconds(iso: str) -> float:
    """A time of the API, in seconds."""
    return datetime.fromisoformat(iso.replace("Z", "+00:00")).timestamp()


def together(service: Service, *given: str) -> list[str]:
    """Starts runs at once and waits until all have ended; their ids."""
    began = time.monotonic()
    with ThreadPoolExecutor(len(given)) as pool:
        runs = list(pool.map(lambda one: served.start(service, one), given))
    for run in runs:
        while (now := served.state(service, run)) is None or now[0] not in ("Completed", "Failed", "Crashed"):
            assert time.monotonic() - began < 900, f"{run} has not ended: {now}"
            time.sleep(1)
        assert now[0] == "Completed", f"{run} ended in {now}"
    return runs


def tasks(service: Service, run: str) -> list[dict[str, Any]]:
    """The tasks of a run: name, state, begin, end, and what they logged with the time."""
    wanted = {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC"}
    asked, logs = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}, list[dict[str, Any]]()
    while page := service.ask("/logs/filter", asked | {"offset": len(logs)}):
        logs += page
    return [
        {
            "name": one["name"].rsplit("-", 1)[0], "state": one["state"]["name"],
            "begin": seconds(one["start_time"]), "end": seconds(one["end_time"]),
            "said": [(seconds(log["timestamp"]), log["message"]) for log in logs if log["task_run_id"] == one["id"]],
        }
        for one in service.ask("/task_runs/filter", wanted)
        if not one["name"].startswith("plan-")
    ]  # fmt: skip


def said(task: dict[str, Any], words: str) -> float | None:
    """When a task first said something."""
    return next((when for when, line in task["said"] if words in line), None)


def same_run(service: Service) -> None:
    """One user alone, then two at once, each time in a root of its own."""
    roots = [f"s3://thinkdiff/{name}" for name in ("alone", "both")]
    together(service, parameters(roots[0], engine=ENGINE))
    began = time.monotonic()
    runs = together(service, *[parameters(roots[1], engine=ENGINE)] * 2)
    took, made = time.monotonic() - began, records(roots[1])
    by_user = [tasks(service, run) for run in runs]
    print(f"the same run twice, {took:.0f} s\n| stage | made by | the other waited, s |\n|---|---|---|")
    for position, name in enumerate(TASKS):
        pair = [user[position] for user in by_user]
        states = sorted(task["state"] for task in pair)
        check(states == ["Cached", "Completed"], f"{name} ended in {states}")
        maker, other = sorted(pair, key=lambda task: task["state"] != "Completed")
        waits = said(other, "waits for process") is not None
        waited = f"{other['end'] - other['begin']:.1f}" if waits else "not at all: it was there"
        print(f"| {name} | user {pair.index(maker) + 1} | {waited} |", flush=True)
    makers = [record["provenance"]["flow_run"] for record in made.values()]
    completed = [sum(task["state"] == "Completed" for task in user) for user in by_user]
    check([makers.count(run) for run in runs] == completed, f"records name {makers}, tasks {completed}")
    left = [{key for key in keys(root) or () if not key.startswith("data/")} for root in roots]
    check(left[0] == left[1], f"other objects than of one user: {sorted(left[0] ^ left[1])[:5]}")
    found = [{name: digest(root, name, record) for name, record in records(root).items()} for root in roots]
    check(found[0] == found[1], "other digests than of one user")
    print(f"objects: {len(left[1])}, of one user {len(left[0])}", flush=True)


def one_slot(service: Service) -> None:
    """Two runs that share their parents and differ in their aligner, on one slot."""
    root = "s3://thinkdiff/slot"
    given = [parameters(root, SIZES | {"aligner.seed": seed}, gpu_slot="gpu", engine=ENGINE) for seed in (1, 2)]
    began = time.monotonic()
    runs = together(service, *given)
    print(f"two runs on one slot, {time.monotonic() - began:.0f} s\n| user | stage | state | waited for a run, s | "
          "waited for the slot, s | held it, s |\n|---|---|---|---|---|---|")  # fmt: skip
    held = []
    for user, run in enumerate(runs, 1):
        for task in tasks(service, run):
            asked, got = said(task, "waits for a slot"), said(task, "has a slot")
            waits = said(task, "waits for process")
            parent = f"{(asked or task['end']) - waits:.1f}" if waits else ""
            slot, span = (f"{got - asked:.1f}", f"{task['end'] - got:.1f}") if asked and got else ("", "")
            if got:
                held.append((got, task["end"], user, task["name"]))
            print(f"| {user} | {task['name']} | {task['state']} | {parent} | {slot} | {span} |", flush=True)
    held.sort()
    for (_, end, *one), (begin, _, *two) in pairwise(held):
        check(end <= begin + 0.5, f"{one} and {two} held the slot together for {end - begin:.2f} s")
    makers = [record["provenance"]["flow_run"] for record in records(root).values()]
    check(len(makers) == 12, f"{len(makers)} artifacts, not four that both share and four of each")
    print(f"{len(held)} holders in turn; of {len(makers)} artifacts {[makers.count(run) for run in runs]} by user")


def killed(service: Service, folder: Path, slot: str, number: int) -> float:
    """Seconds from the kill of a holder, of a slot or without one of a lease, until the one that waits computes."""
    root = folder / f"killed-{slot}-{number}"
    root.mkdir(parents=True)
    names = ("holds", "holds" if slot == "-" else "waits")
    limit = slot if slot == "-" else f"{slot}-{number}"
    if slot != "-":
        service.prefect("gcl", "create", limit, "--limit", "1")
    logs = [root / f"{place}.log" for place in ("first", "second")]
    users = []
    for name, log in zip(names, logs, strict=True):
        with log.open("w") as file:
            users.append(
                subprocess.Popen([sys.executable, str(USER), str(root), limit, name], stdout=file, stderr=file)
            )
        wanted = "waits for" if users[1:] else ""
        while not (wanted in log.read_text() if wanted else (root / "holds.computes").exists()):
            assert users[-1].poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
    time.sleep(5)
    for process in family(users[0].pid):
        process.kill()
    began = time.time()
    mark = root / f"{names[1]}.computes"
    while not mark.exists() or mark.stat().st_mtime < began:
        assert users[1].poll() is None, logs[1].read_text()[-2000:]
        time.sleep(0.05)
    took = time.time() - began
    (root / f"{names[1]}.go").touch()
    check(users[1].wait(120) == 0, logs[1].read_text()[-500:])
    users[0].wait()
    return took


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=3)
    arguments = parser.parse_args()
    served.isolated()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with served.served(arguments.folder) as service:
        same_run(service)
        one_slot(service)
        for slot, what in (("-", "the artifact's lease"), ("slot", "the slot")):
            with ThreadPoolExecutor(arguments.kills) as pool:
                calls = [pool.submit(killed, service, arguments.folder, slot, i) for i in range(arguments.kills)]
                took = sorted(call.result() for call in calls)
            print(f"{what} of a killed holder: {', '.join(f'{one:.1f}' for one in took)} s", flush=True)
            check(took[-1] < 75, f"{what} came after {took[-1]:.1f} s")
    print(f"{len(WRONG)} things wrong")
    sys.exit(bool(WRONG))


if __name__ == "__main__":
    main()
