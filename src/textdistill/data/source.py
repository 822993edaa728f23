"""An official split: rows as their authors cut them, with columns of texts and of labels, checked.

Rows are read chunk by chunk, so that memory does not grow with the texts; only the labels are kept, 4 bytes a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CHUNK_ROWS = 1000  # most rows in memory at a time

# The given columns of all rows in order, as plain types; every call reads the source anew.
Scan = Callable[[Sequence[str]], Iterator[pa.Table]]


@dataclass(frozen=True)
class Columns:
    """The columns of a task: one or two of texts, and one of labels."""

    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True, eq=False)
class SourceSplit:
    """A split as its source has it. Errors are raised when what they are about is asked for.

    Attributes:
        name: the source's name of the split.
        origin: the key that names the source, and its value.
        columns: those to read.
        column_names: those that there are.
        class_names: names of integer labels, where the source knows them.
        scan: reads the rows.

    """

    name: str
    origin: str
    columns: Columns
    column_names: Sequence[str]
    class_names: tuple[str, ...]
    scan: Scan

    @property
    def labelled(self) -> bool:
        """Whether there are labels, and they are not hidden as GLUE hides those of its test splits: -1."""
        if self.columns.label not in self.column_names:
            return False
        labels = self._content.labels
        return not labels.nulls and not (labels.is_integer and min(labels.values) < 0)

    def labels(self) -> tuple[list[Any], np.ndarray]:
        """The distinct labels, all integers from 0 or all strings, and the place in that list of every row's, int32."""
        self._check_column(self.columns.label, "label_column")
        labels = self._content.labels
        key = f"data.label_column: {self.columns.label!r} of the {self.name} split"
        if len(labels.kinds) > 1:
            kinds = " and ".join(sorted(map(str, labels.kinds)))
            raise ValueError(f"{key} must hold labels of one type, got {kinds}; convert the labels")
        if not labels.is_integer and not labels.is_string:
            kind = next(iter(labels.kinds), pa.null())
            raise ValueError(f"{key} must hold integers or strings, got {kind}; convert the labels")
        if labels.nulls:
            raise ValueError(f"{key} has {labels.nulls:,} rows without a label; fill or remove them")
        if labels.is_integer and (least := min(labels.values)) < 0:
            raise ValueError(
                f"{key} must hold labels of at least 0, got {least}, which is how GLUE hides the labels of "
                "its test splits; use a split with labels"
            )
        return list(labels.values), labels.codes

    def class_indices(self, values: list[str]) -> np.ndarray:
        """Class index of every row, int64 (N,); ``values`` are the labels, written as strings, by class index."""
        distinct, codes = self.labels()
        places = {value: index for index, value in enumerate(values)}
        indices: np.ndarray = np.array([places.get(str(label), -1) for label in distinct])[codes]
        if indices.min() < 0:
            unknown = str(distinct[codes[indices.argmin()]])
            raise ValueError(
                f"data.label_column: label {unknown!r} of the {self.name} split is none "
                f"of the labels of train, {', '.join(values[:20])}; remove its rows"
            )
        return indices

    def check_texts(self) -> None:
        """Raises ValueError unless every row has its texts."""
        for column in self.columns.texts:
            self._check_column(column, "text_columns")
            texts = self._content.texts[column]
            key = f"data.text_columns: {column!r} of the {self.name} split"
            if texts.other_kind is not None:
                raise ValueError(f"{key} must hold strings, got {texts.other_kind}; name a column of texts")
            if texts.nulls:
                raise ValueError(f"{key} has {texts.nulls:,} rows without a text; fill or remove them")

    @property
    def digests(self) -> list[str]:
        """A digest of every column of texts, wherever the rows are cut into chunks."""
        return [texts.digest() for texts in self._content.texts.values()]

    def chunks(self) -> Iterator[pa.Table]:
        """The columns of texts, stripped, at most ``CHUNK_ROWS`` rows at a time.

        Raises:
            ValueError: at the end, if the texts are not those that were checked: they changed in between.

        """
        again = {column: _Texts() for column in self.columns.texts}
        rows = 0
        for chunk in self._scan_chunks(self.columns.texts):
            rows += len(chunk)
            if rows > self._content.rows:
                break
            yield pa.table({column: texts.add(chunk[column]) for column, texts in again.items()})
        if rows != self._content.rows or [texts.digest() for texts in again.values()] != self.digests:
            raise ValueError(
                f"{self.origin}: the texts of the {self.name} split must stay as they are while they are read, "
                "but they changed; try again"
            )

    @cached_property
    def _content(self) -> _Content:
        """What is to know of all rows, after one pass over them."""
        content = _Content({column: _Texts() for column in self.columns.texts}, _Labels())
        wanted = (*self.columns.texts, self.columns.label)
        for chunk in self._scan_chunks([column for column in wanted if column in self.column_names]):
            content.rows += len(chunk)
            for column in filter(self.column_names.__contains__, self.columns.texts):
                content.texts[column].add(chunk[column])
            if self.columns.label in self.column_names:
                content.labels.add(chunk[self.columns.label])
        if not content.rows:
            raise ValueError(f"{self.origin}: the {self.name} split must not be empty; give it rows or remove it")
        return content

    def _scan_chunks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        for table in self.scan(columns):
            yield from (table.slice(start, CHUNK_ROWS) for start in range(0, len(table), CHUNK_ROWS))

    def _check_column(self, column: str, key: str) -> None:
        if column not in self.column_names:
            raise ValueError(
                f"data.{key}: there is no column {column!r} in the {self.name} split; "
                f"its columns are {', '.join(self.column_names)}"
            )


