"""The stage fetch_images: the same bytes for any split and after any kill; tars first; failed rows tried again."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from picture_server import PictureServer, Reply, jpeg
from small_images import HASTY, captions_of, execution, fetch, rows_by_caption

from thinkdiff.schemas.captions import CaptionSet
from thinkdiff.schemas.errors import InputError, SpecError, StoreError
from thinkdiff.schemas.images import ImageSet, ImageSpec, Resize, TarSource
from thinkdiff.storage.image_parts import ImageParts, Spool
from thinkdiff.storage.image_shards import ImageReader
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.image_work import fetch_shards, first_of, index_tars

COUNT = 60
SPEC = ImageSpec(by_url=True, shard_size=7)


def route(path: str) -> Reply:
    """Picture n, or for every fifth one thing or another that is wrong with it."""
    number = int(path.strip("/"))
    faults = {0: Reply(status=404), 5: Reply(b"<html>"), 10: Reply(status=503), 15: Reply(jpeg(number)[:300])}
    return faults[number % 20] if number % 5 == 0 else Reply(jpeg(number))


@pytest.fixture(scope="module")
def server():
    """A server whose pictures are the same in every run."""
    with PictureServer(route) as running:
        yield running


@pytest.fixture(scope="module")
def captions(server: PictureServer, tmp_path_factory: pytest.TempPathFactory) -> CaptionSet:
    """A caption for each of its pictures."""
    folder = Folder(str(tmp_path_factory.mktemp("captions")))
    return captions_of(folder, [server.url(f"/{number}") for number in range(COUNT)])


@pytest.fixture(scope="module")
def calm(captions: CaptionSet, tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """An undisturbed run."""
    tmp_path = tmp_path_factory.mktemp("calm")
    return fetch(Folder(str(tmp_path / "images")), captions, SPEC, execution(tmp_path))


def tar_of(captions: CaptionSet, numbers: list[int], data: Callable[[int], bytes]) -> bytes:
    """A tar of img2dataset with the pictures of some captions."""
    from thinkdiff.storage.caption_sample import read_captions

    by_number, buffer = {int(row.caption.split()[1]): row for row in read_captions(captions)}, io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            row = by_number[number]
            about = json.dumps({"url": row.url, "caption": row.caption, "status": "success"}).encode()
            for kind, body in (("jpg", data(number)), ("json", about)):
                info = tarfile.TarInfo(f"{number:09d}.{kind}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def test_every_caption_is_a_row_and_every_good_picture_is_kept_byte_for_byte(calm: ImageSet):
    rows = rows_by_caption(calm)
    reader = ImageReader(calm)
    assert sorted(rows) == list(range(COUNT))
    assert calm.counts == {"captions": COUNT, "images": 48, "failed": 12, "shards": 9}
    assert calm.stats["reasons"]["HTTP 404"] == 3
    good = [number for number in range(COUNT) if number % 5]
    assert reader.read([rows[number] for number in good]) == [jpeg(number) for number in good]


@pytest.mark.parametrize("workers", [2, 7])
def test_split_changes_no_byte(captions: CaptionSet, calm: ImageSet, tmp_path: Path, workers: int):
    found = fetch(Folder(str(tmp_path / "images")), captions, SPEC, execution(tmp_path, workers=workers))
    assert found.digest == calm.digest


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_split_of_tars_changes_no_byte(captions: CaptionSet, tmp_path: Path, workers: int):
    for number in range(5):
        some = list(range(number, COUNT, 5))
        (tmp_path / f"{number}.tar").write_bytes(tar_of(captions, some, jpeg))
    spec = ImageSpec(tars=(TarSource(collection="cc3m", glob="*.tar"),), shard_size=7)
    run = execution(tmp_path, data=str(tmp_path), workers=workers)
    found = fetch(Folder(str(tmp_path / "images")), captions, spec, run)
    rows = rows_by_caption(found)
    assert ImageReader(found).read([rows[n] for n in range(COUNT)]) == [jpeg(n) for n in range(COUNT)]
    one = fetch(Folder(str(tmp_path / "one")), captions, spec, execution(tmp_path, data=str(tmp_path)))
    assert found.digest == one.digest
    assert not found.names("places/")
    assert not list((tmp_path / "images" / "places").glob("*"))


def test_tars_come_first_and_urls_give_what_they_lack(server: PictureServer, captions: CaptionSet, tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_of(captions, [0, 1, 2, 3], lambda n: jpeg(n + 1000) if n < 3 else b"junk"))
    spec = ImageSpec(tars=(TarSource(collection="cc3m", glob="*.tar"),), by_url=True, shard_size=7)
    before = server.seen.copy()
    found = fetch(Folder(str(tmp_path / "images")), captions, spec, execution(tmp_path, data=str(tmp_path)))
    rows = rows_by_caption(found)
    wanted = [jpeg(1000), jpeg(1001), jpeg(1002), jpeg(3), jpeg(4)]
    assert ImageReader(found).read([rows[n] for n in range(5)]) == wanted
    assert [(server.seen - before)[f"/{n}"] for n in range(5)] == [0, 0, 0, 1, 1]


def test_first_good_picture_of_a_key_wins_over_broken_and_later_ones(captions: CaptionSet, tmp_path: Path):
    (tmp_path / "0.tar").write_bytes(tar_of(captions, [1, 1, 1], lambda n: b"junk"))
    (tmp_path / "1.tar").write_bytes(tar_of(captions, [1], lambda n: jpeg(1)))
    (tmp_path / "2.tar").write_bytes(tar_of(captions, [1], lambda n: jpeg(2)))
    spec = ImageSpec(tars=(TarSource(collection="cc3m", glob="*.tar"),))
    found = fetch(Folder(str(tmp_path / "images")), captions, spec, execution(tmp_path, data=str(tmp_path)))
    row = rows_by_caption(found)[1]
    assert ImageReader(found).read([row]) == [jpeg(1)]


def test_stage_goes_on_after_the_last_committed_shard(
    server: PictureServer, captions: CaptionSet, calm: ImageSet, tmp_path: Path
):
    folder, run = Folder(str(tmp_path / "images")), execution(tmp_path)
    fetch_shards(folder, SPEC, captions, run, [0, 3, 8])
    before = server.seen.copy()
    found = fetch(folder, captions, SPEC, run)
    asked = server.seen - before
    assert found.digest == calm.digest
    rows = rows_by_caption(found)
    order = sorted(rows, key=lambda number: rows[number].key)
    kept = {number for place, number in enumerate(order) if place // 7 in (0, 3, 8)}
    assert {int(path[1:]) for path in asked} == set(range(COUNT)) - kept


def test_damaged_part_is_made_again(captions: CaptionSet, calm: ImageSet, tmp_path: Path):
    folder, run = Folder(str(tmp_path / "images")), execution(tmp_path)
    fetch_shards(folder, SPEC, captions, run, range(9))
    folder.write("shards/00002.tar", b"short")
    folder.delete("rows/00004.parquet")
    folder.write("commits/000005.json", b"{")
    assert fetch(folder, captions, SPEC, run).digest == calm.digest


KILLED = """
import sys
from pathlib import Path
from small_images import HASTY, execution, fetch
from thinkdiff.schemas.captions import CaptionSet
from thinkdiff.schemas.images import ImageSpec
from thinkdiff.storage.root import Folder
captions, spec, out = sys.argv[1:]
fetching = HASTY.model_copy(update={"concurrency": 2})
fetch(Folder(out), CaptionSet.model_validate_json(captions), ImageSpec.model_validate_json(spec),
      execution(Path(out).parent, fetching))
