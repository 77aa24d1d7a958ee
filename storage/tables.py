"""Parquet tables of a fixed schema as bytes.

The same table gives the same bytes with the same pyarrow; what is read back is checked before anyone uses it.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from thinkdiff.schemas.errors import StoreError

ROW_GROUP = 1 << 16


def column(name: str, kind: pa.DataType, nullable: bool = False) -> pa.Field:
    """A column of a schema; without nulls unless said."""
    return pa.field(name, kind, nullable=nullable)


def table_bytes(table: pa.Table, page_index: bool = False) -> memoryview:
    """A table as a zstd Parquet file, perhaps with an index of its pages."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", row_group_size=ROW_GROUP, store_schema=False, write_page_index=page_index
    )
    return memoryview(sink.getvalue())


def read_table(
    data: bytes, schema: pa.Schema, where: str, rows: int | None = None, writer: str = "another version of thinkdiff"
) -> pa.Table:
    """A Parquet file, whose bytes are those recorded, as a table of that very schema, with `rows` rows if given.

    writer: who wrote it, as far as that is known. Raises StoreError when the file is no Parquet, has
    other columns, other types, nulls or another number of rows.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        found = file.metadata.num_rows
        if rows is not None and found != rows:
            raise bad_table(where, f"{found} rows", f"{rows}")
        if file.schema_arrow.names != schema.names:
            raise other_columns(where, file.schema_arrow.names, schema.names, writer)
        table = file.read(use_threads=False).cast(schema)
        table.validate(full=True)
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, StoreError):
            raise
        raise bad_table(where, f"no readable table ({str(error).splitlines()[0]:.80})", "one") from error
    for number, field in enumerate(schema):
        if not field.nullable and table.column(number).null_count:
            raise bad_table(where, f"nulls in column {field.name}", "none")
    return table


def other_columns(where: str, found: list[str], expected: list[str], writer: str) -> StoreError:
    """The sentence for a Parquet file with more columns, fewer, or another order."""
    fewer = [f"no column {name}" for name in expected if name not in found]
    more = [f"a column {name}" for name in found if name not in expected]
    return StoreError(
        f"{where}: found {' and '.join(fewer + more) or 'another order of columns'}, expected {', '.join(expected)}. "
        f"It was written by {writer}; use that version, or re-run its stage with --refresh."
    )


def bad_table(where: str, found: str, expected: str) -> StoreError:
    """The sentence for a Parquet file that is not what it should be."""
    return StoreError(
        f"{where}: found {found}, expected {expected}. The file is lost or altered; re-run its stage with --refresh."
    )
