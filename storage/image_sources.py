"""Pictures as img2dataset leaves them: tars of `<name>.jpg .txt .json` members, and a Parquet of what failed.

In: a glob of tars. Out: one sample per picture or failure, from a stream; a tar's sample is the run of members that
share a name. Pictures are passed over, not read: a sample says where its own lies. The files come from strangers: see
`tar_stream.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from thinkdiff.schemas.errors import InputError, ThinkDiffError
from thinkdiff.schemas.images import TarSource
from thinkdiff.storage.root import Folder, matching
from thinkdiff.storage.tar_stream import Member, TarReader

MAX_TEXT = 1 << 20
BATCH_ROWS, BATCH_BYTES = 1 << 10, 1 << 24  # of a table that are decoded at once, at most
PICTURES = ("jpg", "jpeg", "png", "webp", "gif")
TEXTS = ("json", "txt")
FAILURES = ["url", "caption", "status", "error_message"]
log = logging.getLogger(__name__)


class TarSample(NamedTuple):
    """A sample of a tar: where its picture lies in it, or why there is none."""

    url: str
    caption: str
    offset: int = 0
    size: int = 0
    reason: str | None = None


def find_tars(data_root: str, source: TarSource) -> list[tuple[Folder, str]]:
    """Folder and name of each tar of a source, sorted. Raises InputError when there is none."""
    found = matching(data_root, source.glob)
    if not found:
        raise InputError(
            f"{source.glob}: found no tar of collection {source.collection} below {data_root}, expected those "
            "that img2dataset wrote. Relative patterns start at the data root; check the pattern and --data."
        )
    return found


def read_samples(folder: Folder, name: str, max_bytes: int) -> Iterator[TarSample]:
    """The samples of one tar in order, pictures larger than `max_bytes` as failures, then its failed downloads.

    Raises InputError where the tar is truncated or none; what was read before stands.
    """
    with folder.open(name) as file:
        members = TarReader(file, folder.full(name)).members(lambda n: MAX_TEXT if extension(n) in TEXTS else -1)
        for group in groups(members):
            yield sample_of(group, max_bytes)
    yield from read_failures(folder, name)


def groups(members: Iterable[Member]) -> Iterator[dict[str, Member]]:
    """The members of each sample by kind, of two of one kind the first; where the tar is damaged what there is."""
    name, found = None, dict[str, Member]()
    try:
        for member in members:
            if stem(member.name) != name:
                if name is not None:
                    yield found
                name, found = stem(member.name), {}
            if (kind := extension(member.name)) in PICTURES or kind in TEXTS:
                found.setdefault(kind, member)
    except InputError:
        yield found
        raise
    if name is not None:
        yield found


def sample_of(by_kind: dict[str, Member], max_bytes: int) -> TarSample:
    """The sample that the members of one name make."""
    picture = next((by_kind[kind] for kind in PICTURES if kind in by_kind), None)
    about = json_object(by_kind.get("json"))
    url, caption = about.get("url"), about.get("caption")
    if caption is None and (text := by_kind.get("txt")) is not None and text.data is not None:
        caption = text.data.decode("utf-8", "replace")
    status, error = about.get("status"), about.get("error_message")
    if not isinstance(url, str) or not isinstance(caption, str):
        return TarSample("", "", reason="no .json with url and caption in the tar")
    if status not in (None, "success"):
        return TarSample(url, caption, reason=failure(status, error))
    if picture is None:
        return TarSample(url, caption, reason="no picture in the tar")
    if picture.size > max_bytes:
        return TarSample(url, caption, reason=f"{picture.size} bytes, more than {max_bytes}")
    return TarSample(url, caption, picture.offset, picture.size)


def read_failures(folder: Folder, tar: str) -> Iterator[TarSample]:
    """The failed downloads that img2dataset lists in `<tar>.parquet`; nothing when there is no such file."""
    name = tar.removesuffix(".tar") + ".parquet"
    if not folder.exists(name):
        return
    try:
        with folder.open(name) as file:
            table = pq.ParquetFile(file)
            for batch in short_batches(file, table, FAILURES, range(table.num_row_groups)):
                for row in batch.to_pylist():
                    if row["status"] != "success" and isinstance(row["url"], str) and isinstance(row["caption"], str):
                        reason = failure(row["status"], row["error_message"])
                        yield TarSample(row["url"], row["caption"], reason=reason)
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        if isinstance(error, ThinkDiffError) or (
            isinstance(error, OSError) and error.errno
        ):  # the store, not the table
            raise
        log.warning(
            "%s: found no table of img2dataset's (%s), expected one; failed downloads stay without their reason.",
            folder.full(name),
            type(error).__name__,
        )


def short_batches(
    file: IO[bytes], table: pq.ParquetFile, names: list[str], groups: Iterable[int]
) -> Iterator[pa.RecordBatch]:
    """Some columns of row groups, so few rows at a time that no dictionary can make much memory of few bytes.

    A page is decoded as a whole, whatever its size. Raises ValueError for lists, of which a row can hold any number.
    """
    for group in groups:
        about = table.metadata.row_group(group)
        columns = [
            column for i in range(about.num_columns) if (column := about.column(i)).physical_type == "BYTE_ARRAY"
        ]
        if any(column.path_in_schema.partition(".")[0] in names and "." in column.path_in_schema for column in columns):
            raise ValueError("nested columns")
        words = [c.path_in_schema for c in columns if not any(kind.startswith("DELTA") for kind in c.encodings)]
        longest = longest_word(file, table, [name for name in words if name in names], group)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(longest, 1)))
        yield from table.iter_batches(rows, row_groups=[group], columns=names)


def longest_word(file: IO[bytes], table: pq.ParquetFile, names: list[str], group: int) -> int:
    """Bytes of the longest value in the dictionaries of a row group, by reading its first row."""
    kept = pq.ParquetFile(file, metadata=table.metadata, read_dictionary=names, buffer_size=1 << 16)
    found = 0
    for batch in kept.iter_batches(1, row_groups=[group], columns=names):
        for column in batch.columns:
            if isinstance(column, pa.DictionaryArray):
                sizes = pc.call_function("binary_length", [column.dictionary])
                found = max(found, pc.call_function("max", [sizes]).as_py() or 0)
        break
    return found


def failure(status: Any, error: Any) -> str:
    """The reason of a failed download in one short line that is good Unicode, whatever the stranger wrote."""
    text = f"{str(status)[:40]}: {str(error)[:160]}" if error else str(status)[:40]
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def json_object(member: Member | None) -> dict[str, Any]:
    """A `.json` member as a mapping, {} when it is missing, too large or no object."""
    if member is None or member.data is None:
        return {}
    try:
        found = json.loads(member.data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def stem(name: str) -> str:
    """What the members of a sample share: the name up to the first dot of its last part, as in WebDataset."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.split('.', 1)[0]}"


def extension(name: str) -> str:
    """The rest of the name, in lower case."""
    return name.rpartition("/")[2].partition(".")[2].lower()
