"""One split as its source holds it: columns of texts and a column of labels, checked while they are read.

Rows are read in chunks, so that memory does not grow with the texts. Only the labels stay in memory: 4 bytes a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CHUNK_ROWS = 1000  # the most rows that a chunk holds

# Reads the named columns of all rows in order, without dictionary types. Every call reads the source anew.
Scan = Callable[[Sequence[str]], Iterator[pa.Table]]


@dataclass(frozen=True)
class Columns:
    """The columns of a task: one or two with texts, and one with labels."""

    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True, eq=False)
class RawSplit:
    """All columns of a split, as a reader finds them.

    Attributes:
        name: the name of the split in the source.
        origin: the configuration key that names the source, and its value, for errors.
        column_names: all columns of the source.
        class_names: for each column of integers whose names the source states, these names by integer.
        scan: reads the rows.

    """

    name: str
    origin: str
    column_names: Sequence[str]
    class_names: Mapping[str, tuple[str, ...]]
    scan: Scan


@dataclass(frozen=True, eq=False)
class SourceSplit:
    """The columns of a task in a split of its source. A method raises an error only about the columns that it reads.

    Attributes:
        raw: all columns of the split.
        columns: the columns of the task.

    """

    raw: RawSplit
    columns: Columns

    @property
    def name(self) -> str:
        """The name of the split in the source."""
        return self.raw.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of integer labels; empty if the source does not state them."""
        return self.raw.class_names.get(self.columns.label, ())

    @property
    def labelled(self) -> bool:
        """Whether every row has a label. GLUE hides the labels of its test splits: they are all -1."""
        if self.columns.label not in self.raw.column_names:
            return False
        labels = self._content.labels
        return not labels.nulls and not (labels.is_integer and min(labels.codes_by_label) < 0)

    def labels(self) -> tuple[list[Any], np.ndarray]:
        """Returns the distinct labels, and for each row an index into them.

        Returns:
            The distinct labels, all integers of at least 0 or all strings; and the indices, int32, (rows,).

        Raises:
            ValueError: the column is missing, has empty values or values of another type, or hides its labels.

        """
        self._check_column(self.columns.label, "label_column")
        labels = self._content.labels
        key = f"data.label_column: {self.columns.label!r} of the {self.name} split"
        if len(labels.types) > 1:
            types = " and ".join(sorted(map(str, labels.types)))
            raise ValueError(f"{key} must hold labels of one type, got {types}; convert the labels")
        if not labels.is_integer and not labels.is_string:
            data_type = next(iter(labels.types), pa.null())
            raise ValueError(f"{key} must hold integers or strings, got {data_type}; convert the labels")
        if labels.nulls:
            raise ValueError(f"{key} has {labels.nulls:,} rows without a label; fill or remove them")
        if labels.is_integer and (smallest := min(labels.codes_by_label)) < 0:
            raise ValueError(
                f"{key} must hold labels of at least 0, got {smallest}, which is how GLUE hides the labels of "
                "its test splits; use a split with labels"
            )
        return list(labels.codes_by_label), labels.codes

    def class_indices(self, class_labels: Sequence[str]) -> np.ndarray:
        """Returns the class index of every row, int64, (rows,).

        Args:
            class_labels: the label of each class, written as a string, in the order of the class indices.

        Raises:
            ValueError: a row has another label.

        """
        distinct, codes = self.labels()
        index_by_label = {label: index for index, label in enumerate(class_labels)}
        indices: np.ndarray = np.array([index_by_label.get(str(label), -1) for label in distinct])[codes]
        if indices.min() < 0:
            unknown = str(distinct[codes[indices.argmin()]])
            raise ValueError(
                f"data.label_column: label {unknown!r} of the {self.name} split is none "
                f"of the labels of train, {', '.join(class_labels[:20])}; remove its rows"
            )
        return indices

    def check_texts(self) -> None:
        """Raises ValueError unless every row has all of its texts."""
        for column in self.columns.texts:
            self._check_column(column, "text_columns")
            texts = self._content.texts[column]
            key = f"data.text_columns: {column!r} of the {self.name} split"
            if texts.other_type is not None:
                raise ValueError(f"{key} must hold strings, got {texts.other_type}; name a column of texts")
            if texts.nulls:
                raise ValueError(f"{key} has {texts.nulls:,} rows without a text; fill or remove them")

    @property
    def digests(self) -> list[str]:
        """A digest for each text column. It does not depend on how the rows are cut into chunks."""
        return [texts.digest() for texts in self._content.texts.values()]

    def chunks(self) -> Iterator[pa.Table]:
        """Yields the text columns, stripped of white space, at most ``CHUNK_ROWS`` rows at a time.

        Raises:
            ValueError: the texts differ from the checked ones, because the source has changed. This is only known
                after the last chunk.

        """
        reread = {column: _TextColumn() for column in self.columns.texts}
        rows = 0
        for chunk in self._scan_chunks(self.columns.texts):
            rows += len(chunk)
            if rows > self._content.rows:
                break
            yield pa.table({column: texts.add(chunk[column]) for column, texts in reread.items()})
        if rows != self._content.rows or [texts.digest() for texts in reread.values()] != self.digests:
            raise ValueError(
                f"{self.raw.origin}: the texts of the {self.name} split must stay as they are while they are read, "
                "but they changed; try again"
            )

    @cached_property
    def _content(self) -> _Content:
        """The checks, digests and labels of all rows, from one pass over them."""
        content = _Content({column: _TextColumn() for column in self.columns.texts}, _LabelColumn())
        task_columns = (*self.columns.texts, self.columns.label)
        for chunk in self._scan_chunks([column for column in task_columns if column in self.raw.column_names]):
            content.rows += len(chunk)
            for column in filter(self.raw.column_names.__contains__, self.columns.texts):
                content.texts[column].add(chunk[column])
            if self.columns.label in self.raw.column_names:
                content.labels.add(chunk[self.columns.label])
        if not content.rows:
            raise ValueError(f"{self.raw.origin}: the {self.name} split must not be empty; give it rows or remove it")
        return content

    def _scan_chunks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        for table in self.raw.scan(columns):
            yield from (table.slice(start, CHUNK_ROWS) for start in range(0, len(table), CHUNK_ROWS))

    def _check_column(self, column: str, key: str) -> None:
        if column not in self.raw.column_names:
            raise ValueError(
                f"data.{key}: there is no column {column!r} in the {self.name} split; "
                f"its columns are {', '.join(self.raw.column_names)}"
            )


