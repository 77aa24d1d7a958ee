"""What was asked and what was judged, as Parquet: `prompts.parquet` of a MediaSet, `verdicts.parquet` of a Scorecard.

In: rows. Out: file entries and rows again, checked. Same rows, same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_type_hints

import pyarrow as pa

from thinkdiff.schemas.artifact import FileEntry
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.scores import Scorecard
from thinkdiff.storage.records import checked_bytes
from thinkdiff.storage.root import Folder
from thinkdiff.storage.tables import column, read_table, table_bytes

PROMPTS, VERDICTS, SECOND = "prompts.parquet", "verdicts.parquet", "second_verdicts.parquet"


class AskedPrompt(NamedTuple):
    """A benchmark prompt, what the VLM answered, and what the true caption is."""

    name: str
    task: str
    family: str
    shots: int
    held_out: bool
    target_value: str
    target_thing: str
    answer: str
    true_caption: str


class Verdict(NamedTuple):
    """What the judge saw in one picture, beside what it should have seen: "" for no answer, or no picture.

    similarity: CLIP's, NaN of other judges.
    """

    method: str
    name: str
    task: str
    family: str
    shots: int
    held_out: bool
    target_value: str
    target_thing: str
    value: str
    thing: str
    right_value: bool
    right_thing: bool
    right: bool
    similarity: float


TYPES = {str: pa.string(), int: pa.int32(), bool: pa.bool_(), float: pa.float32()}


def schema_of(kind: type[AskedPrompt] | type[Verdict]) -> pa.Schema:
    """The Parquet schema of a row type."""
    return pa.schema([column(name, TYPES[note]) for name, note in get_type_hints(kind).items()])


def write_rows(folder: Folder, name: str, kind: type[AskedPrompt] | type[Verdict], rows: Sequence[tuple]) -> FileEntry:
    """Writes rows of one type."""
    columns = {field: [row[place] for row in rows] for place, field in enumerate(kind._fields)}
    return folder.write(name, table_bytes(pa.Table.from_pydict(columns, schema_of(kind))))


def read_prompts(artifact: MediaSet) -> list[AskedPrompt]:
    """The prompts of a MediaSet in benchmark order. Raises StoreError when they are lost or altered."""
    table = read_table(checked_bytes(artifact, PROMPTS), schema_of(AskedPrompt), artifact.path(PROMPTS))
    return list(map(AskedPrompt, *(found.to_pylist() for found in table.columns)))


def read_verdicts(artifact: Scorecard) -> list[Verdict]:
    """The verdicts of a Scorecard. Raises StoreError when they are lost or altered."""
    table = read_table(checked_bytes(artifact, VERDICTS), schema_of(Verdict), artifact.path(VERDICTS))
    return list(map(Verdict, *(found.to_pylist() for found in table.columns)))
