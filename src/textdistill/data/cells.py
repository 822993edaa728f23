"""The cells of the columns of a task, checked chunk by chunk as they are read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

STRINGS, NUMBERS, TRUTH_VALUES = "strings", "numbers", "truth values"
# What a label cannot be. Other types of Arrow have their own name.
_OTHER_KINDS = {
    "dates or times": pa.types.is_temporal,
    "dictionaries": lambda data_type: pa.types.is_struct(data_type) or pa.types.is_map(data_type),
    "lists": pa.types.is_nested,
    "bytes": lambda data_type: pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type),
}


@dataclass
class RowCount:
    """How many rows have a property, and the first of them, counted from 1."""

    count: int = 0
    first: int = 0

    def add(self, mask: np.ndarray, start: int) -> None:
        """Counts the rows that ``mask``, bool (rows,), selects. ``start`` rows came before them."""
        if mask.any():
            self.first = self.first or start + int(mask.argmax()) + 1
            self.count += int(mask.sum())

    @classmethod
    def of(cls, mask: np.ndarray) -> RowCount:
        """Returns the count of the rows that ``mask`` selects."""
        rows = cls()
        rows.add(mask, 0)
        return rows

    def describe(self, property_: str) -> str:
        """Returns the count and the first row in words, such as "2 rows without a label (the first is row 7)"."""
        if self.count == 1:
            return f"1 row {property_} (row {self.first:,})"
        return f"{self.count:,} rows {property_} (the first is row {self.first:,})"


class TextColumn:
    """Accumulates the checks and the digest of a text column."""

    def __init__(self) -> None:
        self.missing = RowCount()
        self.other_type: pa.DataType | None = None  # of the first chunk that does not hold strings
        self._rows = 0
        self._lengths, self._bytes = hashlib.sha256(), hashlib.sha256()

    def add(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Reads the next chunk and returns its texts without leading and trailing white space."""
        start, self._rows = self._rows, self._rows + len(column)
        if not (is_string(column.type) or pa.types.is_null(column.type)):
            self.other_type = self.other_type or column.type
            return column
        # With 32-bit offsets a chunk could not hold more than 2 GiB of text.
        stripped = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
        self.missing.add(pc.equal(pc.fill_null(stripped, ""), "").to_numpy(), start)
        for array in stripped.chunks:
            _, offsets, data = array.buffers()
            bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
            self._lengths.update(np.diff(bounds).data)
            self._bytes.update(memoryview(data or b"")[bounds[0] : bounds[-1]])
        return stripped

    def digest(self) -> str:
        return hashlib.sha256(self._lengths.digest() + self._bytes.digest()).hexdigest()


class LabelColumn:
    """Collects the texts of the distinct labels, and a code for each row: an index into them, or -1 without a label.

    A label is stripped of white space. A number is written as an integer, and a truth value as ``False`` or ``True``.

    Attributes:
        missing: the rows without a label.
        trimmed: the rows whose label has white space around it.
        fractions: the rows whose label is a number, but no whole number; they have the code -1.
        kinds: the first row of each kind of label: strings, numbers, truth values, or one that no label can be.
        codes_by_label: the code of each distinct label.

    """

    def __init__(self) -> None:
        self.missing, self.trimmed, self.fractions = RowCount(), RowCount(), RowCount()
        self.kinds: dict[str, int] = {}
        self.codes_by_label: dict[str, int] = {}
        self._codes: list[np.ndarray] = [np.empty(0, np.int32)]
        self._rows = 0

    @property
    def codes(self) -> np.ndarray:
        """The code of each row, int32, (rows,)."""
        return np.concatenate(self._codes)

    def add(self, column: pa.ChunkedArray) -> None:
        """Reads the next chunk."""
        start, self._rows = self._rows, self._rows + len(column)
        if column.null_count == len(column):
            self.missing.add(np.ones(len(column), dtype=bool), start)
            self._codes.append(np.full(len(column), -1, np.int32))
            return
        kind = kind_of(column.type)
        self.kinds.setdefault(kind, start + int(column.is_valid().to_numpy().argmax()) + 1)
        if kind not in (STRINGS, NUMBERS, TRUTH_VALUES):
            return
        encoded = column.combine_chunks().dictionary_encode()
        values = encoded.dictionary.to_pylist()
        texts = [_text(value) for value in values]
        indices = encoded.indices.fill_null(len(values)).to_numpy()

        def rows_where(*flags: bool) -> np.ndarray:
            selected: np.ndarray = np.array(flags)[indices]
            return selected

        self.missing.add(rows_where(*(text == "" for text in texts), True), start)
        self.trimmed.add(rows_where(*_differ(values, texts), False), start)
        self.fractions.add(rows_where(*(text is None for text in texts), False), start)
        codes = [self.codes_by_label.setdefault(text, len(self.codes_by_label)) if text else -1 for text in texts]
        self._codes.append(np.array([*codes, -1], dtype=np.int32)[indices])


def kind_of(data_type: pa.DataType) -> str:
    """Returns what values of an Arrow type are called, such as ``strings`` or ``dates or times``."""
    if is_string(data_type):
        return STRINGS
    if pa.types.is_boolean(data_type):
        return TRUTH_VALUES
    if pa.types.is_integer(data_type) or pa.types.is_floating(data_type) or pa.types.is_decimal(data_type):
        return NUMBERS
    for name, is_of_kind in _OTHER_KINDS.items():
        if is_of_kind(data_type):
            return name
    return str(data_type)


def _text(value: str | bool | float | Decimal) -> str | None:
    """Returns the text of a label: "" for a missing one, None for a number that is not whole."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float | Decimal):
        if math.isnan(value):
            return ""
        return str(int(value)) if math.isfinite(value) and value == int(value) else None
    return str(value)


def _differ(values: list[str | bool | float | Decimal], texts: list[str | None]) -> Iterator[bool]:
    """Whether each label has white space around it."""
    return (isinstance(value, str) and text != "" and value != text for value, text in zip(values, texts, strict=True))


def is_string(data_type: pa.DataType) -> bool:
    """Whether a column of this Arrow type holds strings."""
    return bool(
        pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type)
    )
