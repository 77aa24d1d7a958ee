"""Pictures and words in, one picture out: the trained aligner behind `thinkdiff generate`.

In: a pipeline spec (whose VLM, decoder and settings are used), an aligner, and the user's turn as picture files and
texts. Out: a PNG file and the VLM's words; of a video the PNG is the frame in the middle, and an MP4 file stands beside
it. It is the benchmark's path without the benchmark.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.pipeline import PipelineSpec

if TYPE_CHECKING:
    from thinkdiff.tasks.aligner import Aligner

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def chosen_aligner(run: Execution, reference: str) -> AlignerCheckpoint | Aligner:
    """A trained aligner by its fingerprint, or one in the hub's form: a reference with a slash names that.

    Raises SpecError or ModelError when there is none.
    """
    if "/" not in reference:
        return trained_aligner(run, reference)
    from thinkdiff.tasks.aligner_files import from_pretrained

    return from_pretrained(reference, run=run)


def trained_aligner(run: Execution, reference: str) -> AlignerCheckpoint:
    """The aligner of that fingerprint, or the one made last. Raises SpecError when there is none."""
    from thinkdiff.storage.records import artifact_folder, find_artifacts, read_record

    found = [a for a in find_artifacts(run.root, ("train_aligner",))]
    chosen = (
        sorted(found, key=lambda a: a.provenance.created)[-1:]
        if reference == "latest"
        else [a for a in found if a.fingerprint.startswith(reference)]
    )
    if len(chosen) != 1:
        raise SpecError(
            f"aligner: found {len(chosen)} under {run.root} for {reference!r}, expected exactly one. "
            "`thinkdiff run mini --until train_aligner` trains one; `thinkdiff artifacts` lists them; "
            "a folder is named with a slash, as in ./aligner."
        )
    artifact = read_record(artifact_folder(run.root, "train_aligner", chosen[0].fingerprint), AlignerCheckpoint)
    if artifact is None:
        raise SpecError(f"aligner: found {reference!r} removed meanwhile, expected a whole artifact. Train it again.")
    return artifact


def user_turn(parts: list[str]) -> tuple[str | bytes, ...]:
    """Arguments as the content of a user's turn: names of pictures are read, everything else is text.

    Raises InputError for a picture file that is missing or does not decode.
    """
    return tuple(read_picture(part) if Path(part).suffix.lower() in PICTURES else part for part in parts)


def read_picture(name: str) -> bytes:
    """The bytes of a picture's file. Raises InputError when it is missing or does not decode."""
    from thinkdiff.storage.root import locate
    from thinkdiff.tasks.pictures import inspect_image

    try:
        folder, file = locate(".", name)
        data = folder.read(file)
        inspect_image(data, max_pixels=50_000_000)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}: found no picture ({error}), expected a JPEG, PNG or WebP file. "
            "An argument that ends like a picture's name is taken for one."
        ) from None
    return data


def compose(
    spec: PipelineSpec, aligner: AlignerCheckpoint | Aligner, parts: list[str], out: Path, seed: int, run: Execution
) -> str:
    """Writes the picture, of a video also the video, and returns the VLM's words, "" of ThinkDiff-CLIP."""
    from thinkdiff.storage.pixels import mp4, png
    from thinkdiff.storage.root import locate
    from thinkdiff.tasks.pipeline import ThinkDiffPipeline

    content, (asked, media) = user_turn(parts), (spec.queries, spec.media)
    if spec.gallery is not None:
        asked, media = spec.features, spec.gallery.draw.media
    if asked is None or media is None:
        raise SpecError(f"{spec.name}: found no decoder in the recipe, expected one. Name another recipe.")
    with ThinkDiffPipeline(aligner, asked, media, run) as pipe:
        made = pipe(content, generator=seed, output_type="np")
    folder, name = locate(".", str(out))
    folder.write(name, png(made.images[0]))
    if made.frames:
        folder.write(str(Path(name).with_suffix(".mp4")), mp4(made.frames[0], media.fps))
    return made.text
