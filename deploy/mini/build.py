"""Trains the whole miniature from a seed and writes its model card: `build_mini(out)`.

The models are trained in order, since the later need the earlier: judge, autoencoder, T5, FLUX (a clean start, then the
released model and its less robust sister). The VLM, the vision tower and the CLIP need none of them, so `only=("vlm",)`
can run in a second process.
Every model leaves `training.json` beside its weights; the card, `README.md`, is written from these files.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thinkdiff.mini import release
from thinkdiff.schemas.errors import SpecError
from thinkdiff.tasks.qwen_engine import prepare_torchvision

STAGES = ("judge", "autoencoder", "t5", "flux_start", "flux", "flux_less_robust", "vlm", "tower", "clip")
# folders of the card, in its order
FOLDERS = (
    "mini-qwen2-vl",
    "mini-eva-clip",
    "mini-t5",
    "mini-flux",
    "mini-flux/vae",
    "mini-flux-less-robust",
    "mini-judge",
    "mini-openai-clip",
)
CARD = "README.md"
SCORINGS = "scorings.jsonl"


def build_mini(out: Path, seed: int = 0, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Train into the folder `out` and return each stage's report; `only` names stages of `STAGES`.

    About 85 CPU minutes on one core. Repeatable on one machine: one thread, all draws from `seed`. Raises SpecError
    for a stage that there is not.
    """
    if unknown := [name for name in only if name not in STAGES]:
        raise SpecError(f"build-mini: found the model {unknown[0]!r}, expected one of {', '.join(STAGES)}.")
    prepare_torchvision()
    out.mkdir(parents=True, exist_ok=True)
    reports = {name: _trainers()[name](out, seed) for name in STAGES if not only or name in only}
    if not only:  # after a part of them the clean start may be needed again
        shutil.rmtree(out / "mini-flux-start", ignore_errors=True)
    write_card(out)
    return reports


def _trainers() -> dict[str, Callable[[Path, int], dict[str, Any]]]:
    from thinkdiff.mini import train_autoencoder, train_clip, train_flux, train_judge, train_t5, train_tower, train_vlm

    return {
        "judge": train_judge.train_judge,
        "autoencoder": train_autoencoder.train_autoencoder,
        "t5": train_t5.train_t5,
        "flux_start": train_flux.train_flux_start,
        "flux": train_flux.train_flux,
        "flux_less_robust": train_flux.train_flux_less_robust,
        "vlm": train_vlm.train_vlm,
        "tower": train_tower.train_tower,
        "clip": train_clip.train_clip,
    }


def log_scoring(weights: Path, what: str, test_seed: int, result: dict[str, Any]) -> None:
    """Append one scoring of the whole pipeline to the log that the card shows, and write the card again.

    Every use of a test seed is a line, also those whose result one would rather not have seen.
    """
    line = {"date": time.strftime("%Y-%m-%d"), "what": what, "test_seed": test_seed, "result": result}
    with (weights / SCORINGS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    write_card(weights)


def write_card(weights: Path) -> None:
    """Write `README.md` from the reports and the log of scorings."""
    reports = {
        folder: json.loads(path.read_text())
        for folder in FOLDERS
        if (path := weights / folder / "training.json").exists()
    }
    scorings: list[dict[str, Any]] = []
    if (log := weights / SCORINGS).exists():
        scorings = [json.loads(line) for line in log.read_text().splitlines()]
    parts = [_HEAD, _table(reports), *(_figures(name, report) for name, report in reports.items())]
    parts += [_NOTES.format(tuning_seed=release.TUNING_SEED, scale=_scale(reports)), _scoring_log(scorings)]
    (weights / CARD).write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


def _table(reports: dict[str, dict[str, Any]]) -> str:
    lines = ["| folder | what it is | parameters | steps | CPU s | seed |", "|---|---|---:|---|---:|---:|"]
    total = 0.0
    for name, r in reports.items():
        start = r.get("clean_start", {}).get("cpu_seconds", 0.0)
        total += r["cpu_seconds"] + (start if name == "mini-flux" else 0.0)
        spent = f"{start:.0f} + {r['cpu_seconds']:.0f}" if start else f"{r['cpu_seconds']:.0f}"
        lines.append(f"| `{name}` | {r['what']} | {r['parameters']:,} | {r['steps']} | {spent} | {r['seed']} |")
    lines += ["", f"Together {total / 60:.0f} CPU minutes on one core; both FLUX share their clean start."]
    return "\n".join(lines)


def _scale(reports: dict[str, dict[str, Any]]) -> str:
    return str(reports["mini-t5"]["scale_factor"]) if "mini-t5" in reports else "a scale factor"


def _figures(name: str, report: dict[str, Any]) -> str:
    lines = [f"### {name}", f"Fresh data, test seed {report['test_seed']}.", ""]
    for key, value in report["scores"].items():
        shown = ", ".join(f"{k} {v:.3f}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"- {key.replace('_', ' ')}: {shown}")
    return "\n".join(lines)


def _scoring_log(scorings: list[dict[str, Any]]) -> str:
    lines = ["## Log of scorings", ""]
    for s in scorings:
        lines += [f"{s['date']}, test seed {s['test_seed']}: {s['what']}.", ""]
        lines += [f"- {name}: {value}" for name, value in s["result"].items()] + [""]
    return "\n".join(lines) if scorings else "## Log of scorings\n\nNone yet."


_HEAD = """
# The miniature's weights

Real architectures at tiny sizes, trained from scratch on a procedural world by `thinkdiff build-mini` (`deploy/mini`),
so that the whole pipeline runs on a bare machine. They know 32x32 pictures of eight shapes and a few dozen words, and
nothing else. Weights are stored in bfloat16 and are meant to compute in float32. Licence: the project's.
"""

_NOTES = """
## What to know before quoting a figure

- **Held-out pairs.** One (object, value) pair in six, by a fixed rule (`world.is_held_out`), is in no picture and no
  caption that the VLM, the T5, the diffusion model or the collections have seen. Only the judge, the autoencoder and
  the CLIP, which judges likeness, have seen all pairs. "Held out" above means that at least one such pair is shown.
- **Conditioning noise is a stand-in.** `mini-flux` was trained with noise on its prompt embeddings. A real FLUX,
  trained on the captions of the web, tolerates embeddings that are near T5's; a tiny one does not by itself, and
  without the noise the transfer from aligned features to pictures does not happen. `mini-flux-less-robust` has met
  mild noise only and shows how the comparison of alignments depends on the decoder.
- **T5's scale factor.** `mini-t5` is released with its encoder's final norm multiplied by {scale} and its decoder's
  cross-attention (and FLUX's `context_embedder`) divided by it. No output changes, but the T5 features are then much
  smaller (rms about 0.06) than the VLM's (about 1.3), as with real models, and whether the aligner's norm starts from
  T5's weights matters visibly. The log of scorings has the result at scale 1.
- **The empty prompt** of classifier-free guidance is T5's `</s>` alone, repeated to the length of the prompt.
- **Seeds.** Nothing was chosen on the benchmark's seed; recipes come from earlier prototypes, whose tuning tasks have
  seed {tuning_seed}. Each model was trained once with these settings, so no spread over trainings is known. The
  autoencoder was trained twice: with more noise on its latents it lost dots and grains, seen on its own test pictures,
  so its figures above are a little optimistic.
- **Weak spots.** The autoencoder and so FLUX fade some `grainy` textures. `mini-t5` and the VLM's captions fall back to
  familiar words for held-out pairs more often than the pictures do.
"""
