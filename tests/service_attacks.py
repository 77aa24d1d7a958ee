"""Attacks on the running service of tests/test_e2e_deploy.py: a hostile collection, its identities, its secrets.

Each function takes the service and asserts the outcome that deploy/THREATS.md names.
"""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest
import websocket
from browser import Browser, text
from hostile_images import PICKLE, png_of_zeros, rgb, saved
from picture_server import PictureServer, Reply
from small_run import thinkdiff

from thinkdiff.flows.recipes import mini
from thinkdiff.schemas.errors import RootError
from thinkdiff.storage.records import find_artifacts
from thinkdiff.storage.root import Folder

HOSTILE = "s3://thinkdiff/hostile"
LURE = '` <img src="http://evil.invalid/x" onerror="window.evil=1"> ![a](http://evil.invalid/y) `'
KINDS = (
    "flows", "flow_runs", "task_runs", "logs", "artifacts", "deployments", "work_pools", "variables", "events",
    "block_documents", "automations", "concurrency_limits", "v2/concurrency_limits",
)  # fmt: skip
GOOD = saved(rgb(), "PNG")


@contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """S3 as these settings have it, and no other credentials."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    wanted = {name: value for name, value in settings.items() if name.startswith("AWS_")}
    files = {"AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}
    with patch.dict(os.environ, bare | files | wanted, clear=True):
        yield


def settings_of(service: Any, name: str) -> dict[str, str]:
    """A file of settings that deploy/up.sh has written."""
    return dict(line.split("=", 1) for line in (service.state / name).read_text().splitlines())


def answers(port: int) -> dict[str, tuple[Reply, str]]:
    """By path of the hostile server what it sends, and what becomes of it ("" for a picture that is taken)."""

    def to(where: str) -> Reply:
        return Reply(status=302, headers=(("Location", where),))

    return {
        "/good": (Reply(GOOD), ""),
        "/metadata": (to("http://169.254.169.254/latest/meta-data/"), "the host is at an address that is not public"),
        "/loopback": (to(f"http://127.0.0.2:{port}/good"), "the host is at an address that is not public"),
        "/file": (to("file:///etc/passwd"), "a URL of another scheme than http and https"),
        "/bomb": (Reply(png_of_zeros(30_000, 30_000)), "30000x30000 pixels, more than 50000000"),
        "/pickle": (Reply(PICKLE), "not a JPEG, PNG, WebP or GIF picture"),
    }


def climbing_tar(url: str, caption: str) -> bytes:
    """A tar whose members would be written elsewhere if anyone wrote them."""
    sink = io.BytesIO()
    about = json.dumps({"url": url, "caption": caption}).encode()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in (("../../../climbed.png", GOOD), ("../../../climbed.json", about)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def fetch_hostile_collection(service: Any, folder: Path) -> None:
    """One run of the deployment fetch-images: each row has its outcome, nothing is reached or written, the run ends."""
    routes: dict[str, Reply] = {}
    with PictureServer(routes) as server:
        expected = answers(server.port)
        routes |= {path: reply for path, (reply, _) in expected.items()}
        rows = {server.url(path): reason for path, (_, reason) in expected.items()}
        rows |= dict.fromkeys(
            (f"http://127.0.0.2:{server.port}/good", "http://169.254.169.254/"),
            "the host is at an address that is not public",
        )
        rows["http://in-the-tar.invalid/x"] = ""
        lines = [f"{url}\t{LURE} {number}" for number, url in enumerate([*rows, "file:///etc/passwd"])]
        (folder / "hostile.tsv").write_text("\n".join(lines) + "\n")
        (folder / "hostile.tar").write_bytes(climbing_tar("http://in-the-tar.invalid/x", f"{LURE} {len(rows) - 1}"))
        spec = mini().model_dump(mode="json") | {"name": "hostile", "world": None}
        spec["captions"] |= {"collections": [collection(folder)], "n": len(rows)}
        spec["images"] |= {"by_url": True, "tars": [{"collection": "hostile", "glob": str(folder / "*.tar")}]}
        run = {"root": HOSTILE, "data": str(folder), "allow_networks": ["127.0.0.1/32"]}
        given = json.dumps({"spec": spec, "run": run})
        done = service.prefect("deployment", "run", "thinkdiff/fetch-images", "--params", given, "--watch")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with environment(service.env):
        found, made = list(find_artifacts(HOSTILE)), Folder(HOSTILE).sizes()
    assert [one.stage for one in found] == ["sample_captions", "fetch_images"]
    assert found[0].counts["malformed"] == 1
    assert found[1].counts["images"] == 2
    reasons = found[1].stats["reasons"]
    assert reasons == Counter(reason for reason in rows.values() if reason), reasons
    assert not [name for name in made if "climbed" in name]
    assert not list(folder.parent.rglob("climbed*"))


def show_hostile_pages(service: Any, page: Browser) -> None:
    """What the stages show of that run in the UI: the strangers' words as words; nothing of them is run or loaded."""
    page.open(service.env["PREFECT_API_URL"].replace("/api", "/login"))
    page.type("document.querySelector('input[type=password]')", service.env["PREFECT_API_AUTH_STRING"])
    page.click(text("Login"))
    page.shows("Dashboard")
    for key in ("sample-captions", "fetch-images"):
        made = service.ask("/artifacts/filter", {"artifacts": {"key": {"any_": [key]}}})
        hostile = next(one for one in made if "evil.invalid" in one["data"])
        page.open(service.env["PREFECT_API_URL"].replace("/api", f"/artifacts/artifact/{hostile['id']}"))
        page.shows("http://evil.invalid/x")
        page.screenshot(f"hostile {key}")
        assert page.value("window.evil") is None
    assert (
        page.value("[...document.images].map(e => e.src.slice(0, 10) + (e.naturalWidth > 0))") == ["data:imagetrue"] * 2
    )
    assert not [url for url in page.requests if "evil.invalid" in url]


