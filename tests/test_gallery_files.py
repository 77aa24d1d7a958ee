"""A gallery's folder from a stranger: what is taken, and for everything else one sentence."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hostile_images import pictures as hostile_pictures
from PIL import Image
from s3_server import place, s3  # noqa: F401
from small_media import png

from thinkdiff.schemas.artifact import Execution, fingerprint
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.gallery import GalleryPrompt
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.gallery_files import (
    LIST,
    gallery_files,
    gallery_source,
    given_files,
    given_gallery,
    list_bytes,
    listed,
    systems,
    upright_pngs,
)

PROMPTS = [
    {"name": "one", "images": ["a.png"]},
    {"name": "said", "images": ["a.png"], "text": " at night "},
    {"name": "two", "images": ["a.png", "below/b.png"], "text": ""},
    {"name": "film", "images": ["below/b.png"], "text": "it spins", "video": True},
    {"name": "words", "text": "a star"},
]
RUN = Execution()


def give(folder: Folder, prompts=PROMPTS) -> Folder:
    for name in ("a.png", "below/b.png"):
        folder.write(name, png(name))
    folder.write(LIST, "\n".join(json.dumps(line) for line in prompts).encode() + b"\n\n")
    return folder


def test_gallery_is_read_from_a_disk_and_a_bucket(place: Folder):  # noqa: F811
    found = gallery_files(give(place))
    assert [prompt.kind for prompt in found.prompts] == ["image", "image + text", "several images", "video", "text"]
    assert found.prompts[1].text == "at night"
    assert list(found.pictures) == ["a.png", "below/b.png"]
    again = listed(list_bytes(found.prompts), "again")
    assert again == found.prompts
    pictures = dict(upright_pngs(found, found.pictures, 16, RUN))
    with Image.open(io.BytesIO(pictures["below/b.png"])) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (16, 16))


def test_spec_tells_bytes_and_not_places(tmp_path: Path):
    one, other = (give(Folder.at(str(tmp_path / name))) for name in ("one", "other"))
    other.write("unnamed.png", png("unnamed"))
    specs = [gallery_source(folder.uri, 64) for folder in (one, other)]
    assert specs[0] == specs[1]
    other.write("a.png", png("c"))
    give(one, PROMPTS[:-1])
    changed = [gallery_source(folder.uri, 64) for folder in (one, other)]
    assert len({fingerprint(spec, {}) for spec in (specs[0], *changed)}) == 3


BAD = {
    "no JSON": ("{", "line 1: prompt: found b'{', expected: invalid JSON"),
    "no object": ("[1]", "line 1: prompt: found [1], expected: input should be an object"),
    "no name": ('{"images": ["a.png"]}', "prompt.name: found {'images': ['a.png']}, expected: field required"),
    "unknown": ('{"name": "x", "text": "y", "size": 3}', "prompt.size: found 3, expected: extra inputs are not"),
    "name leaves": ('{"name": "../x", "text": "y"}', "prompt.name: found '../x', expected: string should match"),
    "nothing": ('{"name": "x"}', "a prompt needs a picture or a text"),
    "parent": ('{"name": "x", "images": ["../a.png"]}', "the path must stay inside the gallery's folder"),
    "below parent": ('{"name": "x", "images": ["b/../../a.png"]}', "the path must stay inside the gallery's folder"),
    "absolute": ('{"name": "x", "images": ["/etc/a.png"]}', "prompt.images.0: found '/etc/a.png', expected: string"),
    "backslash": ('{"name": "x", "images": ["..\\\\a.png"]}', "prompt.images.0: found '..\\\\a.png', expected: string"),
    "URL": ('{"name": "x", "images": ["http://h/a.png"]}', "prompt.images.0: found 'http://h/a.png', expected: string"),
    "many": (json.dumps({"name": "x", "images": ["a.png"] * 9}), "tuple should have at most 8 items"),
    "control": ('{"name": "x", "text": "a\\u001b[2J"}', "the text must be one line without control characters"),
    "surrogate": ('{"name": "x", "text": "a\\ud800"}', "line 1: prompt: found"),
    "long": (json.dumps({"name": "x", "text": "y" * 3000}), "expected: string should have at most 2000 characters"),
    "deep": ("[" * 100_000, "line 1: prompt: found"),
    "no UTF-8": (b'{"name": "x", "text": "\xff"}', "line 1: prompt: found"),
    "empty": ("\n \n", "found no prompts, expected a line of JSON for each"),
    "twice": ('{"name": "x", "text": "y"}\n' * 2, "found 1 names twice (x), expected each once"),
    "number": ('{"name": "x", "text": "y", "video": 3}', "prompt.video: found 3, expected: input should be a valid b"),
}


@pytest.mark.parametrize("kind", BAD)
def test_list_that_is_none_is_refused_in_one_sentence(kind: str):
    data, says = BAD[kind]
    with pytest.raises(InputError) as caught:
        listed(data if isinstance(data, bytes) else data.encode(), "s3://x/prompts.jsonl")
    said = str(caught.value)
    assert said.startswith("s3://x/prompts.jsonl")
    assert says in said
    assert "\n" not in said
    assert len(said) < 600


def test_second_line_is_told_by_its_number():
    with pytest.raises(InputError, match=r"prompts\.jsonl, line 3: prompt\.name: found 7"):
        listed(b'{"name": "x", "text": "y"}\n\n{"name": 7}\n', "prompts.jsonl")


def test_folder_that_is_no_gallery_or_lacks_pictures_is_refused(tmp_path: Path):
    folder = Folder.at(str(tmp_path / "there"))
    with pytest.raises(InputError, match=r"found no prompts\.jsonl, expected a gallery"):
        gallery_files(folder)
    give(folder, [*PROMPTS, {"name": "lost", "images": ["c.png", "d.png"]}])
    with pytest.raises(InputError, match=r"found no file for 2 of 4 pictures \(c\.png, d\.png\)"):
        gallery_files(folder)


def test_links_are_no_files(tmp_path: Path):
    """A stranger's gallery must not show what lies elsewhere on the disk."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "p.png").write_bytes(png("private"))
    folder = give(Folder.at(str(tmp_path / "gallery")))
    (tmp_path / "gallery" / "c.png").symlink_to("../private/p.png")
    (tmp_path / "gallery" / "sub").symlink_to("../private")
    give(folder, [{"name": "x", "images": ["a.png", "c.png", "sub/p.png"]}])
    with pytest.raises(InputError, match=r"found no file for 2 of 3 pictures \(c\.png, sub/p\.png\)"):
        gallery_files(folder)


