"""Everything that a report is made of, as the stages would have left it under a root, and a reader of its HTML."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thinkdiff.schemas.aligner import AlignerCheckpoint, AlignerSpec
from thinkdiff.schemas.artifact import FileEntry, Model, Parent, Provenance, content_digest
from thinkdiff.schemas.captions import CaptionSet
from thinkdiff.schemas.cobsat import CobsatPrompts, Family
from thinkdiff.schemas.features import STATISTICS, FeatureSet, FeatureSpec
from thinkdiff.schemas.images import ImageSet
from thinkdiff.schemas.media import MediaSet, MediaSpec
from thinkdiff.schemas.scores import ClassifierJudge, Scorecard, ScoreSpec
from thinkdiff.storage.caption_sample import SampledCaption
from thinkdiff.storage.feature_store import FeatureRow, FeatureWriter
from thinkdiff.storage.image_parts import ImageParts, Spool
from thinkdiff.storage.media_files import MediaWriter
from thinkdiff.storage.records import write_record
from thinkdiff.storage.root import Folder
from thinkdiff.storage.score_tables import (
    PROMPTS,
    READINGS,
    SECOND,
    VERDICTS,
    AskedPrompt,
    Reading,
    Verdict,
    write_rows,
)
from thinkdiff.tasks.cobsat import pictures, prompts, true_caption
from thinkdiff.tasks.feature_statistics import measure
from thinkdiff.tasks.score_cobsat import count

METHODS = ("aligned", "text_bridge", "true_caption")
ODDS = {"aligned": 0.7, "text_bridge": 0.85, "true_caption": 0.97}
HOSTILE = "</p><script>alert('x')</script><img src=https://evil.example/x onerror=alert(1)>"
KEYS = tuple(sorted(hashlib.sha256(bytes([i])).hexdigest()[:32] for i in range(10)))
THINGS = ("circle", "square", "star", "ring", "moon", "<b>heart")
ASKED = CobsatPrompts(
    families=tuple(
        Family(name=name, values=tuple(f"{name}-{n}" for n in range(6)), things=THINGS)
        for name in ("color", "background", "style", "action", "texture")
    ),
    images="cobsat",
    per_task=6,
    held_out=tuple(
        (name, f"{name}-{n}", THINGS[m]) for name in ("color", "style") for n in range(6) for m in (n, n - 1)
    ),
)


def artifact(kind, root: Path, stage, number: int, files=(), spec=None, parents=None, counts=None, stats=None):
    """An artifact with its record, as a stage would have left it."""
    folder = stage_folder(root, stage, number)
    entries = tuple(sorted(files, key=lambda entry: entry.path))
    made = kind(
        stage=stage, fingerprint=f"{number:032x}", digest=content_digest(entries), uri=folder.uri, spec=spec or {},
        version=1, files=entries, counts=counts or {}, stats=stats or {},
        parents={
            role: Parent(stage=p.stage, fingerprint=p.fingerprint, digest=p.digest, uri=p.uri)
            for role, p in (parents or {}).items()
        },
        provenance=Provenance(
            created="2026-01-02T03:04:05+00:00", seconds=1.5, host=f"host-of-{stage}", git_commit="c" * 40,
            packages={"torch": "2.13.0"},
        ),
    )  # fmt: skip
    write_record(made)
    return made


def stage_folder(root: Path, stage: str, number: int) -> Folder:
    return Folder.at(str(root / stage / f"{number:032x}"))


def png(seed: str, size: int = 8) -> bytes:
    """A picture of one colour with a darker square, its own for every seed."""
    rng = random.Random(seed)
    pixels = np.full((size, size, 3), [rng.randrange(80, 256) for _ in range(3)], np.uint8)
    pixels[size // 4 : size // 2, size // 4 : size // 2] //= 2
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def make_images(folder: Folder) -> list[FileEntry]:
    """A picture for each of KEYS but the last."""
    parts, spool = ImageParts(folder, len(KEYS), len(KEYS)), Spool()
    for place, key in enumerate(KEYS[:-1]):
        spool.hold(place, png(key), 8, 8, "png")
    captions = [SampledCaption(key, "cc3m", f"http://x/{key}", "words") for key in KEYS]
    parts.commit(0, captions, spool, {len(KEYS) - 1: "HTTP <404>"})
    spool.close()
    return list(parts.files()[0])


def make_features(folder: Folder) -> list[FileEntry]:
    """A row for each of KEYS, channel 3 ten times as large as the others, and the statistics."""
    writer = FeatureWriter(folder, rows=len(KEYS), tokens=2, width=5, dtype="float32", shard_size=4)
    writer.prepare()
    for shard in range(writer.shards):
        rows = [
            FeatureRow(KEYS[i], f"ask {i}?", (1, 2), 1, f"answer {i} {HOSTILE}", np.full((2, 5), i + 1, np.float32))
            for i in writer.span(shard)
        ]
        for row in rows:
            row.features[:, 3] *= 10
        writer.commit(shard, rows)
    files = writer.files()
    found = measure(writer.reader(files), ended=len(KEYS), tokens=2 * len(KEYS))
    entry = folder.write(STATISTICS, found.model_dump_json().encode())
    return [*files, entry.model_copy(update={"content": False})]


def make_media(root: Path, number: int, queries: FeatureSet, methods=METHODS) -> MediaSet:
    """Pictures of every prompt; two answers of three name what is asked for, and so do two readings of three."""
    folder, asked = stage_folder(root, "generate_media", number), prompts(ASKED)
    rows = [
        AskedPrompt(
            p.name,
            p.task,
            p.family,
            p.shots,
            p.held_out,
            p.target_value,
            p.target_thing,
            f"{HOSTILE} {true_caption(ASKED, p) if i % 3 else ''}",
            true_caption(ASKED, p),
        )
        for i, p in enumerate(asked)
    ]
    read = [Reading(p.name, f"<u>{true_caption(ASKED, p) if i // 3 % 3 else ''}") for i, p in enumerate(asked)]
    files = [write_rows(folder, PROMPTS, AskedPrompt, rows), write_rows(folder, READINGS, Reading, read)]
    for method in methods:
        files += MediaWriter(folder).commit(method, 0, [(p.name, png(method + p.name)) for p in asked])
    spec = MediaSpec(decoder=Model(name="some/decoder"), t5=Model(name="t5"), methods=methods).model_dump(mode="json")
    stats = {"methods": list(methods)}
    return artifact(MediaSet, root, "generate_media", number, files, spec, {"queries": queries}, {"pictures": 1}, stats)


def make_scores(root: Path, number: int, media: MediaSet, odds: dict[str, float], seed: int) -> Scorecard:
    rng, verdicts = random.Random(seed), []
    for method, p in itertools.product(media.stats["methods"], prompts(ASKED)):
        right = rng.random() < odds[method]
        value = p.target_value if right else "<i>none"
        verdicts.append(
            Verdict(
                method, p.name, p.task, p.family, p.shots, p.held_out, p.target_value, p.target_thing,
                value, p.target_thing, right, True, right, 0.0,
            )
        )  # fmt: skip
    other = [v._replace(right=True, value=v.target_value) if rng.random() < 0.2 else v for v in verdicts]
    found = {m: count([v for v in verdicts if v.method == m], 0.95) for m in media.stats["methods"]}
    folder = stage_folder(root, "score_cobsat", number)
    files = [
        write_rows(folder, VERDICTS, Verdict, verdicts),
        write_rows(folder, SECOND, Verdict, other),
        folder.write("scores.json", json.dumps({"confidence": 0.95, "methods": found}).encode()),
    ]
    headline = {m: {s: by[s]["mean"]["accuracy"] for s in by} for m, by in found.items()}
    spec = ScoreSpec(judge=ClassifierJudge(model=Model(name="some/judge"))).model_dump(mode="json")
    return artifact(Scorecard, root, "score_cobsat", number, files, spec, {"media": media}, stats={"scores": headline})


def make_aligner(root: Path, number: int, end: float) -> AlignerCheckpoint:
    """An aligner whose losses fall to `end`, and on held-out rows to twice as much."""
    losses = {"training": [end + 4 / (1 + i) for i in range(300)], "validation": [[150, 3 * end], [300, 2 * end]]}
    entry = stage_folder(root, "train_aligner", number).write("losses.json", json.dumps(losses).encode())
    spec = AlignerSpec(t5=Model(name="t5")).model_dump(mode="json")
    return artifact(AlignerCheckpoint, root, "train_aligner", number, [entry], spec, counts={"steps": 300})


def build(root: Path) -> tuple[dict[str, Any], dict[str, Scorecard]]:
    """The stage's parents by role and its variants, with hostile words in every text that data bring."""
    for picture in pictures(ASKED):
        path = root / "data" / "cobsat" / picture.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture.path))
    counted = {"captions": 300, "rows": 4321, "malformed": 21, "filtered": 17, "rows_cc3m": 4321, "sampled_cc3m": 300}
    judged = {"malformed": {"cc3m: not UTF-8": 21}, "filtered": {"too few words": 17}, "caption_words": {"1-8": 299}}
    captions = artifact(CaptionSet, root, "sample_captions", 1, counts=counted, stats=judged)
    images = artifact(
        ImageSet, root, "fetch_images", 2, make_images(stage_folder(root, "fetch_images", 2)), None,
        {"captions": captions}, {"images": 299, "failed": 1}, {"reasons": {"HTTP <404>": 1}},
    )  # fmt: skip
    vlm = Model(name="some/vlm")
    features = artifact(
        FeatureSet, root, "extract_features", 3, make_features(stage_folder(root, "extract_features", 3)),
        FeatureSpec(vlm=vlm).model_dump(mode="json"),
    )  # fmt: skip
    queries = artifact(
        FeatureSet, root, "extract_features", 4, spec=FeatureSpec(vlm=vlm, prompts=ASKED).model_dump(mode="json")
    )
    losses: dict[str, Any] = {
        "training": [5 / (1 + i / 20) for i in range(200)],
        "validation": [[100, 1.25], [200, 0.875]],
    }
    losses["readings"] = [{"step": 200, "rows": [{"expected": "a <b>red</b> hat", "read": "a green star"}]}]
    entry = stage_folder(root, "train_aligner", 5).write("losses.json", json.dumps(losses).encode())
    aligner = artifact(
        AlignerCheckpoint, root, "train_aligner", 5, [entry], AlignerSpec(t5=Model(name="t5")).model_dump(mode="json"),
        counts={"steps": 200, "training_rows": 250, "validation_rows": 49, "parameters": 12345},
    )  # fmt: skip
    media = make_media(root, 6, queries)
    scores = make_scores(root, 7, media, ODDS, seed=0)
    levels = {
        "aligned": 0.7, "no masking": 0.2, "input tokens": 0.69,
        "aligned, less robust decoder": 0.3, "no masking, less robust decoder": 0.9,
    }  # fmt: skip
    alone = make_media(root, 8, queries, ("aligned",))
    variants = {
        f"{name}, seed {seed}": make_scores(root, 100 + 10 * i + seed, alone, {"aligned": level}, seed=9 * i + seed)
        for i, (name, level) in enumerate(levels.items())
        for seed in range(5)
    }
    ends = {"aligned": 0.2, "default norm": 0.5, "no norm": 2.0, "CLIP: aligned": 1.0}
    trained = {
        f"{name}, seed {seed}": make_aligner(root, 60 + 10 * i + seed, end + seed / 10)
        for i, (name, end) in enumerate(ends.items())
        for seed in range(3)
    }
    parents = {
        "trained": trained,
        "captions": captions,
        "images": images,
        "features": features,
        "aligner": aligner,
        "media": media,
        "scores": scores,
    }
    return parents, variants


class Parsed(HTMLParser):
    """The elements of a page: attributes, tables as lists of rows of texts, and the text. Fails on unbalanced tags."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "input"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.words.append(data)
        if self._open and ("td" in self._open or "th" in self._open):
            self.tables[-1][-1][-1] += data + " "

    def table(self, first: str) -> dict[str, list[str]]:
        """The rows of the first table with that cell in its head, by their first cell."""
        found = next(t for t in self.tables if first in [cell.strip() for cell in t[0]])
        return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in found[1:]}

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
