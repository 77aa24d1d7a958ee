"""What every root must do, on disk and in a real bucket: one suite, the same code."""

# ruff: noqa: F811 - a fixture is imported and then is a parameter's name

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from s3_server import place, s3  # noqa: F401

from thinkdiff.schemas.errors import LockedError, RootError, StoreError
from thinkdiff.storage.disk import TEMPORARY
from thinkdiff.storage.lease import LEASE, Lease
from thinkdiff.storage.root import Folder, locate, sha256_hex


def test_write_returns_size_and_digest_and_reads_back(place: Folder):
    data = os.urandom(100_000)
    entry = place.write("a/b/file.bin", data)
    assert (entry.path, entry.size, entry.sha256) == ("a/b/file.bin", len(data), sha256_hex(data))
    assert place.read("a/b/file.bin") == data
    assert place.hash("a/b/file.bin") == entry
    assert b"".join(place.chunks("a/b/file.bin")) == data
    with place.open("a/b/file.bin") as file:
        file.seek(500)
        assert file.read(3) == data[500:503]


def test_write_of_views_and_of_nothing_keeps_the_bytes(place: Folder):
    place.write("view", memoryview(bytearray(b"abc")))
    place.write("empty", b"")
    assert place.read("view") == b"abc"
    assert place.read("empty") == b""
    assert place.sizes() == {"empty": 0, "view": 3}


def test_write_larger_than_one_put_is_whole(s3: str):
    # From 64 MiB on it goes in several parts, and a shard of the paper's features has 112 MiB.
    folder, data = Folder(f"{s3}/large"), os.urandom(1 << 20) * 101
    entry = folder.write("shard", data)
    assert folder.sizes() == {"shard": len(data)}
    assert folder.hash("shard") == entry


def test_write_replaces_at_once_for_every_reader(place: Folder):
    old, new = b"o" * 300_000, b"n" * 200_000
    place.write("file", old)
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(place.read("file"))

    reader = threading.Thread(target=read)
    reader.start()
    for data in [new, old] * 5:
        place.write("file", data)
    done.set()
    reader.join()
    assert seen <= {old, new}


