"""What was asked and what was judged, as Parquet: `prompts.parquet` of a MediaSet, `verdicts.parquet` of a Scorecard.

In: rows. Out: file entries and rows again, checked. Same rows, same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_type_hints

import pyarrow as pa

from thinkdiff.schemas.artifact import Artifact, FileEntry
from thinkdiff.schemas.errors import StoreError
from thinkdiff.schemas.media import MediaSet
from thinkdiff.schemas.scores import Scorecard
from thinkdiff.storage.records import checked_bytes, written_by
from thinkdiff.storage.root import Folder
from thinkdiff.storage.tables import column, read_table, table_bytes

PROMPTS, READINGS = "prompts.parquet", "readings.parquet"
VERDICTS, SECOND = "verdicts.parquet", "second_verdicts.parquet"


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


class Reading(NamedTuple):
    """The caption that the T5 that taught the aligner finds likeliest to the aligned rows of a prompt."""

    name: str
    text: str


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


Row = type[AskedPrompt] | type[Reading] | type[Verdict]


def schema_of(kind: Row) -> pa.Schema:
    """The Parquet schema of a row type."""
    return pa.schema([column(name, TYPES[note]) for name, note in get_type_hints(kind).items()])


def write_rows(folder: Folder, name: str, kind: Row, rows: Sequence[tuple]) -> FileEntry:
    """Writes rows of one type."""
    columns = {field: [row[place] for row in rows] for place, field in enumerate(kind._fields)}
    return folder.write(name, table_bytes(pa.Table.from_pydict(columns, schema_of(kind))))


def read_rows(artifact: Artifact, name: str, kind: Row) -> list[Any]:
    """The rows of a listed file. Raises StoreError when they are lost, altered or of another version of thinkdiff."""
    table = read_table(checked_bytes(artifact, name), schema_of(kind), artifact.path(name), writer=written_by(artifact))
    return list(map(kind, *(found.to_pylist() for found in table.columns)))


def read_prompts(artifact: MediaSet) -> list[AskedPrompt]:
    """The prompts of a MediaSet in benchmark order. Raises StoreError when they are lost or altered."""
    return read_rows(artifact, PROMPTS, AskedPrompt)


def read_readings(artifact: MediaSet) -> dict[str, str]:
    """What is read back in each prompt's aligned rows, by its name; {} where nobody was asked to read."""
    rows: list[Reading] = read_rows(artifact, READINGS, Reading) if artifact.names(READINGS) else []
    return {row.name: row.text for row in rows}


def stored_readings(folder: Folder, names: Sequence[str]) -> FileEntry | None:
    """The readings of these prompts that an earlier try has left; None where they are not whole."""
    try:
        table = read_table(folder.read(READINGS), schema_of(Reading), f"{folder.uri}/{READINGS}")
    except (FileNotFoundError, StoreError):
        return None
    return folder.hash(READINGS) if table.column("name").to_pylist() == list(names) else None


def read_verdicts(artifact: Scorecard) -> list[Verdict]:
    """The verdicts of a Scorecard. Raises StoreError when they are lost or altered."""
    return read_rows(artifact, VERDICTS, Verdict)


def read_second_verdicts(artifact: Scorecard) -> list[Verdict]:
    """Those of the second judge, [] where there was none."""
    return read_rows(artifact, SECOND, Verdict) if artifact.names(SECOND) else []
