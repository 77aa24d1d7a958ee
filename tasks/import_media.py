"""Stage 5, from elsewhere. Pictures that another system made of the benchmark's prompts -> a MediaSet, to be scored.

In: a GivenMedia and the folder that the run names. Every prompt is in `prompts.parquet`; a prompt without a picture is
in no tar, and counts["missing"] says how many these are. A part is the unit of commit.
"""

from __future__ import annotations

from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.media import GivenMedia, MediaSet
from thinkdiff.tasks.step import Made, Work, step

PART = 128


@step(MediaSet)
def import_media(work: Work, spec: GivenMedia) -> Made:
    """Takes the pictures over; parts that are committed already are kept."""
    from thinkdiff.storage.media_files import MediaWriter
    from thinkdiff.storage.root import Folder
    from thinkdiff.storage.score_tables import PROMPTS, AskedPrompt, write_rows
    from thinkdiff.tasks.cobsat import prompts, true_caption
    from thinkdiff.tasks.given_pictures import decoded_pngs, description, given

    if work.run.given is None:
        raise SpecError("run.given: found nothing, expected the folder of pictures that import_media takes.")
    source = given(Folder.source(work.run.given), spec.name, spec.prompts)
    if source.digest != spec.digest:
        raise InputError(
            f"{source.folder.uri}: found files of digest {source.digest[:12]}…, expected {spec.digest[:12]}… as the "
            "spec says. They have changed since it was made; import them again."
        )
    asked, writer, there = prompts(spec.prompts), MediaWriter(work.folder), list(source.pictures)
    parts = -(-len(there) // PART)
    done = writer.committed(spec.name)
    with work.progress(len(there), "pictures") as progress:
        progress.resume(sum(part.rows for part in done.values()))
        for part in (part for part in range(parts) if part not in done):
            pictures = decoded_pngs(source, there[part * PART : (part + 1) * PART], work.run)
            writer.commit(spec.name, part, pictures)
            progress.advance(len(pictures))
    rows = [
        AskedPrompt(
            name=p.name, task=p.task, family=p.family, shots=p.shots, held_out=p.held_out, target_value=p.target_value,
            target_thing=p.target_thing, answer=description(source, p.name), true_caption=true_caption(spec.prompts, p),
        )
        for p in asked
    ]  # fmt: skip
    missing = [prompt.name for prompt in asked if prompt.name not in source.pictures]
    if missing:
        work.log.warning(
            "import_media: found no picture for %d of %d prompts (%s and so on); they count as wrong.",
            len(missing), len(asked), missing[0],
        )  # fmt: skip
    return Made(
        files=(write_rows(work.folder, PROMPTS, AskedPrompt, rows), *writer.files(spec.name, parts)),
        counts={"prompts": len(asked), "pictures": len(there), "missing": len(missing)},
        stats={"methods": [spec.name]},
        note=f"pictures of {source.folder.uri}",
    )