"""


def test_stage_killed_at_any_moment_ends_with_the_same_bytes(captions: CaptionSet, calm: ImageSet, tmp_path: Path):
    folder = Folder(str(tmp_path / "images"))
    arguments = [captions.model_dump_json(), SPEC.model_dump_json(), folder.uri]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    for commits in (1, 4, 7):
        process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], start_new_session=True, env=environment)
        end = time.monotonic() + 120
        while len(folder.sizes("commits")) < commits and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert fetch(folder, captions, SPEC, execution(tmp_path)).digest == calm.digest


def test_refetch_tries_only_the_failed_rows_and_keeps_the_good_ones(tmp_path: Path):
    good, gone = Reply(jpeg(1)), Reply(status=404)
    routes = {f"/{n}": [gone, good] if n in (3, 9) else gone if n == 5 else good for n in range(20)}
    with PictureServer(routes) as server:
        captions = captions_of(Folder(str(tmp_path / "captions")), [server.url(f"/{n}") for n in range(20)])
        folder, spec = Folder(str(tmp_path / "images")), ImageSpec(by_url=True, shard_size=3)
        first = fetch(folder, captions, spec, execution(tmp_path))
        assert first.counts["failed"] == 3
        asked = server.seen.copy()
        second = fetch(folder, captions, spec, execution(tmp_path, refetch_failed=True, workers=2))
        assert dict(server.seen - asked) == {"/3": 1, "/5": 1, "/9": 1}
        assert second.counts == {"captions": 20, "images": 19, "failed": 1, "shards": 7}
        rows = rows_by_caption(second)
        assert [n for n, row in rows.items() if row.status == "failed"] == [5]
        third = fetch(folder, captions, spec, execution(tmp_path, refetch_failed=True))
        assert third.digest == second.digest != first.digest
        fresh = fetch(Folder(str(tmp_path / "fresh")), captions, spec, execution(tmp_path))
        assert fresh.digest == second.digest
    assert not folder.sizes("amended")


@dataclass(frozen=True)
class Mortal(Folder):
    """A folder whose process dies at its n-th write."""

    left: list[int]

    def _count(self) -> None:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise KeyboardInterrupt

    def write(self, name, data):
        self._count()
        return super().write(name, data)

    def write_pieces(self, name, pieces):
        self._count()
        return super().write_pieces(name, pieces)

    def create(self, name, data):
        self._count()
        return super().create(name, data)

    def delete(self, name):
        self._count()
        return super().delete(name)


def spool_of(*places: int) -> Spool:
    """Pictures at some places."""
    spool = Spool()
    for place in places:
        spool.hold(place, jpeg(place), 64, 64, "jpg")
    return spool


def test_refetch_killed_at_any_write_loses_no_good_picture(captions: CaptionSet, tmp_path: Path):
    from thinkdiff.storage.caption_sample import read_captions

    rows = read_captions(captions)[:5]
    reasons = dict.fromkeys(range(5), "HTTP 404")
    died = True
    for writes in range(12):
        folder = Folder(str(tmp_path / f"{writes}"))
        parts = ImageParts(folder, 5, 5)
        parts.commit(0, rows, spool_of(0, 4), reasons)
        dying = ImageParts(Mortal(folder.uri, [writes]), 5, 5)
        part = parts.committed()[0]
        try:
            dying.amend(part, parts.rows(part), spool_of(2), reasons)
            died = False
        except KeyboardInterrupt:
            died = True
        again = ImageParts(folder, 5, 5)
        again.prepare()
        (part,) = again.committed().values()
        found = [row.status for row in again.rows(part)]
        assert found in (["ok", "failed", "failed", "failed", "ok"], ["ok", "failed", "ok", "failed", "ok"])
        assert died or found[2] == "ok"
        assert not folder.sizes("amended")
        for place, row in enumerate(again.rows(part)):
            if row.status == "ok":
                assert folder.read_range(
                    "shards/00000.tar", row.offset or 0, (row.offset or 0) + (row.size or 0)
                ) == jpeg(place)
    assert not died


def test_resized_pictures_are_small_jpegs(captions: CaptionSet, tmp_path: Path):
    spec = SPEC.but(resize=Resize(longest_side=32))
    found = fetch(Folder(str(tmp_path / "images")), captions, spec, execution(tmp_path))
    assert {(row.width, row.height) for row in ImageReader(found).ok} == {(32, 32)}
    assert found.counts["images"] == 48


def test_stage_without_a_single_picture_is_an_error_that_names_the_reason(tmp_path: Path):
    with PictureServer(lambda path: Reply(status=404)) as server:
        captions = captions_of(Folder(str(tmp_path / "captions")), [server.url(f"/{n}") for n in range(5)])
        with pytest.raises(InputError, match=r"found none of the 5 sampled pictures.*'HTTP 404'.*--refetch-failed"):
            fetch(Folder(str(tmp_path / "images")), captions, ImageSpec(by_url=True), execution(tmp_path))


def test_network_out_of_reach_stops_the_stage_before_every_row_has_failed(tmp_path: Path):
    with PictureServer({}) as server:
        dead = server.url("")
    captions = captions_of(Folder(str(tmp_path / "captions")), [f"{dead}/{n}" for n in range(200)])
    folder = Folder(str(tmp_path / "images"))
    with pytest.raises(InputError, match="found no answer to any of 60 requests"):
        fetch(folder, captions, ImageSpec(by_url=True, shard_size=60), execution(tmp_path))
    assert not folder.sizes("commits")


def test_loopback_is_refused_unless_the_execution_allows_it(
    server: PictureServer, captions: CaptionSet, tmp_path: Path
):
    closed = execution(tmp_path).model_copy(update={"allow_networks": ()})
    before = server.connections
    with pytest.raises(InputError, match="the host is at an address that is not public"):
        fetch(Folder(str(tmp_path / "images")), captions, SPEC, closed)
    assert server.connections == before


def test_damaged_tar_gives_what_stands_before_the_damage(captions: CaptionSet, tmp_path: Path):
    data = tar_of(captions, list(range(10)), jpeg)
    (tmp_path / "0.tar").write_bytes(data[: len(data) // 2])
    (tmp_path / "1.tar").write_bytes(tar_of(captions, [20, 21], jpeg))
    spec = ImageSpec(tars=(TarSource(collection="cc3m", glob="*.tar"),))
    found = fetch(Folder(str(tmp_path / "images")), captions, spec, execution(tmp_path, data=str(tmp_path)))
    good = [number for number, row in sorted(rows_by_caption(found).items()) if row.status == "ok"]
    assert good[-2:] == [20, 21]
    assert good[:-2] == list(range(len(good) - 2))
    assert 2 < len(good) < 12
    assert found.stats["damaged_tars"] == [str(tmp_path / "0.tar")]


def test_tar_that_changed_between_two_runs_is_gone_through_again(captions: CaptionSet, tmp_path: Path):
    spec = ImageSpec(tars=(TarSource(collection="cc3m", glob="*.tar"),))
    folder, run = Folder(str(tmp_path / "images")), execution(tmp_path, data=str(tmp_path))
    (tmp_path / "0.tar").write_bytes(tar_of(captions, [1, 2], jpeg))
    index_tars(folder, spec, captions, run, [0])
    (tmp_path / "0.tar").write_bytes(tar_of(captions, [4, 2, 1, 3, 6, 7, 8, 9], jpeg))
    rows = rows_by_caption(fetch(folder, captions, spec, run))
    assert [number for number, row in sorted(rows.items()) if row.status == "ok"] == [1, 2, 3, 4, 6, 7, 8, 9]


def test_spec_without_a_source_is_refused():
    with pytest.raises(SpecError, match="tars, or by_url"):
        SPEC.but(by_url=False)
    assert HASTY.concurrency


def test_first_of_many_errors_is_the_one_to_act_on():
    store = StoreError("found it full")
    nested = BaseExceptionGroup("", [ValueError("x"), ExceptionGroup("", [RuntimeError("y"), store])])
    assert first_of(nested) is store
    assert isinstance(first_of(ExceptionGroup("", [RuntimeError("y")])), RuntimeError)