def collection(folder: Path) -> dict[str, str]:
    return {"name": "hostile", "format": "cc12m-tsv", "url": str(folder / "hostile.tsv")}


def only_read(service: Any) -> None:
    """The identity `reader` reads a root, and is refused in a sentence what would change it; nobody is refused all."""
    with environment(settings_of(service, "reader.env")):
        first = next(find_artifacts(HOSTILE))
        folder = Folder(first.uri)
        assert thinkdiff("verify", "--root", HOSTILE).returncode == 0
        for act in (
            lambda: folder.write("x", b""),
            lambda: folder.create("x", b""),
            lambda: folder.delete("artifact.json"),
        ):
            with pytest.raises(RootError, match=r"Access ?Denied|Forbidden") as caught:
                act()
            assert "\n" not in str(caught.value)
        done = thinkdiff("plan", "mini", "--root", HOSTILE)
        assert done.returncode == 2
        assert "not writable" in done.stdout + done.stderr
        assert next(find_artifacts(HOSTILE)) == first
    for keys in ({}, {"AWS_ACCESS_KEY_ID": "thinkdiff", "AWS_SECRET_ACCESS_KEY": "wrong"}):
        bare = {"AWS_ENDPOINT_URL": service.env["AWS_ENDPOINT_URL"], "AWS_DEFAULT_REGION": "us-east-1"}
        with environment(bare | keys), pytest.raises(RootError) as caught:
            folder.read("artifact.json")
        assert "\n" not in str(caught.value)
    make_an_identity(service.env["AWS_ENDPOINT_URL"])


def make_an_identity(endpoint: str) -> None:
    """A stranger's `PutIdentity` at the port where SeaweedFS manages identities is refused, its keys open nothing."""

    def field(number: int, value: bytes) -> bytes:
        return bytes([number << 3 | 2, len(value)]) + value

    keys = {"AWS_ACCESS_KEY_ID": "mallory", "AWS_SECRET_ACCESS_KEY": "of-mallory"}
    credential = field(1, b"mallory") + field(2, b"of-mallory")
    request = field(1, field(1, b"mallory") + field(2, credential) + field(3, b"Admin"))
    host, port = endpoint.removeprefix("http://").split(":")
    with grpc.insecure_channel(f"{host}:{int(port) + 10_000}", [("grpc.enable_http_proxy", 0)]) as channel:
        put = channel.unary_unary("/messaging_pb.SeaweedS3IamCache/PutIdentity")
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            put(request, timeout=60, wait_for_ready=True)
    settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    with environment(settings | keys), pytest.raises(RootError):
        Folder("s3://thinkdiff").read("x")


def ask_without_the_password(service: Any) -> None:
    """Nothing but the health check answers, be it data, the UI's data or the streams of events."""
    for path in (
        "/flows/filter",
        "/logs/filter",
        "/artifacts/filter",
        "/block_documents/filter",
        "/ui/flow_runs/history",
    ):
        for login in ("thinkdiff:wrong", "thinkdiff:", ":"):
            with pytest.raises(OSError, match="401"):
                service.ask(path, login=login)
    for path in ("/events/in", "/events/out", "/logs/out"):
        url = service.env["PREFECT_API_URL"].replace("http", "ws", 1) + path
        stream = websocket.create_connection(url, subprotocols=["prefect"], timeout=30)
        stream.send(json.dumps({"type": "auth", "token": "thinkdiff:wrong"}))
        opcode, data = stream.recv_data()
        assert (opcode, int.from_bytes(data[:2], "big")) == (websocket.ABNF.OPCODE_CLOSE, 1008)
        stream.close()


def told(service: Any) -> Iterator[tuple[str, bytes]]:
    """Where something stands and what: logs, what the worker leaves, the bucket's objects, all of the API's data."""
    for path in [*(service.state / "logs").rglob("*"), *(service.state / "prefect").rglob("*")]:
        if path.is_file():
            yield str(path), path.read_bytes()
    with environment(service.env):
        bucket = Folder("s3://thinkdiff")
        names = bucket.sizes()
        assert names
        for name in names:
            yield name, bucket.read(name)
    for kind in KINDS:
        for offset in range(0, 100_000, 200):
            page = service.ask(f"/{kind}/filter", {} if kind == "events" else {"limit": 200, "offset": offset})
            yield f"{kind} {offset}", json.dumps(page).encode()
            if kind == "events" or len(page) < 200:
                break


def find_secrets(service: Any) -> None:
    """No secret of the service is in a log, an object, or what the API tells, plain or as HTTP sends it."""
    secrets = settings_of(service, "secrets")
    forms = {name: [secret.encode()] for name, secret in secrets.items()}
    forms["login"] = [base64.b64encode(service.env["PREFECT_API_AUTH_STRING"].encode())]
    found = [
        (where, name) for where, data in told(service) for name, made in forms.items() for form in made if form in data
    ]
    assert not found
