"""Drawn pictures of a gallery -> how alike they are to the pictures and the words that they were drawn from.

Three cosines: CLIP-I and DINO of a drawn picture with each picture that its prompt shows, CLIP-T with its words. A
prompt's value is the mean over its pictures; a system's is the mean over prompts, with a 95 % interval by Student's t,
for every kind of prompt and for all. Beside the systems stands a copy: the first picture itself, which knows nothing of
the words, and which fidelity cannot exceed where a prompt shows one picture alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from thinkdiff.schemas.errors import InputError
from thinkdiff.schemas.gallery import GalleryInputs, GalleryPrompt, GalleryScores, SimilaritySpec
from thinkdiff.schemas.media import MediaSet
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    from thinkdiff.storage.gallery_tables import Similarity
    from thinkdiff.storage.media_files import MediaReader
    from thinkdiff.tasks.similarity import Clip, Dino, Rows

COPY = "the picture itself"


@step(GalleryScores, gpu=True)
def score_gallery(work: Work, spec: SimilaritySpec, gallery: GalleryInputs, systems: dict[str, MediaSet]) -> Made:
    """Measures every picture of every system. `systems`: sets of drawn pictures by what tables call them."""
    import torch

    from thinkdiff.storage.gallery_tables import read_list, write_similarities
    from thinkdiff.storage.media_files import MediaReader
    from thinkdiff.tasks.gallery_numbers import ALL, markdown, tables
    from thinkdiff.tasks.models import compute_device, model_path
    from thinkdiff.tasks.similarity import Clip, Dino

    if COPY in systems:
        raise InputError(f"score_gallery: found a system called {COPY!r}, expected another name. It is taken.")
    if work.run.threads:
        torch.set_num_threads(work.run.threads)
    device, prompts = compute_device(work.run), read_list(gallery)
    clip = Clip(model_path(spec.clip, work.run), device)
    dino = Dino(model_path(spec.dino, work.run), device) if spec.dino is not None else None
    measured = Measured(clip, dino, prompts, MediaReader(gallery), work.run.batch)
    rows: list[Similarity] = []
    with work.progress(len(systems) + 1, "systems") as progress:
        for name, media in systems.items():
            work.lease.check()
            rows += measured.system(name, pictures(media))
            progress.advance()
        first = MediaReader(gallery)
        rows += measured.system(COPY, ((p.name, first.read("pictures", p.images[0])) for p in prompts if p.images))
        progress.advance()
    found = tables(rows)
    return Made(
        files=(write_similarities(work.folder, rows), work.folder.write("scores.json", json.dumps(found).encode())),
        counts={"similarities": len(rows), "systems": len(systems)},
        stats={"scores": {name: {m: cell["mean"] for m, cell in by[ALL].items()} for name, by in found.items()}},
        page=markdown(found),
    )


def pictures(media: MediaSet) -> Iterator[tuple[str, bytes]]:
    """(prompt, PNG bytes) of all that a system drew; of videos the frames in the middle."""
    from thinkdiff.storage.media_files import MediaReader

    reader = MediaReader(media)
    for method in media.stats["methods"]:
        yield from reader.iterate(method)


class Measured:
    """A gallery's inputs, embedded once, and what is compared with them."""

    def __init__(
        self, clip: Clip, dino: Dino | None, prompts: Sequence[GalleryPrompt], inputs: MediaReader, batch: int
    ) -> None:
        from thinkdiff.tasks.similarity import CLIP_I, DINO, embedded

        self.prompts, self.clip, self.batch = {p.name: p for p in prompts}, clip, batch
        self.eyes = {CLIP_I: clip.images} | ({DINO: dino.images} if dino is not None else {})
        self.inputs: dict[str, dict[str, Rows]] = {
            measure: embedded(embed, inputs.iterate("pictures"), batch) for measure, embed in self.eyes.items()
        }
        texts = dict.fromkeys(p.text for p in prompts if p.text)
        self.texts = embedded(clip.texts, ((text, text) for text in texts), batch)

    def system(self, name: str, drawn: Iterator[tuple[str, bytes]]) -> list[Similarity]:
        """The cosines of one system's pictures, in the order of the prompts."""
        from thinkdiff.storage.gallery_tables import Similarity
        from thinkdiff.tasks.similarity import CLIP_I, CLIP_T, embedded

        pictures, found = dict(drawn), list[Similarity]()
        seen = {measure: embedded(embed, pictures.items(), self.batch) for measure, embed in self.eyes.items()}
        for prompt in (self.prompts[key] for key in self.prompts if key in pictures):
            for measure, rows in seen.items():
                for image in prompt.images:
                    value = cosine(rows[prompt.name], self.inputs[measure][image])
                    found.append(Similarity(name, prompt.name, prompt.kind, measure, image, value))
            if prompt.text:
                value = cosine(seen[CLIP_I][prompt.name], self.texts[prompt.text])
                found.append(Similarity(name, prompt.name, prompt.kind, CLIP_T, "", value))
        return found


def cosine(one_D: Rows, other_D: Rows) -> float:
    """Of two rows of length 1."""
    return float(one_D @ other_D)
