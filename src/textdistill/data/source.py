"""One split as its source holds it: columns of texts and a column of labels, checked while they are read.

Rows are read in chunks, so that memory does not grow with the texts. A label and a hash of the texts stay in
memory: 12 bytes a row.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from textdistill.core.suggestions import did_you_mean, nearest
from textdistill.data.cells import NUMBERS, STRINGS, TRUTH_VALUES, LabelColumn, RowCount, TextColumn, is_string

logger = logging.getLogger(__name__)

CHUNK_ROWS = 1000  # the most rows that a chunk holds
# How GLUE writes the labels of a test split that it keeps to itself.
HIDDEN = "-1"
# pandas writes a column of integers like this if a value is missing.
_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")

# Reads the named columns of all rows in order, without dictionary types. Every call reads the source anew.
Scan = Callable[[Sequence[str]], Iterator[pa.Table]]


@dataclass(frozen=True)
class Columns:
    """The columns of a task: one or two with texts, and one with labels."""

    texts: tuple[str, ...]
    label: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all columns."""
        return (*self.texts, self.label)


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
        """Whether any row has a label. GLUE hides the labels of its test splits: they are all -1."""
        if self.columns.label not in self.raw.column_names:
            return False
        labels = self._content.labels
        usable = {STRINGS, NUMBERS, TRUTH_VALUES}
        return not labels.kinds.keys() <= usable or labels.fractions.count > 0 or not self._all_hidden

    @property
    def _all_hidden(self) -> bool:
        return self._content.labels.codes_by_label.keys() <= {HIDDEN}

    def labels(self) -> tuple[list[str], np.ndarray]:
        """Returns the distinct labels, and for each row an index into them.

        Returns:
            The distinct labels, in the order in which they come; and the indices, int32, (rows,).

        Raises:
            ValueError: the column is missing, has empty values or values of another type, or hides its labels.

        """
        self._check_column(self.columns.label, "label_column")
        labels = self._content.labels
        key = f"data.label_column: {self.columns.label!r} of the {self.name} split"
        if others := labels.kinds.keys() - {STRINGS, NUMBERS, TRUTH_VALUES}:
            raise ValueError(
                f"{key} must hold strings, whole numbers or truth values, got {others.pop()}; name a column of classes"
            )
        if len(labels.kinds) > 1:
            kinds = " and ".join(f"{kind} (row {row:,})" for kind, row in labels.kinds.items())
            raise ValueError(f"{key} must hold labels of one type, got {kinds}; convert the labels")
        if labels.fractions.count:
            raise ValueError(
                f"{key} must hold classes, but has {labels.fractions.describe('with a number that is not whole')}; "
                "round the numbers, or name a column of classes"
            )
        if labels.missing.count:
            raise ValueError(f"{key} has {labels.missing.describe('without a label')}; fill or remove them")
        if self._all_hidden:
            raise ValueError(
                f"{key} must not hold {HIDDEN} in every row, which is how GLUE hides the labels of its test splits; "
                "use a split with labels"
            )
        return list(labels.codes_by_label), labels.codes

    def class_indices(self, class_labels: Sequence[str]) -> np.ndarray:
        """Returns the class index of every row, int64, (rows,), and warns of labels that are not read as they are.

        Args:
            class_labels: the label of each class, in the order of the class indices.

        Raises:
            ValueError: a row has another label.

        """
        distinct, codes = self.labels()
        index_by_label = {label: index for index, label in enumerate(class_labels)}
        key = f"data.label_column: {self.columns.label!r} of the {self.name} split"
        if trimmed := self._content.labels.trimmed.count:
            logger.warning("%s: %s labels had white space around them, which is left out", key, f"{trimmed:,}")
        whole = [label not in index_by_label and whole_number(label) in index_by_label for label in distinct]
        if rewritten := np.array(whole)[codes].sum():
            label = distinct[whole.index(True)]
            logger.warning("%s: %s labels such as %s are read as %s", key, f"{rewritten:,}", label, whole_number(label))
        label_index = [index_by_label.get(label, index_by_label.get(whole_number(label), -1)) for label in distinct]
        indices: np.ndarray = np.array(label_index, dtype=np.int64)[codes]
        unknown = RowCount.of(indices < 0)
        if unknown.count:
            label, rows = distinct[codes[unknown.first - 1]], unknown.describe("of such a class")
            raise ValueError(
                f"data.label_column: label {label!r} of the {self.name} split is none of the labels of train, "
                f"{', '.join(class_labels[:20])}: it has {rows}; remove them, or add rows of the class to train"
            )
        return indices

    def check_texts(self) -> None:
        """Raises ValueError unless every row has all of its texts."""
        for column in self.columns.texts:
            self._check_column(column, "text_columns")
            texts = self._content.texts[column]
            key = f"data.text_columns: {column!r} of the {self.name} split"
            if texts.other_type is not None:
                raise ValueError(
                    f"{key} must hold strings, got {texts.other_type}; name a column of texts, or write the values "
                    "as strings"
                )
            if texts.missing.count:
                raise ValueError(f"{key} has {texts.missing.describe('without a text')}; fill or remove them")

    @property
    def text_hashes(self) -> np.ndarray:
        """A hash of the texts of each row, int64, (rows,). It differs from process to process."""
        return np.concatenate(self._content.hashes)

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
        reread = {column: TextColumn() for column in self.columns.texts}
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
        content = _Content({column: TextColumn() for column in self.columns.texts}, LabelColumn())
        for chunk in self._scan_chunks([column for column in self.columns.names if column in self.raw.column_names]):
            content.rows += len(chunk)
            present = filter(self.raw.column_names.__contains__, self.columns.texts)
            texts = [content.texts[column].add(chunk[column]) for column in present]
            if all(is_string(text.type) for text in texts):
                rows = zip(*(text.to_pylist() for text in texts), strict=True)
                content.hashes.append(np.fromiter(map(hash, rows), np.int64))
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
                f"{did_you_mean(nearest(column, self.raw.column_names))}"
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


@dataclass
class _Content:
    texts: dict[str, TextColumn]
    labels: LabelColumn
    hashes: list[np.ndarray] = field(default_factory=list)
    rows: int = 0


def whole_number(label: str) -> str:
    """Returns ``1`` for ``1.0``, and any other label as it is."""
    match = _WHOLE.fullmatch(label)
    return match[1] if match else label
