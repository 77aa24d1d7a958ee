"""The miniature by URL: the command line fetches the world's pictures from a local server, and again what failed."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from picture_server import PictureServer, Reply
from small_run import states, thinkdiff

from thinkdiff.flows.recipes import mini
from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.images import ImageSet
from thinkdiff.storage.image_shards import ImageReader
from thinkdiff.storage.records import read_record
from thinkdiff.storage.root import Folder

ROWS, SAMPLE = 600, 300


def pictures(data: Path) -> dict[str, bytes]:
    """The world's pictures by their URL's path, out of its tars; of a row that comes twice the first."""
    found: dict[str, bytes] = {}
    for tar in sorted(data.glob("mini-world-*/*/*.tar")):
        with tarfile.open(tar) as members:
            bodies = {m.name: members.extractfile(m).read() for m in members}  # pyright: ignore[reportOptionalMemberAccess]
        for name, body in bodies.items():
            if name.endswith(".json"):
                path = "/" + "/".join(json.loads(body)["url"].split("/")[-2:])
                found.setdefault(path, bodies[name.removesuffix("json") + "jpg"])
    return found


def run(root: Path, data: Path, *more: str, **settings: Any) -> dict[str, Any]:
    """`thinkdiff run mini` up to the pictures, of a small world."""
    settings = {"world.rows": ROWS, "captions.n": SAMPLE} | {k.replace("__", "."): v for k, v in settings.items()}
    assignments = [f"--set={name}={value}" for name, value in settings.items()]
    arguments = ["run", "mini", "--root", str(root), "--data", str(data), "--until", "fetch_images", "--json"]
    done = thinkdiff(*arguments, *assignments, *more)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def images(result: dict[str, Any]) -> ImageSet:
    """The pictures of a run."""
    found = read_record(Folder.at(result["stages"][1]["uri"]), ImageSet)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], ...]:
    """A run by URL while a tenth of the pictures is out of reach, one that fetches them, and one from the tars."""
    from thinkdiff.mini.dataset import ensure_world

    tmp_path, held = tmp_path_factory.mktemp("urls"), dict[str, bytes]()
    root, data, away = tmp_path / "root", tmp_path / "data", True

    def route(path: str) -> Reply:
        if path not in held or (away and int(path[-5]) == 3):
            return Reply(status=404)
        return Reply(held[path])

    with PictureServer(route) as server:
        world = mini().world
        assert world is not None
        spec = world.model_copy(update={"rows": ROWS, "url_base": server.url("")})
        ensure_world(spec, Execution(root=str(root), data=str(data)).data_root)
        held |= pictures(data)
        base = {"world__url_base": server.url("")}
        by_url = base | {"images__by_url": "true", "images__tars": "[]", "run__allow_networks": '["127.0.0.1/32"]'}
        first, asked = run(root, data, **by_url), server.seen.copy()
        before = images(first)
        away = False
        again = run(root, data, "--refetch-failed", run__workers=2, images__shard_size=1000, **by_url)
        asked_again = server.seen - asked
        tars = run(root, data, **base)
    return first, again, tars, {"before": before, "asked": asked, "asked_again": asked_again}


def test_e2e_urls_give_every_picture_that_the_server_has(result: tuple[dict[str, Any], ...]):
    before = result[3]["before"]
    assert before.counts["captions"] == SAMPLE == sum(result[3]["asked"].values())
    assert 20 < before.counts["failed"] < 70
    assert before.stats["reasons"] == {"HTTP 404": before.counts["failed"]}


def test_e2e_refetch_asks_for_the_failed_pictures_only(result: tuple[dict[str, Any], ...]):
    first, again, _, more = result
    assert states(again) == {"sample_captions": "Cached", "fetch_images": "Completed"}
    assert again["stages"][1]["uri"] == first["stages"][1]["uri"]
    assert again["stages"][1]["digest"] != first["stages"][1]["digest"]
    assert more["asked_again"].total() == more["before"].counts["failed"]
    assert images(again).counts["failed"] < 20


def test_e2e_urls_and_tars_give_the_same_bytes(result: tuple[dict[str, Any], ...]):
    by_url, by_tar = (ImageReader(images(found)) for found in result[1:3])
    assert [row[:9] for row in by_url.rows] == [row[:9] for row in by_tar.rows]
    assert by_url.read(by_url.ok) == by_tar.read(by_tar.ok)
