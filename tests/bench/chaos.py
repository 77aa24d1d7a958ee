"""Breaks the service of deploy/up.sh under runs of the miniature, does what a user would do, and compares every digest.

    pip install "prefect-ray>=0.6"      # without it no Ray node is killed
    python tests/bench/chaos.py --folder /tmp/chaos --faults 50 --seed 0

As root, on Linux. Undisturbed runs come first. Then runs with fresh roots are hit by up to five faults each, at drawn
moments of drawn stages. After a fault the user calls `up.sh` when a part is down or a run ended badly, gives a full
disk its room back, and starts the run again when it ended in `Failed` or `Crashed` or stays as it is for five minutes;
no more. A fault is recovered from when the stage that it hit is whole, the last stage when the run is `Completed`. Each
is a line of `faults.jsonl`; a Markdown table comes last. Exit code 1 when a digest differs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import served
from served import Service, digest, family, keys, parameters, part, records
from soak_ray import end as end_node
from soak_ray import node, working
from test_e2e_deploy import TASKS

KINDS = {
    "worker killed, with its runs": 6, "run's process killed": 9, "server killed": 6, "PostgreSQL killed": 6,
    "SeaweedFS killed": 6, "frozen for 20 s": 6, "disk full for 20 s": 4, "network gone for 30 s": 4,
    "Ray node killed": 3,
}  # fmt: skip
PARTS = {"server killed": "server", "PostgreSQL killed": "postgres", "SeaweedFS killed": "s3"}
RAY = "Ray node killed"
ENGINES = ("vllm", "transformers")  # every fifth run has the first, which starts a process of its own
SPANS = {"frozen for 20 s": 20.0, "disk full for 20 s": 20.0, "network gone for 30 s": 30.0}
ENDED = ("Completed", "Failed", "Crashed", "Cancelled")
PER_RUN = 5
GIVES_UP, STUCK = 600.0, 300.0


@dataclass
class Fault:
    """What is done when, and what came of it. `position` is a number of artifacts that are whole, of TASKS' order."""

    kind: str
    position: int
    moment: float
    target: str = ""
    run: int = 0
    before: int = 0
    stage: str = ""
    saw: list[str] = field(default_factory=list)
    did: list[str] = field(default_factory=list)
    seconds: float = 0.0
    again: list[str] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)