def test_bombs_and_other_files_are_told_together_and_turned_pictures_are_upright(tmp_path: Path):
    folder, every = Folder.at(str(tmp_path)), hostile_pictures()
    bad = {name: every[name][0] for name in ("bomb-pixels", "html", "apng")}
    for name, data in bad.items():
        folder.write(f"{name}.png", data)
    folder.write("turned.jpg", every["turned"][0])
    give(folder, [{"name": "x", "images": [*(f"{name}.png" for name in bad), "turned.jpg"]}])
    found = gallery_files(folder)
    with pytest.raises(InputError) as caught:
        upright_pngs(found, found.pictures, 64, RUN)
    said = str(caught.value)
    assert said.startswith(f"{folder.uri}: found 3 files that are no picture (bomb-pixels.png: 30000x30000 pixels")
    assert "but HTML" in said
    ((_, data),) = upright_pngs(found, ["turned.jpg"], 64, RUN)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (48, 64)


def test_other_systems_are_found_by_their_folders(tmp_path: Path):
    prompts = [GalleryPrompt(name=name, text="x") for name in ("one", "two", "three")]
    folder = Folder.at(str(tmp_path))
    folder.write("flux-ultra/one.png", png("1"))
    folder.write("flux-ultra/two.jpg", png("2"))
    folder.write("flux-ultra/four.png", png("4"))
    folder.write("readme.txt", b"no system")
    assert systems(folder.uri) == ["flux-ultra"]
    found = given_files(folder, "flux-ultra", prompts)
    assert {name: entry.path for name, entry in found.pictures.items()} == {
        "one": "flux-ultra/one.png", "two": "flux-ultra/two.jpg",
    }  # fmt: skip
    spec = given_gallery(folder.uri, "flux-ultra", prompts)
    folder.write("flux-ultra/three.png", png("3"))
    assert given_gallery(folder.uri, "flux-ultra", prompts).digest != spec.digest
    folder.write("empty/x.png", b"")
    with pytest.raises(InputError, match=r"empty: found no picture of any of 3 prompts, expected one\.png"):
        given_gallery(folder.uri, "empty", prompts)
    with pytest.raises(InputError, match="found no folders, expected one for each system"):
        systems(str(tmp_path / "flux-ultra"))
    folder.write("a b/one.png", png("1"))
    with pytest.raises(SpecError, match="name: found 'a b'"):
        given_gallery(folder.uri, "a b", prompts)
