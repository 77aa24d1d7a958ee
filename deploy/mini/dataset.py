"""Writes the miniature's data as people have such data: caption files, img2dataset tars, CoBSAT's picture folders.

Below the world's folder: `cc3m.tsv`, `cc12m.tsv` and `sbu-captions-all.json` in their native formats, one WebDataset
tar for every 1,000 rows of a collection, `cobsat/<family>_<object>/<value>_<object>.jpg` for every pair, and last
`world.json`, whose presence says that all else is there. `gallery`, pictures with `prompts.jsonl`, is written when it
is asked for. The collections and the gallery hold no held-out pair; the benchmark holds all. Deterministic in the
seeds, byte for byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thinkdiff.mini import renderer, vlm_prompts, world
from thinkdiff.schemas.pipeline import World
from thinkdiff.storage.pixels import png
from thinkdiff.storage.root import Folder
from thinkdiff.tasks.cobsat import image_path

DONE = "world.json"
BENCHMARK_FOLDER, GALLERY_FOLDER = "cobsat", "gallery"
# name, pictures of a prompt, whether it has words
GALLERY_KINDS = (("image", 1, False), ("image-text", 1, True), ("images", 2, False), ("images-text", 2, True))
GALLERY_PROMPTS = 12  # of each kind
ROWS_IN_A_TAR = 1000
MISSING_SHARE = 0.02
REPEATED_ROWS = 5
# name, caption file, share of all rows
COLLECTIONS = (
    ("cc3m", "cc3m.tsv", 3500 / 9000),
    ("cc12m", "cc12m.tsv", 4000 / 9000),
    ("sbu", "sbu-captions-all.json", 1500 / 9000),
)
# how people label such a picture; {} is the noun phrase without its article
ALT_TEXTS = (
    "a {}",
    "{}",
    "drawing of a {}",
    "{} icon",
    "stock picture of a {}",
    "a {} shown on a plain background",
    "clip art, {}",
    "simple {} shape",
    "this is a {}",
    "nice drawing showing a {}",
)


@dataclass(frozen=True)
class Row:
    """One row of a collection: what its caption file says and what its picture shows."""

    url: str
    caption: str
    attributes: tuple[int, ...]


def ensure_world(spec: World, data_root: str) -> None:
    """Write the world below `data_root` (a path or an s3 URL) unless its `world.json` says that it is there."""
    if is_there(spec, data_root):
        return
    out = Folder.at(data_root) / spec.folder
    counts = write_collections(out, spec.seed, spec.rows, spec.url_base)
    counts["benchmark_pictures"] = write_benchmark(out / BENCHMARK_FOLDER, spec.benchmark_seed)
    digests = {file: hashlib.sha256(out.read(file)).hexdigest() for _, file, _ in COLLECTIONS}
    done = {"spec": spec.model_dump(mode="json"), "counts": counts, "sha256": digests}
    out.write(DONE, json.dumps(done, indent=2).encode())


def is_there(spec: World, data_root: str) -> bool:
    """Whether the world's `world.json` says that it is below `data_root`."""
    try:
        return json.loads((Folder.at(data_root) / spec.folder).read(DONE))["spec"] == spec.model_dump(mode="json")
    except FileNotFoundError:
        return False


def ensure_gallery(spec: World, data_root: str) -> str:
    """Write the gallery below `data_root` unless it is there; returns where it is."""
    out = Folder.at(data_root) / spec.folder / GALLERY_FOLDER
    if not out.exists("prompts.jsonl"):
        write_gallery(out, spec.benchmark_seed)
    return out.uri


def write_gallery(out: Folder, seed: int) -> int:
    """Write 48 prompts, twelve of each kind, with their pictures; `prompts.jsonl` last. Returns how many prompts.

    A picture shows one named value; the second of two shows another object. Words give the first one's object a value
    of another family. No pair is a held-out one.
    """
    rng = np.random.default_rng([seed, 3])
    singles, lines = world.single_attribute_pictures(), list[str]()
    for kind, count, words in GALLERY_KINDS:
        for number, first in enumerate(rng.permutation(singles)[:GALLERY_PROMPTS]):
            others = singles[singles[:, 0] != first[0]]
            rows = np.stack([first, others[rng.integers(len(others))]][:count])
            pictures = [
                (f"{kind}-{number}-{place}.png", drawn) for place, drawn in enumerate(renderer.render(rows, rng), 1)
            ]
            for name, drawn in pictures:
                out.write(name, png(drawn))
            said = " ".join(world.detail_sentences(other_value(first, singles, rng))) if words else ""
            line = {"name": f"{kind}-{number}", "images": [name for name, _ in pictures], "text": said}
            lines.append(json.dumps(line))
    out.write("prompts.jsonl", "\n".join(lines).encode())
    return len(lines)


