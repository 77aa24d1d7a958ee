"""A gallery's folder -> its prompts and pictures as an artifact, so that one thing is drawn and measured.

In: a GallerySource and the folder that the run names. Out: GalleryInputs. Pictures are decoded in processes of their
own, turned upright and made smaller where they are larger than asked. A part is the unit of commit.
"""

from __future__ import annotations

from thinkdiff.schemas.errors import SpecError
from thinkdiff.schemas.gallery import GalleryInputs, GallerySource
from thinkdiff.tasks.page_pictures import PAGE_ROWS, pictured
from thinkdiff.tasks.report_markup import code
from thinkdiff.tasks.step import Made, Work, step

PART = 64
PICTURES = "pictures"


@step(GalleryInputs)
def gather_gallery(work: Work, spec: GallerySource) -> Made:
    """Takes the folder over; parts that are committed already are kept."""
    from thinkdiff.storage.gallery_tables import LIST
    from thinkdiff.storage.media_files import MediaWriter
    from thinkdiff.storage.root import Folder
    from thinkdiff.tasks.gallery_files import gallery_files, list_bytes, must_be, upright_pngs

    if work.run.given is None:
        raise SpecError("run.given: found nothing, expected the folder of the gallery that gather_gallery takes.")
    files = gallery_files(Folder.source(work.run.given))
    must_be(files, spec.digest)
    writer, names = MediaWriter(work.folder), list(files.pictures)
    parts, done = -(-len(names) // PART), writer.committed(PICTURES)
    with work.progress(len(names), "pictures") as progress:
        progress.resume(sum(part.rows for part in done.values()))
        for part in (part for part in range(parts) if part not in done):
            pictures = upright_pngs(files, names[part * PART : (part + 1) * PART], spec.longest_side, work.run)
            writer.commit(PICTURES, part, pictures)
            progress.advance(len(pictures))
    made = writer.files(PICTURES, parts)
    reader = writer.reader(made)
    return Made(
        files=(work.folder.write(LIST, list_bytes(files.prompts)), *made),
        counts={
            "prompts": len(files.prompts),
            "pictures": len(names),
            "with_words": sum(bool(prompt.text) for prompt in files.prompts),
        },
        note=f"gallery of {files.folder.uri}",
        page=pictured(
            ("prompt", "kind", "words", "first picture"),
            [
                (code(p.name), p.kind, code(p.text), reader.read(PICTURES, p.images[0]) if p.images else None)
                for p in files.prompts[:PAGE_ROWS]
            ],
        ),
    )