@dataclass(frozen=True, eq=False)
class TextSplit:
    """N labelled texts of an official split.

    Attributes:
        source: where they are.
        chosen: which of its rows they are, bool (rows,).
        labels: class indices 0..C-1, int64 (N,).

    """

    source: SourceSplit
    chosen: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class _Texts:
    """What is to know of a column of texts, chunk by chunk."""

    def __init__(self) -> None:
        self.nulls = 0
        self.other_kind: pa.DataType | None = None
        self._lengths, self._bytes = hashlib.sha256(), hashlib.sha256()

    def add(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Takes the next chunk and gives it back stripped."""
        self.nulls += column.null_count
        if not (is_string(column.type) or pa.types.is_null(column.type)):
            self.other_kind = self.other_kind or column.type
            return column
        # 64-bit offsets, so that a chunk may hold more than 2 GiB.
        stripped = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
        for array in stripped.chunks:
            _, offsets, data = array.buffers()
            bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
            self._lengths.update(np.diff(bounds).data)
            self._bytes.update(memoryview(data or b"")[bounds[0] : bounds[-1]])
        return stripped

    def digest(self) -> str:
        return hashlib.sha256(self._lengths.digest() + self._bytes.digest()).hexdigest()


class _Labels:
    """The distinct labels and every row's, chunk by chunk."""

    def __init__(self) -> None:
        self.nulls = 0
        self.kinds: set[pa.DataType] = set()
        self.values: dict[Any, int] = {}  # code by label
        self._codes: list[np.ndarray] = []

    @property
    def is_integer(self) -> bool:
        return self.kinds == {pa.int64()}

    @property
    def is_string(self) -> bool:
        return self.kinds == {pa.string()}

    @property
    def codes(self) -> np.ndarray:
        return np.concatenate(self._codes)

    def add(self, column: pa.ChunkedArray) -> None:
        self.nulls += column.null_count
        if pa.types.is_null(column.type):
            return
        for kind, of_kind in ((pa.int64(), pa.types.is_integer), (pa.string(), is_string)):
            if of_kind(column.type):
                column = column.cast(kind)
        self.kinds.add(column.type)
        if column.type not in (pa.int64(), pa.string()):
            return
        encoded = column.combine_chunks().dictionary_encode()
        codes = [self.values.setdefault(label, len(self.values)) for label in encoded.dictionary.to_pylist()]
        self._codes.append(np.array([*codes, -1], dtype=np.int32)[encoded.indices.fill_null(-1).to_numpy()])


@dataclass
class _Content:
    texts: dict[str, _Texts]
    labels: _Labels
    rows: int = 0


def is_string(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