def drawn(count: int, kinds: list[str], rng: random.Random) -> list[list[Fault]]:
    """The faults by run, in the order of their positions; kinds and positions as even as they can be."""
    pool = [kind for kind in kinds for _ in range(KINDS[kind])]
    chosen = [kind for _ in range(count // len(pool) + 1) for kind in rng.sample(pool, len(pool))][:count]
    places = [place for _ in range(count // len(TASKS) + 1) for place in rng.sample(range(len(TASKS)), len(TASKS))]
    faults = [Fault(kind, place, rng.random()) for kind, place in zip(chosen, places, strict=False)]
    for fault in faults:
        if fault.kind.startswith("frozen"):
            fault.target = rng.choice(["run", "worker", "server", "postgres", "s3"])
        if fault.kind == RAY:
            fault.position = 2
    runs = [faults[first : first + PER_RUN] for first in range(0, count, PER_RUN)]
    return [sorted(run, key=lambda fault: (fault.position, fault.kind != RAY)) for run in runs]


class Chaos:
    """The service, the run of the moment, and the user."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service, self.folder = service, folder
        self.gaps, self.expected = dict[str, list[float]](), dict[str, dict[str, str]]()
        self.engine = ENGINES[0]
        self.nodes: list[psutil.Process] = []
        self.root = self.given = self.flow_run = ""

    def begin(self, number: int, ray: bool) -> None:
        """Starts a run with a root of its own."""
        self.root = f"s3://thinkdiff/chaos{number}"
        self.engine = ENGINES[number % 5 != 0]
        more: dict[str, Any] = {"checkpoint_every": 10, "engine": self.engine}
        if ray:
            more |= {"runner": "ray", "runner_address": self.cluster(), "engines": 2}
        self.given = parameters(self.root, **more)
        self.flow_run = served.start(self.service, self.given)

    def whole(self) -> int | None:
        """How many artifacts of the root are whole; none while the bucket does not answer."""
        found = keys(self.root)
        return None if found is None else sum(key.endswith("/artifact.json") for key in found)

    def ended(self) -> bool:
        """Has the run ended?"""
        now = served.state(self.service, self.flow_run)
        return now is not None and now[0] in ENDED

    def calm(self, number: int) -> None:
        """The undisturbed run of an engine: when its artifacts were whole, and their digests."""
        self.begin(number, ray=False)
        began, gaps = time.monotonic(), list[float]()
        while not self.ended() or len(gaps) < (self.whole() or 0):
            for _ in range(len(gaps), self.whole() or len(gaps)):
                gaps.append(time.monotonic() - began)
                began = time.monotonic()
            time.sleep(0.1)
        self.gaps[self.engine], self.expected[self.engine] = gaps, self.digests()
        assert len(gaps) == len(TASKS), served.state(self.service, self.flow_run)
        told = " ".join(f"{gap:.1f}" for gap in gaps)
        print(f"undisturbed, {self.engine}: seconds between artifacts {told}", flush=True)

    def digests(self) -> dict[str, str]:
        """Of the artifacts of the root."""
        return {name: digest(self.root, name, record) for name, record in records(self.root).items()}

    def cluster(self) -> str:
        """Two Ray nodes, started where they do not run; their address."""
        address = "127.0.0.1:6390"
        more = ("--head", "--node-ip-address=127.0.0.1", "--port=6390", "--include-dashboard=false")
        for number, options in enumerate((more, (f"--address={address}",))):
            if number < len(self.nodes) and self.nodes[number].is_running():
                continue
            started = node(self.folder / f"ray{number}.log", *options)
            self.nodes[number : number + 1] = [started]
            time.sleep(12)
        return address

    def strike(self, fault: Fault) -> Callable[[], object] | None:
        """Waits for the fault's moment and does it. Returns what undoes it, or none where nothing is to undo."""
        end = time.monotonic() + GIVES_UP
        while (now := self.whole()) is None or now < fault.position:
            if self.ended():
                self.look(fault)
            assert time.monotonic() < end, f"{now} artifacts, never {fault.position}"
            time.sleep(0.1)
        if now == fault.position:
            time.sleep(fault.moment * self.gaps[self.engine][fault.position])
        while "run" in (fault.target, fault.kind[:3]) and not self.run_processes() and not self.ended():
            time.sleep(0.1)
        fault.before = min(self.whole() or now, len(TASKS) - 1)
        fault.stage = TASKS[fault.before]
        if fault.kind == RAY:
            return self.kill_node()
        span = SPANS.get(fault.kind, 0.0)
        if fault.kind.startswith("network"):
            return self.cut(span)
        if fault.kind.startswith("disk"):
            return self.fill(span)
        if fault.kind.startswith("frozen"):
            victims = self.run_processes() if fault.target == "run" else part(self.service, fault.target)
            return self.freeze(victims, span)
        if fault.kind == "run's process killed":
            victims = self.run_processes()[:1]
        else:
            victims = part(self.service, PARTS.get(fault.kind, "worker"))
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        return None

    def run_processes(self) -> list[psutil.Process]:
        """The processes of the run: the flow's own first."""
        below = family(part(self.service, "worker")[0].pid)[1:] if part(self.service, "worker") else []
        flows = [one for one in below if "prefect.engine" in " ".join(one.cmdline())]
        return family(flows[0].pid) if flows else []

    def kill_node(self) -> None:
        """Kills the node beside the head once it is at work, or the stage has ended."""
        while not working(self.nodes[1]) and self.whole() == 2 and not self.ended():
            time.sleep(0.1)
        end_node(self.nodes[1])

    def cut(self, seconds: float) -> None:
        """No packet goes through the namespace's network: none between a run, the bucket, the server, its database."""
        subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
        time.sleep(seconds)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    def fill(self, seconds: float) -> Callable[[], object]:
        """Fills the disk below PostgreSQL, SeaweedFS and the logs. The user will find it and make room."""
        filler = self.service.state / "filler"
        room = shutil.disk_usage(self.service.state).free
        subprocess.run(["fallocate", "-l", str(room + (1 << 30)), str(filler)], check=False, stderr=subprocess.DEVNULL)
        with contextlib.suppress(OSError), filler.open("ab") as file:
            while True:
                file.write(bytes(4096))
        time.sleep(seconds)
        return filler.unlink

    def freeze(self, victims: list[psutil.Process], seconds: float) -> None:
        """Stops processes and lets them go on."""
        for sent, pause in ((signal.SIGSTOP, seconds), (signal.SIGCONT, 0)):
            for victim in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.send_signal(sent)
            time.sleep(pause)

    def look(self, fault: Fault) -> None:
        """The user looks: at the parts, and at the run, which is started again when it ended badly."""
        now = served.state(self.service, self.flow_run)
        bad = now is not None and now[0] in ("Failed", "Crashed", "Cancelled")
        if bad or not all(part(self.service, name) for name in ("postgres", "s3", "server", "worker")):
            done = self.service.up()
            if done.returncode:
                fault.did.append(f"up.sh: {done.stderr.strip()[-200:]}")
            elif len(done.stdout.splitlines()) > 1:  # it started something
                fault.did.append("up.sh")
        if now is not None and bad:
            fault.saw.append(f"{now[0]}: {now[1]}"[:300])
            self.again(fault)

    def again(self, fault: Fault) -> None:
        """Starts the same run once more."""
        if any(not one.is_running() for one in self.nodes):
            self.cluster()
        fault.whole.append(self.whole() or 0)
        self.flow_run = served.start(self.service, self.given)
        fault.again.append(self.flow_run)

    def recover(self, fault: Fault, began: float) -> None:
        """Until the stage that was hit is whole."""
        moved = time.monotonic()
        while (self.whole() or 0) <= fault.before:
            self.look(fault)
            if time.monotonic() - moved > STUCK:
                fault.saw.append(f"stays {served.state(self.service, self.flow_run)}")
                self.again(fault)
                moved = time.monotonic()
            assert time.monotonic() - began < GIVES_UP, f"not recovered from {fault}"
            time.sleep(0.5)
        fault.seconds = round(time.monotonic() - began, 1)

    def finish(self, fault: Fault) -> None:
        """Until the run has ended well."""
        end = time.monotonic() + GIVES_UP
        while (now := served.state(self.service, self.flow_run)) is None or now[0] != "Completed":
            self.look(fault)
            assert time.monotonic() < end, f"the run stays {now} after {fault}"
            time.sleep(0.5)

    def unexpected(self, faults: list[Fault]) -> list[str]:
        """What is not as it should be at the end of a run: digests, and finished stages that were not `Cached`."""
        found, expected = self.digests(), self.expected[self.engine]
        wrong = [f"{name}: {found.get(name)} is not {digest}" for name, digest in expected.items()
                 if found.get(name) != digest]  # fmt: skip
        wrong += [f"{name} is in no undisturbed run" for name in found.keys() - expected.keys()]
        for fault in faults:
            for flow_run, whole in zip(fault.again, fault.whole, strict=True):
                states = [one for one in self.service.tasks({"id": flow_run}) if one[0] != "plan"]
                wrong += [f"{task} was {state} in a run started again" for task, state in states[:whole]
                          if state != "Cached"]  # fmt: skip
        return wrong

    def unsettled(self) -> list[str]:
        """Task runs that have not ended although all runs have; the last of them are given a minute."""
        going, end = {"task_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}, time.monotonic() + 60
        while (left := self.service.ask("/task_runs/filter", going)) and time.monotonic() < end:
            time.sleep(1)
        return [f"{one['name']} stays {one['state']['name']}" for one in left]

    def hit(self, fault: Fault, last: bool) -> None:
        """A fault, and the user's doings until it is recovered from, or the run has ended if it is the last."""
        undo = self.strike(fault)
        began = time.monotonic() - SPANS.get(fault.kind, 0.0)
        if undo is not None:
            undo()
            fault.did.append("made room")
        self.recover(fault, began)
        if last:
            self.finish(fault)
            if fault.stage == TASKS[-1]:
                fault.seconds = round(time.monotonic() - began, 1)

    def one_run(self, number: int, faults: list[Fault]) -> list[str]:
        """A run and its faults, to its good end. Returns what is wrong."""
        self.begin(number, ray=any(fault.kind == RAY for fault in faults))
        for fault in faults:
            fault.run = number
            try:
                self.hit(fault, last=fault is faults[-1])
            except AssertionError as error:
                print(f"run {number}: given up: {error}", flush=True)
                return [f"run {number}: {error}"]
            with (self.folder / "faults.jsonl").open("a") as file:
                file.write(json.dumps(asdict(fault)) + "\n")
            print(f"run {number}: {fault.kind} {fault.target} in {fault.stage}, {fault.seconds} s, did {fault.did}, "
                  f"saw {fault.saw}", flush=True)  # fmt: skip
        wrong = self.unexpected(faults)
        print(f"run {number}: {'all digests equal' if not wrong else wrong}", flush=True)
        return wrong


def table(faults: list[Fault]) -> str:
    """By kind."""
    rows = ["| fault | times | what the user saw | did | recovery, s: median, worst |", "|---|---|---|---|---|"]
    for kind in KINDS:
        of = [fault for fault in faults if fault.kind == kind]
        if not of:
            continue
        saw, did = (dict[str, int](), dict[str, int]())
        for fault in of:
            for name in {one.split(":")[0] for one in fault.saw} or {"nothing"}:
                saw[name] = saw.get(name, 0) + 1
            for name in {one.split(":")[0] for one in fault.did} | ({"run again"} if fault.again else set()):
                did[name] = did.get(name, 0) + 1
        told = (", ".join(f"{name} ({count})" for name, count in counts.items()) for counts in (saw, did))
        seconds = [fault.seconds for fault in of]
        figures = f"{statistics.median(seconds):.0f}, {max(seconds):.0f}"
        rows.append(" | ".join([f"| {kind}", str(len(of)), *told, f"{figures} |"]))
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=1, help="the run to begin with, after one that was broken off")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    arguments = parser.parse_args()
    served.isolated()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
    kinds = [kind for kind in arguments.kinds if kind != RAY or importlib.util.find_spec("prefect_ray")]
    plan = drawn(arguments.faults, kinds, random.Random(arguments.seed))
    began, wrong = time.monotonic(), []
    with served.served(arguments.folder) as service:
        chaos = Chaos(service, arguments.folder)
        try:
            for number in (0, -1):
                chaos.calm(number)
            for number, faults in list(enumerate(plan, 1))[arguments.first - 1 :]:
                wrong += chaos.one_run(number, faults)
            wrong += chaos.unsettled()
        finally:
            for one in chaos.nodes:
                end_node(one)
    lines = (arguments.folder / "faults.jsonl").read_text().splitlines()
    print(table([Fault(**json.loads(line)) for line in lines]))
    print(f"{len(plan)} runs, {time.monotonic() - began:.0f} s; {len(wrong)} things wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
