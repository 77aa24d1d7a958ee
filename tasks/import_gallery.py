"""Pictures that another system made of a gallery's prompts -> a MediaSet, to be measured and shown beside ours.

In: a GivenGallery, the gallery, and the folder that the run names. Out: the method `drawn`; a prompt without a picture
is in no tar, and counts["missing"] says how many these are. A part is the unit of commit.
"""

from __future__ import annotations

from thinkdiff.schemas.errors import SpecError
from thinkdiff.schemas.gallery import GalleryInputs, GivenGallery
from thinkdiff.schemas.media import MediaSet
from thinkdiff.tasks.step import Made, Work, step

PART, LONGEST_SIDE = 64, 2048


@step(MediaSet)
def import_gallery(work: Work, spec: GivenGallery, gallery: GalleryInputs) -> Made:
    """Takes the pictures over; parts that are committed already are kept."""
    from thinkdiff.storage.gallery_tables import read_list
    from thinkdiff.storage.media_files import MediaWriter
    from thinkdiff.storage.root import Folder
    from thinkdiff.tasks.gallery_drawing import DRAWN
    from thinkdiff.tasks.gallery_files import given_files, must_be, upright_pngs

    if work.run.given is None:
        raise SpecError("run.given: found nothing, expected the folder of pictures that import_gallery takes.")
    prompts = read_list(gallery)
    files = given_files(Folder.source(work.run.given), spec.name, prompts)
    must_be(files, spec.digest)
    writer, names = MediaWriter(work.folder), list(files.pictures)
    parts, done = -(-len(names) // PART), writer.committed(DRAWN)
    with work.progress(len(names), "pictures") as progress:
        progress.resume(sum(part.rows for part in done.values()))
        for part in (part for part in range(parts) if part not in done):
            pictures = upright_pngs(files, names[part * PART : (part + 1) * PART], LONGEST_SIDE, work.run)
            writer.commit(DRAWN, part, pictures)
            progress.advance(len(pictures))
    return Made(
        files=writer.files(DRAWN, parts),
        counts={"prompts": len(prompts), "pictures": len(names), "missing": len(prompts) - len(names)},
        stats={"methods": [DRAWN]},
        note=f"pictures of {files.folder.uri}/{spec.name}",
    )
