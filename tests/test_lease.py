"""The lease: refused while its holder lives, taken over when it is dead, given up when it was taken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thinkdiff.schemas.errors import LockedError
from thinkdiff.storage.lease import LEASE, Lease, place, process_start
from thinkdiff.storage.root import Folder

HOLDER = """
import sys, time
from thinkdiff.storage.lease import Lease
from thinkdiff.storage.root import Folder
with Lease(Folder(sys.argv[1]), 60.0):
    print("held", flush=True)
    time.sleep(60)
"""


def held_by(folder: Folder, **fields: object) -> None:
    """A lease of another host, as it stands in the file."""
    body = {"token": "x", "host": "elsewhere", "pid": 1, "started": "1", "seconds": 0.4, "renewed": 1} | fields
    folder.write(LEASE, json.dumps(body).encode())


def test_lease_of_a_killed_process_is_free_at_once_and_of_a_living_one_is_not(tmp_path: Path):
    folder = Folder(str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder.uri], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"process {holder.pid}"), Lease(folder, 60.0):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        began = time.monotonic()
        with Lease(folder, 60.0) as lease:
            lease.check()
        assert time.monotonic() - began < 20  # far less than the lease of the dead
    assert not folder.exists(LEASE)


def test_lease_of_a_stopped_process_id_that_was_given_out_again_is_free(tmp_path: Path):

    folder = Folder(str(tmp_path))
    held_by(folder, **place(), pid=os.getpid(), started="another start")
    with Lease(folder, 30.0) as lease:
        lease.check()


def test_lease_of_another_host_is_taken_over_when_it_is_not_renewed(tmp_path: Path):
    folder = Folder(str(tmp_path))
    held_by(folder)
    began = time.monotonic()
    with Lease(folder, 30.0) as lease:
        assert time.monotonic() - began >= 0.4
        lease.check()


@pytest.mark.parametrize("field", ["boot", "ids"])
def test_lease_of_a_container_of_the_same_host_name_is_not_taken_for_a_dead_one(tmp_path: Path, field: str):
    folder = Folder(str(tmp_path))
    held_by(folder, **place() | {field: "another"}, pid=10**30)
    began = time.monotonic()
    with Lease(folder, 30.0) as lease:
        assert time.monotonic() - began >= 0.4
        lease.check()


def test_lease_of_a_process_id_that_cannot_be_is_free(tmp_path: Path):
    folder = Folder(str(tmp_path))
    held_by(folder, **place(), pid=10**30, seconds=60.0)
    with Lease(folder, 30.0) as lease:
        lease.check()


def test_lease_of_another_host_that_is_renewed_is_refused(tmp_path: Path):
    folder = Folder(str(tmp_path))
    held_by(folder, seconds=20.0)
    renewer = subprocess.Popen(
        [sys.executable, "-c", f"import time; time.sleep(0.3); p = {folder.full(LEASE)!r}; "
         "t = open(p).read().replace('\"renewed\": 1', '\"renewed\": 2'); open(p, 'w').write(t)"]
    )  # fmt: skip
    with pytest.raises(LockedError, match="on elsewhere"), Lease(folder, 30.0):
        pass
    renewer.wait()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"seconds": "soon"}', b'{"seconds": null, "pid": "x"}'])
def test_unreadable_lease_is_taken_over(tmp_path: Path, body: bytes):
    folder = Folder(str(tmp_path))
    folder.write(LEASE, body)
    with Lease(folder, 0.3) as lease:
        lease.check()


def test_holder_renews_and_sees_when_it_was_taken_over(tmp_path: Path):
    folder = Folder(str(tmp_path))
    with Lease(folder, 0.3) as lease:
        first = folder.read(LEASE)
        end = time.monotonic() + 20
        while folder.read(LEASE) == first:
            assert time.monotonic() < end
            time.sleep(0.02)
        lease.check()
        held_by(folder)
        assert lease.lost.wait(20)
        with pytest.raises(LockedError, match="on elsewhere"):
            lease.check()
    assert json.loads(folder.read(LEASE))["token"] == "x"  # the new holder's file is left alone


def test_lease_is_given_back_when_the_work_fails(tmp_path: Path):
    folder = Folder(str(tmp_path))
    with pytest.raises(ZeroDivisionError), Lease(folder, 30.0):
        _ = 1 / 0
    assert not folder.exists(LEASE)


def test_lease_that_this_process_could_not_give_back_is_free(tmp_path: Path):
    folder = Folder(str(tmp_path))
    held_by(folder, **place(), pid=os.getpid(), started=process_start(os.getpid()))
    with Lease(folder, 30.0) as lease:
        lease.check()


def test_process_start_tells_living_from_dead():
    own = process_start(os.getpid())
    assert own is not None
    assert own == process_start(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert process_start(child.pid) is None
