"""What a gallery asks and how alike its pictures are: `prompts.jsonl` and `similarities.parquet`.

In: rows. Out: file entries and rows again, checked. Same rows, same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
from pydantic import ValidationError

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.gallery import GalleryInputs, GalleryPrompt, GalleryScores
from thinkdiff.storage.records import checked_bytes
from thinkdiff.storage.root import Folder
from thinkdiff.storage.tables import column, read_table, table_bytes

LIST, SIMILARITIES = "prompts.jsonl", "similarities.parquet"


class Similarity(NamedTuple):
    """How alike a drawn picture is to what it was drawn from. against: an input picture's name, "" for the text."""

    system: str
    prompt: str
    kind: str
    measure: str
    against: str
    value: float


SCHEMA = pa.schema([column(name, pa.float32() if name == "value" else pa.string()) for name in Similarity._fields])


def read_list(inputs: GalleryInputs) -> list[GalleryPrompt]:
    """The prompts of a gallery. Raises StoreError when they are lost or altered."""
    lines = checked_bytes(inputs, LIST).splitlines()
    try:
        return [GalleryPrompt.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise StoreError(
            f"{inputs.path(LIST)}: found a line that is no prompt ({error.error_count()} complaints), expected those "
            "that were gathered. Another version wrote it; run gather_gallery again with --refresh."
        ) from None


def write_similarities(folder: Folder, rows: Sequence[Similarity]) -> FileEntry:
    """Writes the rows."""
    columns = {field: [row[place] for row in rows] for place, field in enumerate(Similarity._fields)}
    return folder.write(SIMILARITIES, table_bytes(pa.Table.from_pydict(columns, SCHEMA)))


def read_similarities(scores: GalleryScores) -> list[Similarity]:
    """The rows in the order in which they were written. Raises StoreError when they are lost or altered."""
    table = read_table(checked_bytes(scores, SIMILARITIES), SCHEMA, scores.path(SIMILARITIES))
    return list(map(Similarity, *(found.to_pylist() for found in table.columns)))
