"""A gallery's pictures and similarities -> one self-contained HTML file, and its tables as Markdown.

This file reads: prompts, pictures, videos, similarities. How they look is in `gallery_page` and `gallery_plot`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from thinkdiff.schemas.gallery import GalleryInputs, GalleryPage, GalleryPageSpec, GalleryPrompt, GalleryScores
from thinkdiff.schemas.media import MediaSet
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    from thinkdiff.storage.media_files import MediaReader
    from thinkdiff.tasks.gallery_page import Card, Drawn


@step(GalleryPage)
def render_gallery(
    work: Work, spec: GalleryPageSpec, gallery: GalleryInputs, systems: dict[str, MediaSet], scores: GalleryScores
) -> Made:
    """Reads what the page shows and writes the page."""
    from thinkdiff.storage.gallery_tables import read_list, read_similarities
    from thinkdiff.storage.media_files import MediaReader
    from thinkdiff.storage.records import checked_object
    from thinkdiff.tasks.gallery_numbers import by_prompt, markdown
    from thinkdiff.tasks.gallery_page import Wall, page
    from thinkdiff.tasks.similarity import CLIP_I, CLIP_T

    tables = checked_object(scores, "scores.json")
    values: dict[tuple[str, str], dict[str, float]] = {}
    for (system, _, prompt, measure), value in by_prompt(read_similarities(scores)).items():
        values.setdefault((system, prompt), {})[measure] = value
    inputs, readers = MediaReader(gallery), {name: MediaReader(media) for name, media in systems.items()}
    wall = Wall(
        title=spec.title,
        fingerprint=work.folder.uri.rsplit("/", 1)[1],
        tables=tables,
        points={key: (by[CLIP_I], by[CLIP_T]) for key, by in values.items() if CLIP_I in by and CLIP_T in by},
        cards=[card(prompt, inputs, readers, values) for prompt in read_list(gallery)],
        artifacts={"gallery": gallery, **systems, "scores": scores},
    )
    data, text = page(wall), markdown(tables)
    return Made(
        files=(work.folder.write("gallery.html", data), work.folder.write("gallery.md", text.encode())),
        counts={"bytes": len(data), "prompts": len(wall.cards), "systems": len(systems)},
        stats={"scores": scores.stats["scores"]},
        page=text,
    )


def card(
    prompt: GalleryPrompt, inputs: MediaReader, readers: Mapping[str, MediaReader],
    values: Mapping[tuple[str, str], Mapping[str, float]],
) -> Card:  # fmt: skip
    """A prompt with all its pictures."""
    from thinkdiff.tasks.gallery_page import Card

    shown = [(name, inputs.read("pictures", name)) for name in prompt.images]
    drawn = [made_by(name, prompt, reader, values.get((name, prompt.name), {})) for name, reader in readers.items()]
    return Card(prompt, shown, [one for one in drawn if one is not None])


def made_by(system: str, prompt: GalleryPrompt, reader: MediaReader, values: Mapping[str, float]) -> Drawn | None:
    """What a system drew of a prompt; None where it has no picture of it."""
    from thinkdiff.storage.media_files import videos_of
    from thinkdiff.tasks.gallery_page import Drawn

    for method in reader.artifact.stats["methods"]:
        if prompt.name in reader.names(method):
            films = videos_of(method)
            video = reader.read(films, prompt.name) if prompt.name in reader.names(films) else None
            return Drawn(system, reader.read(method, prompt.name), video, values)
    return None
