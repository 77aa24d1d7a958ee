"""A gallery's prompts -> pictures and videos by ThinkDiff-CLIP: its tower, a trained aligner, a diffusion model.

Prompts of one length are drawn together; parts are cut in that order, and a part is the unit of commit. Of a video the
frame in the middle is the picture that is measured. A prompt without words has no picture where words alone are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.gallery import GalleryInputs, GalleryPrompt, GallerySpec
from thinkdiff.schemas.media import MediaSet
from thinkdiff.tasks.step import Made, Work, step

if TYPE_CHECKING:
    from thinkdiff.storage.media_files import MediaWriter
    from thinkdiff.tasks.gallery_drawing import GalleryPainter
    from thinkdiff.tasks.progress import Progress

PART = 64
VIDEO_PART = 4  # a video takes minutes where a picture takes seconds


@step(MediaSet, gpu=True)
def draw_gallery(work: Work, spec: GallerySpec, gallery: GalleryInputs, aligner: AlignerCheckpoint | None) -> Made:
    """Draws every prompt that the spec can; parts that are committed already are kept."""
    import torch

    from thinkdiff.storage.gallery_tables import read_list
    from thinkdiff.storage.media_files import MediaReader, MediaWriter
    from thinkdiff.tasks.gallery_drawing import DRAWN, FILMED, Eyes, GalleryPainter

    if work.run.threads:
        torch.set_num_threads(work.run.threads)
    prompts = read_list(gallery)
    asked = drawable(spec, prompts, aligner)
    must_fit(work, spec, asked)
    eyes = Eyes(spec, aligner, work.run) if spec.reads == "prompt" else None
    reader, writer, files = MediaReader(gallery), MediaWriter(work.folder), list[FileEntry]()
    kinds = {DRAWN: [p for p in asked if not p.video], FILMED: [p for p in asked if p.video]}
    with work.progress(len(asked), "pictures") as progress:
        for method, chosen in kinds.items():
            media = spec.video if method == FILMED else spec.media
            if chosen and media is not None:
                painter = GalleryPainter(media, eyes, lambda name: reader.read("pictures", name), work.run)
                files += paint(work, painter, writer, method, chosen, progress)
    return Made(
        files=tuple(files),
        counts={"prompts": len(prompts), "pictures": len(asked), "missing": len(prompts) - len(asked)}
        | ({"videos": len(kinds[FILMED])} if kinds[FILMED] else {}),
        stats={"methods": [method for method, chosen in kinds.items() if chosen]},
    )


def drawable(
    spec: GallerySpec, prompts: Sequence[GalleryPrompt], aligner: AlignerCheckpoint | None
) -> list[GalleryPrompt]:
    """The prompts that are drawn. Raises InputError when an aligner, or every prompt, is missing."""
    if spec.reads == "prompt" and aligner is None:
        raise InputError("draw_gallery: found no aligner, expected one. Train ThinkDiff-CLIP's first.")
    asked = [prompt for prompt in prompts if prompt.text or spec.reads == "prompt"]
    if not asked:
        raise InputError("draw_gallery: found no prompt with words, expected some, since words alone are drawn.")
    return asked


def must_fit(work: Work, spec: GallerySpec, asked: Sequence[GalleryPrompt]) -> None:
    """Raises SpecError when pictures or videos are asked of a model that draws the other, before any is loaded."""
    from thinkdiff.tasks.gallery_drawing import draws_video

    films = [prompt.name for prompt in asked if prompt.video]
    if films and spec.video is None:
        raise SpecError(
            f"gallery: found {len(films)} video prompts ({films[0]} and so on), expected none, since the spec has no "
            "video model. Give gallery.draw.video, or take these prompts out."
        )
    wanted = {"media": len(films) < len(asked) and spec.media, "video": bool(films) and spec.video}
    for name, media in wanted.items():
        if media and draws_video(media.decoder, work.run) != (name == "video"):
            other = "pictures" if name == "video" else "videos"
            raise SpecError(
                f"gallery.draw.{name}: found {media.decoder.name}, which draws {other}, expected a model for the other "
                "kind. Name a CogVideoX for videos, and any other decoder for pictures."
            )


def paint(
    work: Work, painter: GalleryPainter, writer: MediaWriter, method: str, chosen: Sequence[GalleryPrompt],
    progress: Progress,
) -> list[FileEntry]:  # fmt: skip
    """Draws what is not committed yet of a method; returns the entries of all its files."""
    from thinkdiff.storage.media_files import videos_of
    from thinkdiff.tasks.gallery_drawing import FILMED

    films = method == FILMED
    size = VIDEO_PART if films else PART
    parts = -(-len(chosen) // size)
    kinds = (method, videos_of(method)) if films else (method,)
    done = [writer.committed(kind) for kind in kinds]
    missing = [part for part in range(parts) if any(part not in found for found in done)]
    progress.resume(sum(done[0][part].rows for part in range(parts) if part not in missing))
    order = painter.ordered(chosen) if missing else []
    for part in missing:
        work.lease.check()
        some = order[part * size : (part + 1) * size]
        for kind, found, named in zip(kinds, done, painter.paint(some), strict=False):
            if part not in found:
                writer.commit(kind, part, named)
        progress.advance(len(some))
    return [entry for kind in kinds for entry in writer.files(kind, parts)]
