"""Pictures and words in, one picture out: the trained aligner behind `thinkdiff generate`.

In: a pipeline spec (whose VLM, decoder and settings are used), an aligner, and the user's turn as picture files and
texts. Out: a PNG file and the VLM's words. It is the benchmark's path without the benchmark.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import Execution
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.pipeline import PipelineSpec

if TYPE_CHECKING:
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
    from PIL import Image

    from thinkdiff.storage.root import locate
    from thinkdiff.tasks.alignment import TrainedAligner
    from thinkdiff.tasks.engines import open_engine
    from thinkdiff.tasks.flux import FluxDecoder
    from thinkdiff.tasks.models import compute_device, model_path
    from thinkdiff.tasks.qwen_chat import Request
    from thinkdiff.tasks.t5_encoder import T5Encoder

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
    t5 = T5Encoder(model_path(media.t5, run), device, media.precision)
    decoder = FluxDecoder(model_path(media.decoder, run), device=device, precision=media.precision)
    made = decoder.generate(
        [embeddings], [seed], t5.empty(), media.height, media.width, media.steps, media.guidance_scale,
        media.true_cfg_scale, batch=1,
    )  # fmt: skip
    picture = io.BytesIO()
    Image.fromarray(next(iter(made))[1]).save(picture, "PNG")
    folder, name = locate(".", str(out))
    folder.write(name, picture.getvalue())
    return answer.text
