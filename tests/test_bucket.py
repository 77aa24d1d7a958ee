"""The two clients of a bucket: which one is asked, that both see the same objects, what is said when neither may."""

# ruff: noqa: F811 - a fixture is imported and then is a parameter's name

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import fsspec.config
import pytest
from s3_server import s3  # noqa: F401

from thinkdiff.schemas.errors import RootError, SpecError
from thinkdiff.storage.bucket import CLIENT, PATIENCE, bucket_of
from thinkdiff.storage.root import Folder

NAMES = ["plain", "a b#%20ü/x?.jpg", "x/+&=~(1)!.tar"]
FORKED = """
import os, sys
from thinkdiff.storage.root import Folder

folder = Folder(sys.argv[1])
assert folder.bucket is not None
assert folder.read("file") == b"bytes"
if os.fork() == 0:
    assert folder.bucket is None
    os._exit(0 if folder.read("file") == b"bytes" and not folder.create("file", b"other") else 1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert folder.bucket is not None
"""


@pytest.fixture
def folder(s3: str) -> Folder:
    """An empty folder in a bucket."""
    return Folder(f"{s3}/{uuid.uuid4().hex}")


@pytest.mark.parametrize("name", NAMES)
def test_both_clients_see_one_object_under_any_name(folder: Folder, monkeypatch: pytest.MonkeyPatch, name: str):
    folder.write(name, b"from obstore")
    monkeypatch.setenv(CLIENT, "s3fs")
    assert folder.bucket is None
    assert folder.read(name) == b"from obstore"
    folder.write(name, b"from s3fs")
    monkeypatch.delenv(CLIENT)
    assert folder.bucket is not None
    assert folder.read_range(name, 5, 9) == b"s3fs"
    assert folder.sizes() == {name: 9}


def test_many_ranges_come_in_their_order(folder: Folder):
    data = os.urandom(5000)
    folder.write("file", data)
    ranges = [("file", start, start + 7) for start in range(0, 4900, 49)]
    assert folder.read_ranges(ranges) == [data[start:end] for _, start, end in ranges]
    assert folder.read_range("file", 3, 3) == b""


def test_a_forked_process_reads_without_the_threads_of_its_parent(folder: Folder):
    folder.write("file", b"bytes")
    done = subprocess.run([sys.executable, "-c", FORKED, folder.uri], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_other_credentials_are_asked_for_at_once(folder: Folder, monkeypatch: pytest.MonkeyPatch):
    folder.write("file", b"bytes")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    for client in ("obstore", "s3fs"):
        monkeypatch.setenv(CLIENT, client)
        with pytest.raises(RootError, match=r"found no answer that can be used \(.*\), expected its bytes") as read:
            folder.read("file")
        with pytest.raises(RootError, match="not writable") as written:
            folder.create("other", b"bytes")
        assert "\n" not in f"{read.value}{written.value}"
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "thinkdiff-secret")
    assert folder.read("file") == b"bytes"
    assert set(folder.sizes()) == {"file"}


def test_s3fs_is_asked_where_obstore_cannot_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert bucket_of("s3://bucket/below") is not None
    assert bucket_of("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/mine/below") is None
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})
    assert bucket_of("s3://bucket/below") is None
    monkeypatch.delitem(fsspec.config.conf, "s3")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    assert bucket_of("s3://bucket/below") is None
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert bucket_of("s3://bucket/below") is not None


def test_unknown_settings_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CLIENT, "boto")
    with pytest.raises(SpecError, match="found 'boto', expected obstore or s3fs"):
        Folder("s3://bucket/below").read("file")
    monkeypatch.delenv(CLIENT)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(PATIENCE, "soon")
    with pytest.raises(SpecError, match="found 'soon', expected a whole number of seconds"):
        Folder("s3://bucket/below").read("file")
