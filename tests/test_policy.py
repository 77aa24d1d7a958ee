"""deploy/policy.json against what the two S3 clients really send, as a proxy before a real server has seen it."""

# ruff: noqa: F811 - a fixture is imported and then is a parameter's name

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from faulty_proxy import FaultyProxy
from s3_server import BUCKET, s3  # noqa: F401

from thinkdiff.storage.bucket import CLIENT, PART
from thinkdiff.storage.root import Folder

POLICY = json.loads((Path(__file__).resolve().parents[1] / "deploy" / "policy.json").read_text())


def actions(statements: list[dict[str, Any]] = POLICY["Statement"]) -> set[str]:
    """What statements allow."""
    return {name for statement in statements for name in statement["Action"]}


def action(request: str) -> tuple[str, str, str]:
    """The action that a request needs, its key, and the prefix that a listing asks for."""
    method, url = request.split(" ")[:2]
    query = parse_qs(urlsplit(url).query, keep_blank_values=True)
    key = unquote(urlsplit(url).path).removeprefix(f"/{BUCKET}").lstrip("/")
    if method == "DELETE" and "uploadId" in query:
        return "s3:AbortMultipartUpload", key, ""
    if method == "POST" and "delete" in query:
        return "s3:DeleteObject", "", ""
    if method in ("PUT", "POST"):
        return "s3:PutObject", key, ""
    if method == "DELETE":
        return "s3:DeleteObject", key, ""
    if not key:  # HEAD and GET of a bucket
        return "s3:ListBucket", "", query.get("prefix", [""])[0]
    return "s3:GetObject", key, ""


def never(number: int, repeat: int) -> bool:
    """No request is done a wrong; the proxy only takes them down."""
    return False


def work(folder: Folder) -> None:
    """Everything that a stage does with a root, once."""
    folder.check_writable()
    folder.write("a/whole", b"bytes")
    folder.create("a/once", b"bytes")
    assert not folder.create("a/once", b"others")
    folder.write("large", bytes(PART + 1))
    folder.write_pieces("pieces", iter([b"some", b"more"]))
    assert folder.read("a/whole") == b"bytes"
    assert folder.read_range("a/whole", 1, 3) == b"yt"
    assert b"".join(folder.chunks("pieces")) == b"somemore"
    assert not folder.exists("nothing")
    assert folder.size("a/once") == 5
    assert len(folder.sizes()) == 4
    assert folder.children() == ["a", "large", "pieces"]
    assert folder.glob("a/*") == ["a/once", "a/whole"]
    folder.delete("a/once")
    (folder / "a").delete_all()


@pytest.mark.parametrize("client", ["obstore", "s3fs"])
def test_policy_allows_what_a_root_is_asked_and_nothing_more(
    s3: str, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{uuid.uuid4().hex}/runs"
    with FaultyProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv(CLIENT, client)
        with proxy.fault("500", when=never) as log:
            work(Folder(f"s3://{BUCKET}/{root}"))
    asked = [action(request) for request in log.seen]
    outside = [
        (name, key, prefix) for name, key, prefix in asked if not (key or prefix or f"{root}/").startswith(f"{root}/")
    ]
    assert not outside
    assert {name for name, _, _ in asked} == actions() - {"s3:AbortMultipartUpload"}  # for an upload that fails


def test_policy_of_a_reader_is_the_first_two_statements() -> None:
    assert actions(POLICY["Statement"][:2]) == {"s3:ListBucket", "s3:GetObject"}
    for statement in POLICY["Statement"]:
        whole_bucket = statement["Action"] == ["s3:ListBucket"]
        assert statement["Resource"] == ["arn:aws:s3:::BUCKET" if whole_bucket else "arn:aws:s3:::BUCKET/runs/*"]