@dataclass(frozen=True, eq=False)
class TextSplit:
    """N labelled texts: some or all rows of one split of the source.

    Attributes:
        source: the split that holds the texts.
        chosen: which of its rows belong to this split, bool, (rows,).
        labels: class indices 0..C-1 of the chosen rows, int64, (N,).

    """

    source: SourceSplit
    chosen: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class _TextColumn:
    """Accumulates the checks and the digest of a text column, chunk by chunk."""

    def __init__(self) -> None:
        self.nulls = 0
        self.other_type: pa.DataType | None = None  # of the first chunk that does not hold strings
        self._lengths, self._bytes = hashlib.sha256(), hashlib.sha256()

    def add(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Reads the next chunk and returns its texts without leading and trailing white space."""
        self.nulls += column.null_count
        if not (is_string(column.type) or pa.types.is_null(column.type)):
            self.other_type = self.other_type or column.type
            return column
        # With 32-bit offsets a chunk could not hold more than 2 GiB of text.
        stripped = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
        for array in stripped.chunks:
            _, offsets, data = array.buffers()
            bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
            self._lengths.update(np.diff(bounds).data)
            self._bytes.update(memoryview(data or b"")[bounds[0] : bounds[-1]])
        return stripped

    def digest(self) -> str:
        return hashlib.sha256(self._lengths.digest() + self._bytes.digest()).hexdigest()


class _LabelColumn:
    """Collects the distinct labels and an integer code for each row, chunk by chunk."""

    def __init__(self) -> None:
        self.nulls = 0
        self.types: set[pa.DataType] = set()
        self.codes_by_label: dict[Any, int] = {}
        self._codes: list[np.ndarray] = []

    @property
    def is_integer(self) -> bool:
        return self.types == {pa.int64()}

    @property
    def is_string(self) -> bool:
        return self.types == {pa.string()}

    @property
    def codes(self) -> np.ndarray:
        return np.concatenate(self._codes)

    def add(self, column: pa.ChunkedArray) -> None:
        self.nulls += column.null_count
        if pa.types.is_null(column.type):
            return
        for data_type, is_of_type in ((pa.int64(), pa.types.is_integer), (pa.string(), is_string)):
            if is_of_type(column.type):
                column = column.cast(data_type)
        self.types.add(column.type)
        if column.type not in (pa.int64(), pa.string()):
            return
        encoded = column.combine_chunks().dictionary_encode()
        distinct = encoded.dictionary.to_pylist()
        codes = [self.codes_by_label.setdefault(label, len(self.codes_by_label)) for label in distinct]
        self._codes.append(np.array([*codes, -1], dtype=np.int32)[encoded.indices.fill_null(-1).to_numpy()])


@dataclass
class _Content:
    texts: dict[str, _TextColumn]
    labels: _LabelColumn
    rows: int = 0


def is_string(data_type: pa.DataType) -> bool:
    """Whether a column of this Arrow type holds strings."""
    return bool(
        pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type)
    )
