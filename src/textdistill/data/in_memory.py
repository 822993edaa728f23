"""Reads the splits of data that are in memory already: datasets, data frames, rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from textdistill.data.cells import kind_of
from textdistill.data.hub import dataset_splits
from textdistill.data.source import RawSplit

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# The columns of texts and labels that come as two lists.
LIST_COLUMNS = ("text", "label")


def read_memory(data: object) -> dict[str, RawSplit]:
    """Returns the splits of data in memory by name. Data without splits are the train split.

    Args:
        data: a ``datasets.Dataset`` or ``DatasetDict``; a ``DataFrame`` of pandas or polars, or an Arrow table; a list
            of dictionaries, one a row; a dictionary of columns; texts and labels as two lists; or a dictionary of
            these by the name of their split.

    Raises:
        ValueError: the data have another form, columns differ in length, or a column holds values of several types.

    """
    by_split = data if isinstance(data, Mapping) and data and all(map(_is_table, data.values())) else {"train": data}
    return dataset_splits({str(name): _dataset(name, split) for name, split in by_split.items()}, "the data in memory")


def _is_table(data: object) -> bool:
    """Whether data have rows and columns, unlike the values of a single column."""
    # Datasets and Arrow tables have column_names, and data frames have columns.
    has_columns = hasattr(data, "column_names") or hasattr(data, "columns")
    return has_columns or isinstance(data, Mapping) or _is_rows(data) or _is_two_lists(data)


def _is_rows(data: object) -> bool:
    return isinstance(data, Sequence) and len(data) > 0 and all(isinstance(row, Mapping) for row in data)


def _is_two_lists(data: object) -> bool:
    return isinstance(data, list | tuple) and len(data) == 2 and all(map(_is_column, data))


def _is_column(data: object) -> bool:
    """Whether data are values in order, such as a list, an array of NumPy or a series of pandas."""
    return not isinstance(data, str | bytes | Mapping) and hasattr(data, "__len__") and hasattr(data, "__getitem__")


def _dataset(split: str, data: Any) -> Dataset | IterableDataset:
    from datasets import Dataset, IterableDataset

    if isinstance(data, Dataset | IterableDataset):
        return data
    table = _table(split, data)
    # Categories are a dictionary of values and codes. Read the values.
    fields = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in table.schema]
    # Without a fingerprint the dataset would compute one from all of its rows.
    return Dataset(table.cast(pa.schema(fields)), fingerprint="in_memory")


def _table(split: str, data: Any) -> pa.Table:
    if hasattr(data, "iloc") and hasattr(data, "columns"):  # pandas, whose index is no column
        return _table_of_columns(split, {str(column): data[column] for column in data.columns})
    if hasattr(data, "__arrow_c_stream__"):
        return pa.table(data)
    if _is_rows(data):
        names = dict.fromkeys(name for row in data for name in row)
        return _table_of_columns(split, {str(name): [row.get(name) for row in data] for name in names})
    if isinstance(data, Mapping) and data and all(map(_is_column, data.values())):
        return _table_of_columns(split, {str(name): column for name, column in data.items()})
    if _is_two_lists(data):
        return _table_of_columns(split, dict(zip(LIST_COLUMNS, data, strict=True)))
    raise ValueError(
        "data must be a path, a dataset, a data frame, a list of dictionaries, texts and labels as two lists, or a "
        f"dictionary of these by split, got {type(data).__name__} {data!r:.60}"
    )


def _table_of_columns(split: str, columns: Mapping[str, Any]) -> pa.Table:
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{len(values):,} in {name!r}" for name, values in columns.items())
        raise ValueError(f"data: all columns of the {split} split must have as many values, got {lengths}")
    return pa.table({name: _array(split, name, values) for name, values in columns.items()})


def _array(split: str, column: str, values: Any) -> pa.Array:
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"data: column {column!r} of the {split} split must hold values of one type, got "
            f"{_first_of_another_kind(values) or error}; convert the values"
        ) from error


def _first_of_another_kind(values: Any) -> str | None:
    """The row and the value where the kind of the values changes."""
    first = None
    for row, value in enumerate(values, start=1):
        try:
            data_type = pa.array([value], from_pandas=True).type
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return f"{value!r:.50} ({type(value).__name__}) in row {row:,}"
        kind = None if pa.types.is_null(data_type) else kind_of(data_type)
        if None not in (first, kind) and kind != first:
            return f"{value!r:.50} in row {row:,} after {first}"
        first = first or kind
    return None
