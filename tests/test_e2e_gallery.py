"""`thinkdiff gallery` on the miniature: from nothing to a page, another system beside it, and then from the store."""

from __future__ import annotations

import json
from pathlib import Path

from small_media import png
from small_run import SETTINGS, thinkdiff

PROMPTS = [
    {"name": "one", "images": ["a.png"]},
    {"name": "said", "images": ["a.png"], "text": "the star is at night ."},
]


def test_e2e_gallery_is_made_once_and_found_again(tmp_path: Path, world: Path):
    for name in ("gallery/a.png", "beside/other/said.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(png(name))
    (tmp_path / "gallery" / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    settings = {name: value for name, value in SETTINGS.items() if name.startswith(("captions", "aligner", "features"))}
    settings |= {"aligner.schedule_steps": 24, "gallery.draw.media.steps": 2}
    command = ["gallery", "mini-clip", "--root", str(tmp_path / "root"), "--data", str(world), "--json"]
    command += ["--folder", str(tmp_path / "gallery"), "--beside", str(tmp_path / "beside")]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    done = thinkdiff(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    first = json.loads(done.stdout)
    assert {line["state"] for line in first["stages"]} == {"Completed"}
    systems = {"ThinkDiff-CLIP", "untrained aligner", "words alone", "other", "the picture itself"}
    assert set(first["scores"]) == systems
    (trained,) = [Path(line["uri"]) for line in first["stages"] if line["role"] == "ThinkDiff-CLIP"]
    assert json.loads((trained / "config.json").read_text())["kind"] == "clip"
    page = Path(first["report"]).read_text()
    assert all(f'data-system="{name}"' in page for name in systems - {"the picture itself"})
    again = thinkdiff(*command)
    assert {line["state"] for line in json.loads(again.stdout)["stages"]} == {"Cached"}, again.stderr[-3000:]
