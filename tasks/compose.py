"""Pictures and words in, one picture out: the trained aligner behind `thinkdiff generate`.

In: a pipeline spec (whose VLM, decoder and settings are used), an aligner, and the user's turn as picture files and
texts. Out: a PNG file and the VLM's words; of a video the PNG is the frame in the middle, and an MP4 file stands beside
it. It is the benchmark's path without the benchmark.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.pipeline import PipelineSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from thinkdiff.schemas.media import MediaSpec
    from thinkdiff.tasks.aligner import Aligner

log = logging.getLogger(__name__)
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
    from thinkdiff.storage.root import locate
    from thinkdiff.tasks.pictures import inspect_image

    content: list[str | bytes] = []
    for part in parts:
        if Path(part).suffix.lower() not in PICTURES:
            content.append(part if not content else f" {part} ")
            continue
        try:
            folder, name = locate(".", part)
            data = folder.read(name)
            inspect_image(data, max_pixels=50_000_000)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{part}: found no picture ({error}), expected a JPEG, PNG or WebP file. "
                "An argument that ends like a picture's name is taken for one."
            ) from None
        content.append(data)
    return tuple(content)


def compose(
    spec: PipelineSpec,
    aligner: AlignerCheckpoint | Aligner,
    parts: list[str],
    out: Path,
    seed: int,
    run: Execution,
) -> str:
    """Writes the picture and returns the VLM's words."""
    from thinkdiff.tasks.alignment import TrainedAligner
    from thinkdiff.tasks.engines import open_engine
    from thinkdiff.tasks.models import compute_device, model_path
    from thinkdiff.tasks.qwen_chat import Request

    content = user_turn(parts)
    asked, media = spec.queries, spec.media
    if asked is None or media is None:
        raise SpecError(f"{spec.name}: found no decoder in the recipe, expected `queries` and `media`. Name another.")
    pictures = sum(isinstance(part, bytes) for part in content)
    with open_engine(
        run, asked, model_path(asked.vlm, run), add_vision_id=pictures > 1, max_images=max(pictures, 1), log=log.debug
    ) as engine:
        answer = engine.generate([Request("compose", content, seed)])[0]
    rows = answer.features if media.keep_eos else answer.features[: answer.end_index]
    if not len(rows):
        raise InputError("generate: found an empty answer of the VLM, expected words. Ask in another way.")
    device = compute_device(run)
    embeddings = TrainedAligner(aligner, device)(rows)
    draw(media, embeddings, out, seed, run, device)
    return answer.text


def draw(media: MediaSpec, x_LD: npt.NDArray[np.float32], out: Path, seed: int, run: Execution, device: str) -> None:
    """Writes the picture of such rows, or the video beside its middle frame."""
    from thinkdiff.storage.pixels import mp4, png
    from thinkdiff.storage.root import locate
    from thinkdiff.tasks.decoders import decoder_of
    from thinkdiff.tasks.diffusion import Settings
    from thinkdiff.tasks.models import model_path
    from thinkdiff.tasks.t5_encoder import T5Encoder

    decoder = decoder_of(media, run, device)
    t5, reads = T5Encoder(model_path(media.t5, run), device, media.precision), decoder.text
    empty = t5.empty(reads.null, reads.t5_mask)
    _, pixels = next(decoder.generate([x_LD], [seed], empty, Settings.of(media), batch=1))
    folder, name = locate(".", str(out))
    folder.write(name, png(pixels[len(pixels) // 2] if decoder.video else pixels))
    if decoder.video:
        folder.write(str(Path(name).with_suffix(".mp4")), mp4(pixels, media.fps))
