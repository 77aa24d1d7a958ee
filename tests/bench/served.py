"""The service of deploy/up.sh for chaos.py and two_users.py, in a network and on a disk of its own.

`isolated()` starts the program again in network and mount namespaces of its own, for which it must be root: ports are
free, the network can be cut, and the disk below the service's whole state (a file, mounted) can be filled. `served`
starts the service there and stops it; a `Service` is that of tests/test_e2e_deploy.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from test_e2e_deploy import SMALL, Service, free_ports

from thinkdiff.flows.cli import assign
from thinkdiff.flows.recipes import mini

REPORT = "report.html"
INSIDE = "THINKDIFF_BENCH_INSIDE"
DISK = 40 << 30
SIZES = SMALL | {"captions.n": 64, "features.shard_size": 2, "aligner.steps": 60, "aligner.validation_every": 30}


def isolated() -> None:
    """Returns inside of the namespaces; outside of them it replaces the program by itself in them."""
    if INSIDE in os.environ:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
        return
    if os.geteuid() != 0:
        sys.exit("the bench: found another user than root, expected root. It makes namespaces and mounts a disk.")
    os.environ.update({INSIDE: "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"})
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.execvp("unshare", ["unshare", "--net", "--mount", *sys.orig_argv])


@contextmanager
def served(folder: Path, **settings: str) -> Iterator[Service]:
    """A fresh service; its disk is a file in `folder`, where its logs are left at the end. Ends all that it started."""
    state, image = Path(tempfile.mkdtemp(prefix="thinkdiff-bench-")), folder / "disk"
    with image.open("wb") as file:
        file.truncate(DISK)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-F", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(state)], check=True)
    service = Service(state, {"THINKDIFF_STATE": str(state), "THINKDIFF_PYTHON": sys.executable, **settings})
    names = ("THINKDIFF_PORT", "THINKDIFF_POSTGRES_PORT", "THINKDIFF_S3_PORT")
    service.settings.update(zip(names, map(str, free_ports()), strict=True))  # by which SeaweedFS names sockets in /tmp
    try:
        done = service.up()
        assert done.returncode == 0, done.stdout + done.stderr
        os.environ.update(service.env)
        yield service
    finally:
        service.up("down")
        for process in strangers(()):
            process.kill()
        shutil.copytree(state / "logs", folder / "logs", dirs_exist_ok=True)
        time.sleep(1)
        subprocess.run(["umount", "-l", str(state)], check=False)
        state.rmdir()
        image.unlink()


def parameters(root: str, sizes: dict[str, Any] = SIZES, **run: Any) -> str:
    """Of a deployment of the flow `thinkdiff`: the miniature of those sizes below `root`."""
    values = mini().model_dump(mode="json")
    for name, value in sizes.items():
        assign(values, f"{name}={json.dumps(value)}")
    return json.dumps({"spec": values, "run": {"root": root, **run}})


def start(service: Service, given: str, deployment: str = "pipeline") -> str:
    """`prefect deployment run`; the flow run's id. Asks again while the server does not answer."""
    end = time.monotonic() + 300
    while True:
        done = service.prefect("deployment", "run", f"thinkdiff/{deployment}", "--params", given)
        if found := re.search(r"UUID: ([0-9a-f-]{36})", done.stdout):
            return found[1]
        assert time.monotonic() < end, done.stdout + done.stderr
        time.sleep(2)


def state(service: Service, run: str) -> tuple[str, str] | None:
    """Name and message of a flow run's state; none while the server does not answer."""
    try:
        (found,) = service.ask("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    except OSError:
        return None
    return found["state_name"], found["state"]["message"] or ""


@cache
def bucket() -> Any:
    """A client of the bucket that is not patient."""
    from botocore.config import Config
    from botocore.session import get_session

    patience = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1})
    return get_session().create_client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], config=patience)


def keys(root: str) -> list[str] | None:
    """What lies below a root of the bucket, relative to it; none while the bucket does not answer."""
    from botocore.exceptions import BotoCoreError, ClientError

    name, _, prefix = root.removeprefix("s3://").partition("/")
    found, more = [], {}
    try:
        while True:
            page = bucket().list_objects_v2(Bucket=name, Prefix=f"{prefix}/", **more)
            found += [one["Key"].removeprefix(f"{prefix}/") for one in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}
    except (BotoCoreError, ClientError):
        return None


def records(root: str) -> dict[str, dict[str, Any]]:
    """The records of the artifacts of a root, by stage and fingerprint."""
    wanted = [key for key in keys(root) or () if key.endswith("/artifact.json")]
    return {key.removesuffix("/artifact.json"): json.loads(read(f"{root}/{key}")) for key in wanted}


def read(url: str) -> bytes:
    """An object of the bucket."""
    name, _, key = url.removeprefix("s3://").partition("/")
    return bucket().get_object(Bucket=name, Key=key)["Body"].read()


def digest(root: str, name: str, record: dict[str, Any]) -> str:
    """Of an artifact; of the report without what its page says of times and of the code's commit."""
    files = {entry["path"]: entry["sha256"] for entry in record["files"]}
    if REPORT not in files:
        return record["digest"]
    page = re.sub(rb"<time>.*?</time>|<code>[0-9a-f]{10}</code>", b"", read(f"{root}/{name}/{REPORT}"))
    return str(sorted((files | {REPORT: hashlib.sha256(page).hexdigest()}).items()))


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it; nothing when it is dead."""
    try:
        process = psutil.Process(pid)
        alive = process.status() != psutil.STATUS_ZOMBIE
        return [process, *process.children(recursive=True)] if alive else []
    except psutil.NoSuchProcess:
        return []


def part(service: Service, name: str) -> list[psutil.Process]:
    """The processes of a part of the service."""
    path = service.state / ("postgres/data/postmaster.pid" if name == "postgres" else f"pids/{name}")
    return family(int(path.read_text().split()[0])) if path.exists() else []


def strangers(known: tuple[psutil.Process, ...]) -> list[psutil.Process]:
    """The processes of this network namespace but this one, its parents and those that are known."""
    here, found = os.readlink("/proc/self/ns/net"), []
    ours = {psutil.Process().pid, *(one.pid for one in psutil.Process().parents()), *(one.pid for one in known)}
    for process in psutil.process_iter():
        try:
            if process.pid not in ours and os.readlink(f"/proc/{process.pid}/ns/net") == here:
                found.append(process)
        except OSError:
            continue
    return found