def other_value(row: world.Attributes, singles: world.Attributes, rng: np.random.Generator) -> world.Attributes:
    """A row of the same object with a value of another family, which can be seen beside the first."""
    family = int(np.flatnonzero(row[1:])[0])
    same = singles[(singles[:, 0] == row[0]) & (singles[:, 1 + family] == 0)]
    return same[rng.integers(len(same))]


def write_collections(out: Folder, seed: int, rows: int = 9000, url_base: str | None = None) -> dict[str, int]:
    """Write three collections of `rows` rows together with their pictures; returns counts by name.

    A few rows come twice, and about 2 % of the pictures are missing from the tars, as img2dataset leaves a download
    that failed.
    """
    rng, counts = np.random.default_rng([seed, 1]), {"missing_pictures": 0}
    for name, file, share in COLLECTIONS:
        base = f"{url_base}/{name}" if url_base else f"https://{name}.example"
        collection = _draw_rows(base, max(ROWS_IN_A_TAR // 100, round(rows * share)), rng)
        out.write(file, _caption_file(name, collection).encode())
        counts[name] = len(collection)
        for tar, start in enumerate(range(0, len(collection), ROWS_IN_A_TAR)):
            data, missing = _tar(collection[start : start + ROWS_IN_A_TAR], tar, rng)
            out.write(f"{name}/{tar:05d}.tar", data)
            counts["missing_pictures"] += missing
    return counts


def write_benchmark(out: Folder | Path, seed: int) -> int:
    """Write one picture for every (value, object) of every family into CoBSAT's folders; returns how many.

    Held-out pairs are among them; `heldout.json` lists these as `[family, value, object]`. Half of the pictures show a
    distracting attribute of another family, so that the answer has to be inferred and not copied.
    """
    folder = Folder.at(str(out)) if isinstance(out, Path) else out
    rng = np.random.default_rng([seed, 2])
    names, rows = [], []
    for family, values in world.FAMILIES.items():
        for value, word in enumerate(values, start=1):
            for obj, noun in enumerate(world.OBJECTS):
                names.append(image_path(family, word, noun))
                pair = (obj, value)
                distracted = rng.random() < 0.5
                rows.append(
                    vlm_prompts.picture(pair, world.FAMILY_NAMES.index(family), rng, distracted, all_pairs=True)
                )
    for name, drawn in zip(names, renderer.render(np.array(rows), rng), strict=True):
        folder.write(name, renderer.encode_jpeg(drawn))
    folder.write("heldout.json", json.dumps(world.held_out_pairs()).encode())
    return len(names)


def _draw_rows(base: str, count: int, rng: np.random.Generator) -> list[Row]:
    attributes = world.sample_attributes(count, rng)
    templates = rng.integers(len(ALT_TEXTS), size=count)
    rows = [
        Row(
            url=f"{base}/{i:06d}.jpg",
            caption=_alt_text(ALT_TEXTS[templates[i]], attributes[i]),
            attributes=tuple(attributes[i].tolist()),
        )
        for i in range(count)
    ]
    for repeated in rng.choice(count // 2, size=min(REPEATED_ROWS, count // 4), replace=False):
        rows[count - 1 - int(repeated)] = rows[int(repeated)]
    return rows


def _alt_text(template: str, row: world.Attributes) -> str:
    article, *phrase = world.noun_phrase(row)
    return template.replace("a {}", f"{article} {{}}").format(" ".join(phrase))


def _caption_file(name: str, rows: list[Row]) -> str:
    if name == "cc3m":
        return "".join(f"{row.caption}\t{row.url}\n" for row in rows)
    if name == "cc12m":
        return "".join(f"{row.url}\t{row.caption}\n" for row in rows)
    return json.dumps(
        {
            "image_urls": [row.url for row in rows],
            "user_ids": [f"user{i % 97:02d}" for i in range(len(rows))],
            "captions": [row.caption for row in rows],
        }
    )


def _tar(rows: list[Row], shard: int, rng: np.random.Generator) -> tuple[bytes, int]:
    """One img2dataset tar: `.jpg`, `.txt` and `.json` a row, nothing at all for a failed download."""
    drawn = renderer.render(np.array([row.attributes for row in rows]), rng)
    failed = rng.random(len(rows)) < MISSING_SHARE
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i, row in enumerate(rows):
            if failed[i]:
                continue
            key, jpeg = f"{shard:05d}{i:04d}", renderer.encode_jpeg(drawn[i])
            _add(tar, f"{key}.jpg", jpeg)
            _add(tar, f"{key}.txt", row.caption.encode())
            _add(tar, f"{key}.json", json.dumps(_download_record(row, key, jpeg)).encode())
    return buffer.getvalue(), int(failed.sum())


def _download_record(row: Row, key: str, jpeg: bytes) -> dict[str, object]:
    side = renderer.SIDE
    return {
        "caption": row.caption,
        "url": row.url,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": side,
        "height": side,
        "original_width": side,
        "original_height": side,
        "exif": "{}",
        "sha256": hashlib.sha256(jpeg).hexdigest(),
    }


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
