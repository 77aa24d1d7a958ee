"""What deploy/up.sh remembers, whom it refuses, and what interrupted starts and dead parts leave behind.

Most tests start PostgreSQL alone: another program holds the port of S3, at which `up` ends. All on loopback; the whole
service is in tests/test_e2e_deploy.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
import service_attacks
from test_e2e_deploy import DEPLOY, UP, Service, eventually, free_ports, skip_without_parts

WRITTEN = ("settings", "client.env", "reader.env")


@pytest.fixture
def half() -> Iterator[Service]:
    """The service of a fresh state folder, of which `up` starts PostgreSQL and no more."""
    skip_without_parts()
    server, postgres, s3 = free_ports()
    state = Path(tempfile.mkdtemp(prefix="thinkdiff-up-"))  # not tmp_path: PostgreSQL's user must get there
    ports = {"THINKDIFF_PORT": server, "THINKDIFF_POSTGRES_PORT": postgres, "THINKDIFF_S3_PORT": s3}
    settings = {"THINKDIFF_STATE": str(state), "THINKDIFF_PYTHON": sys.executable}
    made = Service(state, settings | {name: str(port) for name, port in ports.items()})
    with socket.create_server(("127.0.0.1", s3)):
        try:
            yield made
        finally:
            down = made.up("down")
            shutil.rmtree(state, ignore_errors=True)
            assert down.returncode == 0, down.stdout + down.stderr


def ends_at_s3(service: Service, done: subprocess.CompletedProcess[str]) -> bool:
    """Whether all went well up to the port that is taken."""
    port = service.settings["THINKDIFF_S3_PORT"]
    return (done.returncode, done.stderr.count("\n")) == (
        1,
        1,
    ) and f"SeaweedFS: found port {port} in use" in done.stderr


def written(service: Service) -> list[str]:
    return [(service.state / name).read_text() for name in WRITTEN]


def query(service: Service, text: str) -> list[Any]:
    """Rows of the database, with the password that the state folder has."""

    async def ask() -> list[Any]:
        port = int(service.settings["THINKDIFF_POSTGRES_PORT"])
        password = service_attacks.settings_of(service, "secrets")["postgres_password"]
        connection = await asyncpg.connect(
            host="127.0.0.1", port=port, user="thinkdiff", password=password, database="prefect"
        )
        try:
            return [tuple(row) for row in await connection.fetch(text)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def begin(service: Service) -> subprocess.Popen[str]:
    pipe, environment = subprocess.PIPE, os.environ | service.settings
    return subprocess.Popen([UP], env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_up_without_the_first_starts_settings_keeps_them(half: Service) -> None:
    assert ends_at_s3(half, half.up(THINKDIFF_ALERT_URL="http://127.0.0.1:9/?a=b c&d="))
    before, bare = written(half), replace(half, settings={"THINKDIFF_STATE": str(half.state)})
    assert ends_at_s3(half, bare.up())
    assert written(half) == before
    assert "THINKDIFF_ALERT_URL=http://127.0.0.1:9/?a=b c&d=\n" in before[0]
    assert (half.state / "settings").stat().st_mode & 0o077 == 0


def test_up_refuses_another_setting_while_what_depends_on_it_runs(half: Service) -> None:
    assert ends_at_s3(half, half.up())
    before, other = written(half), str(free_ports()[1])
    refused = half.up(THINKDIFF_POSTGRES_PORT=other)
    assert refused.returncode == 1
    assert refused.stderr.startswith("up: THINKDIFF_POSTGRES_PORT: found another value than in ")
    assert refused.stderr.count("\n") == 1
    assert written(half) == before
    assert ends_at_s3(half, half.up(THINKDIFF_BUCKET="other"))  # nothing that depends on it runs
    assert "THINKDIFF_ROOT=s3://other/runs\n" in written(half)[1]
    assert half.up("down").returncode == 0
    half.settings["THINKDIFF_POSTGRES_PORT"] = other
    assert ends_at_s3(half, half.up())
    assert query(half, "select 1") == [(1,)]


def test_up_two_first_starts_at_once_leave_the_database_with_the_password_that_is_kept(half: Service) -> None:
    both = [begin(half), begin(half)]
    said = sorted(one.communicate(timeout=300)[1] for one in both)
    assert "SeaweedFS: found port" in said[0]
    assert "found another up.sh at work" in said[1]
    assert query(half, "select 1") == [(1,)]


def test_up_after_an_interrupted_initdb_makes_the_database_anew(half: Service) -> None:
    first = begin(half)
    eventually((half.state / "postgres/data/PG_VERSION").exists, 120, lambda: "no PG_VERSION")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert (half.state / "postgres/pw").exists()
    done = half.up()
    assert ends_at_s3(half, done), done.stderr
    assert query(half, "select 1") == [(1,)]
    assert not (half.state / "postgres/pw").exists()


def test_up_removes_no_database_that_was_in_use(half: Service) -> None:
    assert ends_at_s3(half, half.up())
    query(half, "create table kept ()")
    assert half.up("down").returncode == 0
    (half.state / "postgres/pw").touch()
    if os.geteuid() == 0:
        refused = half.up(THINKDIFF_POSTGRES_USER="nobody")
        assert "PostgreSQL: found a database of the user postgres in " in refused.stderr
    assert ends_at_s3(half, half.up())
    assert query(half, "select * from kept") == []


@pytest.mark.parametrize("whose", ["ours", "another's"])
def test_up_down_ends_what_a_dead_worker_left_in_its_group_and_nothing_of_others(half: Service, whose: str) -> None:
    home = half.state / "prefect" if whose == "ours" else Path("/nowhere")
    command = ["bash", "-c", "sleep 600 >/dev/null & echo $!; wait"]
    worker = subprocess.Popen(
        command, env=os.environ | {"PREFECT_HOME": str(home)}, stdout=subprocess.PIPE, start_new_session=True
    )
    assert worker.stdout
    run = psutil.Process(int(worker.stdout.readline()))
    began = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(") ")[2].split()[19]
    worker.kill()
    worker.communicate()
    (half.state / "pids").mkdir()
    (half.state / "pids/worker").write_text(f"{worker.pid} {began}\n")
    try:
        assert half.up("down").returncode == 0
        lives = run.is_running() and run.status() != psutil.STATUS_ZOMBIE
        assert lives == (whose == "another's")
    finally:
        if run.is_running():
            run.kill()


def test_seaweedfs_takes_no_identity_from_a_stranger(tmp_path: Path) -> None:
    skip_without_parts()
    port = free_ports()[2]
    settings = {"S3_ADMIN_SECRET": "a" * 48, "S3_SECRET": "b" * 48, "S3_HOST": "127.0.0.1", "S3_PORT": str(port)}
    settings |= {"S3_FOLDER": str(tmp_path), "WEED": str(Path(sys.executable).with_name("weed"))}
    with (tmp_path / "log").open("w") as log:
        command = [str(DEPLOY / "seaweedfs.sh")]
        server = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
    try:
        service_attacks.make_an_identity(f"http://127.0.0.1:{port}")
    finally:
        server.kill()
        server.wait()
