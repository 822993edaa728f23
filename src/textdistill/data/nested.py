"""Columns inside columns: a struct ``review`` with a field ``body`` has a column ``review.body``."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa


def flat_columns(schema: pa.Schema) -> dict[str, str]:
    """Returns for each column of a schema, those in structs included, the column at the top that holds it."""
    return {name: field.name for field in schema for name in _names(field)}


def flatten(table: pa.Table) -> pa.Table:
    """Returns a table whose structs are columns, and whose dictionaries are plain values."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    # pandas writes a column of categories as a dictionary of values and codes. Read the values.
    fields = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in table.schema]
    return table.cast(pa.schema(fields))


def _names(field: pa.Field) -> Iterator[str]:
    if not pa.types.is_struct(field.type):
        yield field.name
        return
    for child in field.type:
        yield from (f"{field.name}.{name}" for name in _names(child))
