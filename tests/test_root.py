"""Folders by path and URL, and what a failed write leaves. What every root must do is test_contract_storage.py."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thinkdiff.schemas.errors import RootError
from thinkdiff.storage.root import Folder, locate


def test_folder_at_makes_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Folder.at("runs") == Folder(str(tmp_path / "runs"))
    assert Folder.at("a/../b/") == Folder(str(tmp_path / "b"))
    assert Folder.at("~/runs") == Folder(str(tmp_path / "home" / "runs"))
    assert Folder.at(f"file://{tmp_path}/x") == Folder(str(tmp_path / "x"))
    assert Folder.at("s3://bucket/prefix/") == Folder("s3://bucket/prefix")
    assert Folder.at("s3://bucket/prefix") / "stage" / "name" == Folder("s3://bucket/prefix/stage/name")


@pytest.mark.parametrize("uri", ["s3://bucket//runs", "s3:///runs", "s3://bucket/a//b/"])
def test_folder_at_an_empty_part_is_refused(uri: str):
    with pytest.raises(RootError, match="found an empty part"):
        Folder.at(uri)


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://host/x", "x://y"])
def test_folder_at_an_unknown_scheme_is_refused(uri: str):
    with pytest.raises(RootError, match="found scheme"):
        Folder.at(uri)


@pytest.mark.parametrize(
    ("base", "url", "folder", "name"),
    [
        ("/data", "cc3m.tsv", "/data", "cc3m.tsv"),
        ("/data/", "a/b.tsv", "/data/a", "b.tsv"),
        ("/data", "/else/b.tsv", "/else", "b.tsv"),
        ("/data", "s3://bucket/a/b.tsv", "s3://bucket/a", "b.tsv"),
        ("s3://bucket/data", "a/b.tsv", "s3://bucket/data/a", "b.tsv"),
        ("s3://bucket/data", "/else/b.tsv", "/else", "b.tsv"),
        ("/data", "/b.tsv", "/", "b.tsv"),
    ],
)
def test_locate_takes_relative_urls_from_the_base(base: str, url: str, folder: str, name: str):
    assert locate(base, url) == (Folder(folder), name)


def test_write_that_fails_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path):
    folder = Folder(str(tmp_path))
    folder.write("kept/file", b"old")
    os.mkdir(tmp_path / "kept" / "taken")
    with pytest.raises(RootError, match="not writable"):
        folder.write("kept/taken", b"new")  # a folder has the name
    assert sorted(os.listdir(tmp_path / "kept")) == ["file", "taken"]


SHORT_OF_ROOM = """
import resource, sys
from thinkdiff.schemas.errors import RootError
from thinkdiff.storage.root import Folder
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for put in (Folder(sys.argv[1]).write, Folder(sys.argv[1]).create):
    try:
        put("file" if put.__name__ == "write" else "other", b"n" * 5000)
    except RootError as error:
        print(error)
"""


def test_write_that_runs_out_of_room_keeps_the_old_file(tmp_path: Path):
    folder = Folder(str(tmp_path))
    folder.write("file", b"old")
    done = subprocess.run([sys.executable, "-c", SHORT_OF_ROOM, folder.uri], capture_output=True, text=True, check=True)
    assert done.stdout.count("not writable (File too large)") == 2
    assert os.listdir(tmp_path) == ["file"]
    assert folder.read("file") == b"old"


@pytest.mark.parametrize(
    "ask",
    [
        Folder.sizes,
        Folder.all_sizes,
        Folder.sweep,
        lambda folder: folder.glob("*/x.tsv"),
        lambda folder: folder.exists("b/x.tsv"),
    ],
    ids=["sizes", "all sizes", "sweep", "glob", "exists"],
)
def test_folder_that_cannot_be_listed_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Folder], object]
):
    folder = Folder(str(tmp_path))
    for name in ("a/x.tsv", "b/x.tsv", "b/.tmp-1"):
        folder.write(name, b"1")

    def broken(path: Any, call: Callable[..., Any], **given: Any) -> Any:
        if os.fspath(path).rstrip("/").startswith(f"{tmp_path}/b"):
            raise OSError(errno.EIO, "Input/output error")
        return call(path, **given)

    listing, looking = os.scandir, os.stat
    with monkeypatch.context() as disk:
        disk.setattr(os, "scandir", lambda path: broken(path, listing))
        disk.setattr(os, "stat", lambda path, **given: broken(path, looking, **given))
        with pytest.raises(RootError, match=r"found no answer that can be used .*Input/output error"):
            ask(folder)
    assert sorted(folder.all_sizes()) == ["a/x.tsv", "b/.tmp-1", "b/x.tsv"]


def test_links_are_no_files_but_for_a_pattern(tmp_path: Path):
    folder = Folder(str(tmp_path / "here"))
    folder.write("a/b.tsv", b"123")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "c.tsv").write_bytes(b"12")
    os.symlink(tmp_path / "there" / "c.tsv", tmp_path / "here" / "a" / "c.tsv")
    os.symlink(tmp_path / "there", tmp_path / "here" / "d")
    os.symlink("round", tmp_path / "here" / "round")
    os.symlink("nowhere", tmp_path / "here" / "gone")
    assert folder.sizes() == {"a/b.tsv": 3}
    assert folder.sizes("a") == folder.sizes()
    assert folder.sizes("a/b.tsv") == folder.sizes("x") == {}
    assert folder.glob("a/*.tsv") == folder.glob("**/?.tsv") == ["a/b.tsv", "a/c.tsv"]
    assert folder.glob("*.tsv") == folder.glob("[xy]/*.tsv") == []
    with pytest.raises(RootError, match="can only be an entire path component"):
        folder.glob("a**/b")