def test_create_by_many_at_once_has_one_winner(place: Folder):
    place.write("before", b"")
    for round_ in range(3):
        name, barrier = f"race/{round_}", threading.Barrier(5)

        def attempt(number: int, name: str = name, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return place.create(name, f"writer {number}".encode())

        with ThreadPoolExecutor(5) as pool:
            won = list(pool.map(attempt, range(5)))
        assert won.count(True) == 1
        assert place.read(name) == f"writer {won.index(True)}".encode()


def test_create_over_a_file_changes_nothing(place: Folder):
    assert place.create("file", b"first")
    assert not place.create("file", b"second")
    assert place.read("file") == b"first"
    assert set(place.sizes()) == {"file"}


def test_read_of_a_missing_file_raises_not_found(place: Folder):
    for read in (place.read, place.open, place.hash, lambda name: place.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("nothing")
    with pytest.raises(FileNotFoundError):
        place.read_ranges([("nothing", 0, 1)])


def test_read_range_past_the_end_raises_store_error(place: Folder):
    place.write("file", b"0123456789")
    assert place.read_range("file", 2, 5) == b"234"
    assert place.read_ranges([("file", 8, 10), ("file", 0, 1), ("file", 8, 10)]) == [b"89", b"0", b"89"]
    assert place.read_ranges([]) == []
    for start, end in ((8, 11), (10, 12), (50, 60)):
        with pytest.raises(StoreError, match="truncated"):
            place.read_range("file", start, end)
        with pytest.raises(StoreError, match="truncated"):
            place.read_ranges([("file", 0, 1), ("file", start, end)])


def test_read_into_fills_buffers_of_any_sizes(place: Folder):
    data = np.frombuffer(os.urandom(9000), np.uint8)
    for name in ("one", "two"):
        place.write(name, data.tobytes())
    buffers = [[np.zeros(size, np.uint8) for size in (7, 4, 0, 1)], [np.zeros(2, np.uint8) for _ in range(2500)]]
    done: list[tuple[int, int]] = []

    def note(request: int, buffer: int) -> None:
        done.append((request, buffer))

    place.read_into([("one", 8980, buffers[0]), ("two", 3000, buffers[1])], note)
    assert sorted(done) == [(0, number) for number in range(4)] + [(1, number) for number in range(2500)]
    place.read_into([], note)
    assert (np.concatenate(buffers[0]) == data[8980:8992]).all()
    assert (np.concatenate(buffers[1]) == data[3000:8000]).all()
    with pytest.raises(StoreError, match="truncated"):
        place.read_into([("one", 0, buffers[0]), ("one", 8995, buffers[0])], note)
    with pytest.raises(FileNotFoundError):
        place.read_into([("one", 0, buffers[0]), ("three", 0, buffers[0])], note)
    with pytest.raises(LockedError):
        place.read_into([("one", 0, buffers[0]), ("two", 0, buffers[0])], refuse)


def refuse(request: int, buffer: int) -> None:
    raise LockedError(f"request {request}, buffer {buffer}")


def test_sizes_lists_below_a_prefix_and_no_neighbour(place: Folder):
    for name in ("a/1", "a/deep/2", "ab/3", "4"):
        place.write(name, b"x" * int(name[-1]))
    assert place.sizes() == {"4": 4, "a/1": 1, "a/deep/2": 2, "ab/3": 3}
    assert place.sizes("a") == {"a/1": 1, "a/deep/2": 2}
    assert place.sizes("nothing") == {}
    assert (place / "nowhere").sizes() == {}
    assert (place / "a").sizes() == {"1": 1, "deep/2": 2}


def test_sizes_and_sweep_know_what_a_killed_writer_left(place: Folder):
    place.write("a/file", b"x")
    place.write(f"a/{TEMPORARY}killed", b"half")
    assert place.sizes() == {"a/file": 1}
    place.sweep()
    if place.is_local:
        assert not os.path.exists(place.full(f"a/{TEMPORARY}killed"))
    assert place.read("a/file") == b"x"


def test_children_glob_and_exists_see_the_same_files(place: Folder):
    assert place.children() == []
    assert place.glob("*/*.tar") == []
    for name in ("x/2.tar", "x/1.tar", "x/1.txt", "top"):
        place.write(name, b"")
    assert place.children() == ["top", "x"]
    assert place.glob("x/*.tar") == ["x/1.tar", "x/2.tar"]
    assert place.exists("x/1.txt")
    assert not place.exists("x")
    assert not place.exists("nothing")


def test_delete_of_one_and_of_all_removes_them(place: Folder):
    place.delete("nothing")
    place.delete_all()
    for name in ("a/1", "a/2", "b"):
        place.write(name, b"x")
    place.delete("a/1")
    place.delete("a/1")
    assert set(place.sizes()) == {"a/2", "b"}
    place.delete_all()
    assert place.sizes() == {}


@pytest.mark.parametrize("name", ["../out", "/absolute", "a//b", "a/./b", "", "a\\b"])
def test_names_that_leave_the_folder_are_refused(place: Folder, name: str):
    for use in (place.read, place.exists, place.delete, lambda n: place.write(n, b""), lambda n: place.create(n, b"")):
        with pytest.raises(StoreError, match="stays below"):
            use(name)


def test_check_writable_leaves_nothing(place: Folder):
    place.check_writable()
    assert place.sizes() == {}
    assert [name for name in place.children() if TEMPORARY in name] == []


def test_unwritable_root_is_refused_in_a_sentence(place: Folder):
    if place.is_local:
        place.write("file", b"")
        folder = place / "file/below"
    else:
        folder = Folder("s3://A-bucket-that-cannot-be/x")
    for act in (folder.check_writable, lambda: folder.write("x", b""), lambda: folder.create("x", b"")):
        with pytest.raises(RootError, match="not writable"):
            act()


def test_locate_splits_a_url_below_a_base(place: Folder):
    place.write("cc3m/train.tsv", b"rows")
    folder, name = locate(place.uri, "cc3m/train.tsv")
    assert folder.read(name) == b"rows"
    folder, name = locate("elsewhere", place.full("cc3m/train.tsv"))
    assert folder.read(name) == b"rows"


def test_lease_lets_one_in_and_is_free_afterwards(place: Folder):
    with Lease(place, 30.0) as lease:
        lease.check()
        with pytest.raises(LockedError, match="found it being made by process"), Lease(place, 30.0):
            pass
        lease.check()
    assert not place.exists(LEASE)
    with Lease(place, 30.0):
        assert place.exists(LEASE)
