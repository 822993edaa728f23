"""The rows of ``predict`` on their way from a file or from given texts, and with their predictions to a file."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.compute as pc

from textdistill.commands.predict import (
    Classifier,
    Texts,
    check_texts,
    prediction_columns,
    progress_bar,
    warn_truncated,
)
from textdistill.core.files import replacing
from textdistill.data.cells import is_string
from textdistill.data.columns import find_texts
from textdistill.data.readers import read_files
from textdistill.data.source import RawSplit

logger = logging.getLogger(__name__)

# Rows are sorted by length and predicted this many at a time, so that memory does not grow with the file.
CHUNK_ROWS = 8192
# The columns of texts that stand in no file.
GIVEN_COLUMNS = ("text", "text_pair")
# A row of the output: the columns of the input, and those of ``Predictions.to_rows``.
Row = Mapping[str, object]
WriteRow = Callable[[Row], object]


@dataclass(frozen=True, eq=False)
class TextTable:
    """Checked rows of texts, with the columns beside them.

    Attributes:
        text_columns: the one or two columns with the texts.
        column_names: all columns.
        rows: the number of rows, at least 1.
        scan: reads all columns of all rows in order; every call reads them anew.

    """

    text_columns: tuple[str, ...]
    column_names: tuple[str, ...]
    rows: int
    scan: Callable[[], Iterator[pa.Table]]

    @classmethod
    def of_texts(cls, texts: Sequence[Texts]) -> TextTable:
        """Makes a table of texts as ``as_rows`` returns them."""
        columns = GIVEN_COLUMNS[: len(texts[0])]
        table = pa.table([pa.array(column) for column in zip(*texts, strict=True)], names=list(columns))
        return cls(columns, columns, len(texts), lambda: iter([table]))

    @classmethod
    def of_file(cls, path: Path, columns: Sequence[str] | None, made_for: Sequence[str]) -> TextTable:
        """Reads a file of any kind that ``data.path`` may name, and checks its texts.

        Args:
            path: the file.
            columns: the one or two columns with the texts; None for ``made_for``, or for a choice by name and type.
            made_for: the text columns that the model was made for.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is broken, the columns are unclear, or a row has no text.

        """
        if not path.exists():
            raise FileNotFoundError(f"--input must be a file, but there is nothing at {path}; check the path")
        if path.is_dir():
            raise ValueError(f"--input must be a file, got the folder {path}; name one of its files")
        (split,) = read_files(path).values()
        texts = _text_columns(split, path, columns, made_for)
        rows = sum(_checked_rows(split, path, texts))
        if not rows:
            raise ValueError(f"--input must hold one or more rows, got none in {path}; give it rows")
        return cls(texts, tuple(split.column_names), rows, lambda: split.scan(split.column_names))


def output_columns(classifier: Classifier, table: TextTable) -> list[str]:
    """Returns the columns of a table with its predictions.

    Raises:
        ValueError: the model was made for another number of texts, or the table has a column of a prediction's name.

    """
    check_texts(classifier, len(table.text_columns))
    columns = prediction_columns(classifier.class_names)
    if twice := [name for name in columns if name in table.column_names]:
        raise ValueError(f"--input must have no column {twice[0]!r}, which holds the prediction; rename the column")
    return [*table.column_names, *columns]


def predict_rows(classifier: Classifier, table: TextTable, limit: int | None = None) -> Iterator[Row]:
    """Yields each row of a table, at most ``limit`` of them, with its prediction."""
    left = table.rows if limit is None else min(limit, table.rows)
    truncated, rows = 0, left
    with progress_bar(rows) as bar:
        for chunk in _chunks(table):
            chunk = chunk.slice(0, left)
            predictions = classifier([tuple(row) for row in _texts(chunk, table.text_columns)], bar=bar)
            truncated += predictions.truncated
            for row, predicted in zip(chunk.to_pylist(), predictions.to_rows(), strict=True):
                yield row | predicted
            left -= len(chunk)
            if not left:
                break
    warn_truncated(truncated, rows, classifier)


def check_output(output: Path) -> None:
    """Raises ValueError unless rows can be written to a file of this name."""
    if output.suffix not in _WRITERS:
        raise ValueError(f"--output must end in one of {', '.join(_WRITERS)}, got {output}; choose another name")


def write_predictions(classifier: Classifier, table: TextTable, output: Path) -> None:
    """Writes a table with its predictions to a csv or jsonl file, whole or not at all."""
    check_output(output)
    columns = output_columns(classifier, table)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        write = _WRITERS[output.suffix](file, columns)
        for row in predict_rows(classifier, table):
            write(row)


def json_line(row: Row) -> str:
    """Returns a row as one line of JSON. Values that JSON does not know, such as dates, become strings."""
    return json.dumps(row, ensure_ascii=False, default=str)


def _text_columns(
    split: RawSplit, path: Path, columns: Sequence[str] | None, made_for: Sequence[str]
) -> tuple[str, ...]:
    names = list(split.column_names)
    if columns is None:
        try:
            columns = made_for if made_for and set(made_for) <= set(names) else find_texts(split)
        except ValueError as error:
            raise ValueError(f"--text must name the column of the texts of {path}, because {error}") from error
        logger.info("texts: %s of %s; --text names another column", " and ".join(columns), path)
    for column in columns:
        if column not in names:
            raise ValueError(f"--text: there is no column {column!r} in {path}; its columns are {', '.join(names)}")
    if not 1 <= len(columns) <= 2 or len(set(columns)) != len(columns):
        raise ValueError(f"--text must name one column or two different ones, got {', '.join(columns)}")
    return tuple(columns)


def _checked_rows(split: RawSplit, path: Path, columns: Sequence[str]) -> Iterator[int]:
    """Yields the number of rows of each part of a file, and refuses a file with a row that has no text."""
    rows, empty, first = 0, 0, 0
    for table in split.scan(columns):
        blank = None
        for column in columns:
            if not (is_string(table[column].type) or pa.types.is_null(table[column].type)):
                kind = table[column].type
                raise ValueError(f"--text: {column!r} of {path} must hold strings, got {kind}; name a column of texts")
            without = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(table[column].cast(pa.large_string())), ""), True)
            blank = without if blank is None else pc.or_(blank, without)
        count = pc.sum(blank).as_py() or 0
        first = first or (rows + pc.index(blank, True).as_py() + 1 if count else 0)
        empty, rows = empty + count, rows + len(table)
        yield len(table)
    if empty:
        raise ValueError(
            f"--input: {path} has {empty:,} rows without a text in {' and '.join(columns)}, the first is row {first};"
            " fill or remove them"
        )


def _chunks(table: TextTable) -> Iterator[pa.Table]:
    for part in table.scan():
        yield from (part.slice(start, CHUNK_ROWS) for start in range(0, len(part), CHUNK_ROWS))


def _texts(chunk: pa.Table, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    yield from zip(*(chunk[column].to_pylist() for column in columns), strict=True)


def _csv_writer(file: TextIO, columns: Sequence[str]) -> WriteRow:
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    return writer.writerow


def _json_writer(file: TextIO, columns: Sequence[str]) -> WriteRow:
    return lambda row: file.write(f"{json_line(row)}\n")


_WRITERS: dict[str, Callable[[TextIO, Sequence[str]], WriteRow]] = {".csv": _csv_writer, ".jsonl": _json_writer}
