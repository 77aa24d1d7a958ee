"""A lock with a lease: one run works on an artifact at a time, and a killed holder does not keep it for ever.

The holder renews its lease file in a thread. Another run takes the lease over when the holder's process is dead (seen
where both are of one boot and one namespace of process ids, which two containers of one host name are not), or when
the file has not changed for as long as the lease runs, watched by the newcomer's own clock, so that clocks of two hosts
need not agree. Otherwise it waits, or is refused when it does not want to. Limit: two newcomers that take over the same
dead lease at once are told apart by reading back after a pause, not by a transaction.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from thinkdiff.schemas.errors import LockedError
from thinkdiff.storage.root import Folder

LEASE = "lease.json"
SETTLE = 0.2
WAIT = 1.0
HELD: set[str] = set()  # tokens of this process; a lease of it with another one could not be given back to its store


def process_start(pid: int) -> str | None:
    """When a process of this host began, in its kernel's own unit; None when it is dead or cannot be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return None
        except OSError:
            pass
        return "unknown"
    return None if fields[0] == "Z" else fields[19]


def place() -> dict[str, str]:
    """Where process ids mean the same: the host's name, its boot, and the namespace of the ids; "" where not told."""
    found = {"host": socket.gethostname(), "boot": "", "ids": ""}
    with suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["ids"] = os.readlink("/proc/self/ns/pid")
    return found


def named(holder: dict[str, Any]) -> str:
    """Who holds a lease, as it is told."""
    return f"process {holder.get('pid')} on {holder.get('host')}"


class Lease:
    """Holds `lease.json` in a folder while the block runs.

    When a live run holds it, `tell` is told who, and the lease waited for; without `tell` that raises LockedError.
    """

    def __init__(self, folder: Folder, seconds: float, tell: Callable[[str], object] | None = None) -> None:
        self.folder, self.seconds, self.tell = folder, seconds, tell
        self.token = uuid.uuid4().hex
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._count = 0

    def __enter__(self) -> Self:
        self.folder.check_writable()
        HELD.add(self.token)
        try:
            self._take_or_wait()
        except BaseException:
            HELD.discard(self.token)
            raise
        self._thread = threading.Thread(target=self._renew, name="thinkdiff-lease", daemon=True)
        self._thread.start()
        return self

    def _take_or_wait(self) -> None:
        told = None
        while True:
            try:
                return self._take()
            except LockedError:
                if self.tell is None:
                    raise
            holder = self._holder()
            if holder and holder.get("token") != told:
                told = holder.get("token")
                self.tell(f"waits for {named(holder)}, which makes {self.folder.uri}")
            time.sleep(WAIT)

    def _take(self) -> None:
        # A PUT whose answer was lost is sent again and refused for what it wrote itself; hence the look at the token.
        if not self.folder.create(LEASE, self._body()) and self._holder().get("token") != self.token:
            self._wait_for_death()
            self.folder.write(LEASE, self._body())
            time.sleep(SETTLE)
            if self._holder().get("token") != self.token:
                raise self._refusal(self._holder())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        HELD.discard(self.token)
        if self._holder().get("token") == self.token:
            self.folder.delete(LEASE)

    def check(self) -> None:
        """Raises LockedError when another run has taken the lease meanwhile; call it before a commit."""
        if self.lost.is_set() or self._holder().get("token") != self.token:
            raise self._refusal(self._holder())

    def _body(self) -> bytes:
        self._count += 1
        pid = os.getpid()
        body = {
            "token": self.token, "pid": pid, "started": process_start(pid), "seconds": self.seconds,
            "renewed": self._count,
        }  # fmt: skip
        return json.dumps(body | place()).encode()

    def _holder(self) -> dict[str, Any]:
        try:
            body = json.loads(self.folder.read(LEASE))
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}

    def _wait_for_death(self) -> None:
        first = self._holder()
        if place().items() <= first.items() and isinstance(first.get("pid"), int):
            alive = process_start(first["pid"]) == first.get("started")
            if alive and (first["pid"] != os.getpid() or first.get("token") in HELD):
                raise self._refusal(first)
            return
        try:
            patience = min(float(first.get("seconds", self.seconds)), 3600.0)
        except (TypeError, ValueError):
            patience = self.seconds
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(min(1.0, patience / 10))
            if self._holder() != first:
                raise self._refusal(self._holder())

    def _renew(self) -> None:
        while not self._stop.wait(self.seconds / 3):
            try:
                if self._holder().get("token") != self.token:
                    self.lost.set()
                    return
                self.folder.write(LEASE, self._body())
            except OSError:
                continue  # a passing fault of the store; the next renewal, or `check`, decides

    def _refusal(self, holder: dict[str, Any]) -> LockedError:
        return LockedError(
            f"{self.folder.uri}: found it being made by {named(holder)}, expected no other run of the same stage. "
            f"Two writers would mix their parts; wait for that run, or stop it; its lease is then free within "
            f"{self.seconds:g} s."
        )
