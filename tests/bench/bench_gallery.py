"""Does ThinkDiff-CLIP's miniature draw what it is shown and told? The miniature's judge counts.

    python tests/bench/bench_gallery.py ROOT [--prompts 200] [--seed 11]

ROOT is one in which `thinkdiff gallery mini-clip` has run: its two aligners are used. Pictures show an object with one
named value; words give the object a value of another family. Right are the object, what the picture shows and what the
words say; the shares are over prompts, with Wilson's 95 % intervals, for fresh pictures of no gallery.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch

from thinkdiff.flows.recipes import execution, mini_clip
from thinkdiff.mini import dataset, renderer, world
from thinkdiff.mini.release import weights_folder
from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import Execution
from thinkdiff.storage.pixels import png
from thinkdiff.storage.records import artifact_folder, find_artifacts, read_record
from thinkdiff.tasks.judge import Wanted
from thinkdiff.tasks.judge_classifier import ClassifyingJudge
from thinkdiff.tasks.pipeline import ThinkDiffPipeline
from thinkdiff.tasks.score_cobsat import wilson

KINDS = {"picture": (True, False), "picture and words": (True, True), "words alone": (False, True)}


def aligner_of(root: str, steps: int) -> AlignerCheckpoint:
    """The recipe's aligner of that many steps."""
    wanted = mini_clip().aligner.but(steps=steps).model_dump(mode="json")
    for found in find_artifacts(root, ("train_aligner",)):
        whole = read_record(artifact_folder(root, "train_aligner", found.fingerprint), AlignerCheckpoint)
        if whole is not None and whole.spec == wanted:
            return whole
    raise SystemExit(
        f"{root}: found no aligner of {steps} steps; run `thinkdiff gallery mini-clip --root {root}` first"
    )


def value_of(row: world.Attributes) -> tuple[str, str]:
    """The one family that a picture names, and its value."""
    return next((f, value) for f in world.FAMILY_NAMES if (value := world.value_word(row, f)))


def share(right: Sequence[bool]) -> str:
    """A share with its interval."""
    low, high = wilson(sum(right), len(right), 0.95)
    return f"{np.mean(right):.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec, rng = mini_clip(), np.random.default_rng(options.seed)
    assert spec.gallery is not None
    run, singles = execution(Execution(root=options.root, device="cpu"), spec), world.single_attribute_pictures()
    shown = singles[rng.integers(len(singles), size=options.prompts)]
    said = np.stack([dataset.other_value(row, singles, rng) for row in shown])
    pictures = renderer.render(shown, rng)
    judge = ClassifyingJudge(str(weights_folder() / "mini-judge"), "cpu")
    for name, steps in (("trained", spec.aligner.steps), ("untrained", 0)):
        pipe = ThinkDiffPipeline(aligner_of(options.root, steps), spec.features, spec.gallery.draw.media, run)
        for kind, (look, tell) in KINDS.items():
            if look or name == "trained":
                drawn = [
                    pipe(
                        [*([picture] if look else []), *([" ".join(world.detail_sentences(row))] if tell else [])],
                        generator=number, output_type="np",
                    ).images[0]
                    for number, (picture, row) in enumerate(zip(pictures, said, strict=True))
                ]  # fmt: skip
                print(f"| {name} | {kind} | {' | '.join(seen_in(judge.see, drawn, shown, said))} |", flush=True)


def seen_in(see: Callable, drawn: list[np.ndarray], shown: world.Attributes, said: world.Attributes) -> list[str]:
    """Object right, the picture's value right, the words' value right, all three right."""
    data, right = [png(picture) for picture in drawn], list[list[bool]]()
    for rows in (shown, said):
        wanted = [Wanted(*value_of(row), world.OBJECTS[int(row[0])]) for row in rows]
        found = see(data, wanted)
        right.append([one.value == want.value for one, want in zip(found, wanted, strict=True)])
    things = [one.thing == world.OBJECTS[int(row[0])] for one, row in zip(found, shown, strict=True)]
    every = [all(three) for three in zip(things, *right, strict=True)]
    return [share(one) for one in (things, *right, every)]


if __name__ == "__main__":
    main()
