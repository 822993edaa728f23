"""Reads JSON: one array of objects, or one object after another, as in JSON lines."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TextIO

import pyarrow as pa

from textdistill.data import streams
from textdistill.data.source import CHUNK_ROWS, Scan
from textdistill.data.streams import DataFile, RefusedFileError, open_utf8

# Objects whose keys are the columns of the file.
NAMING_ROWS = 1000
_SPACE = re.compile(r"[ \t\n\r]*")
# The kinds of JSON values. A column may hold one, beside null.
_NUMBER = "number"
_KINDS = {str: "string", bool: "truth value", int: _NUMBER, float: _NUMBER, list: "list", dict: "object"}
Row = dict[str, Any]


def read_json(file: DataFile, encoding: str | None) -> tuple[tuple[str, ...], Scan]:
    """Returns the column names of a JSON file, and what reads its rows.

    A key of an object inside an object is a column, too: ``{"review": {"body": ...}}`` has a column ``review.body``.

    Raises:
        ValueError: the file is empty or broken. The scan also raises it if a column holds values of several types.

    """
    rows = list(islice(_rows(file, encoding), NAMING_ROWS))
    if not rows:
        raise ValueError("it must hold objects; fill or remove it")
    if len(rows) == 1 and all(isinstance(value, dict | list) for value in rows[0].values()):
        raise RefusedFileError(
            f"data.path: {file} must hold one object for each row, but holds one object for all, with the keys "
            f"{', '.join(rows[0])[:100]}; write the rows one by one (pandas: to_json(orient='records'))"
        )
    cells = (cell for row in rows for cell in _flat(row).items())
    names = tuple(dict.fromkeys(name for name, value in cells if not isinstance(value, dict)))

    def scan(columns: Sequence[str]) -> Iterator[pa.Table]:
        kinds: dict[str, tuple[str, int]] = {}
        values = (_flat(row) for row in _rows(file, encoding))
        start = 1
        while chunk := list(islice(values, CHUNK_ROWS)):
            data = {name: [row.get(name) for row in chunk] for name in columns}
            for name, column in data.items():
                _check_kinds(file, name, column, start, kinds)
            start += len(chunk)
            yield pa.table(data)

    return names, scan


def _flat(row: Row, prefix: str = "") -> Row:
    """The values of an object by key, and those of the objects in it by ``key.key``."""
    flat: Row = {}
    for key, value in row.items():
        flat[prefix + key] = value
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
    return flat


def _check_kinds(file: DataFile, name: str, column: list[Any], start: int, kinds: dict[str, tuple[str, int]]) -> None:
    """Raises an error unless all values of a column are of one kind.

    Args:
        file: the file.
        name: the name of the column.
        column: values of the column.
        start: the number of the row that holds the first of them.
        kinds: the kind of each column with the row of its first value. It is filled.

    """
    for row, value in enumerate(column, start):
        kind = _KINDS.get(type(value))
        if kind is None or kinds.setdefault(name, (kind, row))[0] == kind:
            continue
        first_kind, first_row = kinds[name]
        raise RefusedFileError(
            f"data.path: column {name!r} of {file} must hold values of one type, but row {first_row:,} holds a "
            f"{first_kind} and row {row:,} the {kind} {json.dumps(value)[:50]}; convert the values"
        )


def _rows(file: DataFile, encoding: str | None) -> Iterator[Row]:
    """Yields the objects of a file, and holds one block of the file in memory."""
    with io.TextIOWrapper(open_utf8(file, encoding), "utf-8", newline="") as stream:
        text, row_number = _Text(stream), 0
        try:
            for row in _array(text) if text.peek() == "[" else _sequence(text):
                row_number += 1
                if not isinstance(row, dict):
                    raise ValueError(f"every row must be an object, but row {row_number:,} is {row!r:.50}")
                yield row
        except json.JSONDecodeError as error:
            raise ValueError(
                f"row {row_number + 1:,} is not JSON: {error.msg}, got {error.doc[error.pos : error.pos + 30]!r}"
            ) from error


def _array(text: _Text) -> Iterator[Any]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
    else:
        yield text.value()
        while text.take(",]") == ",":
            yield text.value()
    if text.peek():
        raise ValueError("the file must end after the array, but more text follows")


def _sequence(text: _Text) -> Iterator[Any]:
    while text.peek():
        yield text.value()


class _Text:
    """The text of a file, of which about one block is in memory."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._parse = stream, json.JSONDecoder().raw_decode
        self._buffer, self._position = "", 0

    def peek(self) -> str:
        """Skips white space and returns the next character, which stays; empty at the end of the file."""
        while True:
            space = _SPACE.match(self._buffer, self._position)
            assert space is not None  # the pattern matches nothing at all, too
            self._position = space.end()
            if self._position < len(self._buffer) or not self._read():
                return self._buffer[self._position : self._position + 1]

    def take(self, expected: str) -> str:
        """Skips white space and one of the expected characters, and returns the character."""
        character = self.peek()
        if not character or character not in expected:
            raise json.JSONDecodeError(f"Expecting one of '{expected}'", self._buffer, self._position)
        self._position += 1
        return character

    def value(self) -> Any:
        """Skips white space and a JSON value, and returns the value."""
        self.peek()
        while True:
            try:
                value, self._position = self._parse(self._buffer, self._position)
            except json.JSONDecodeError:
                # The block may end inside the value: parse again with the next block.
                if not self._read():
                    raise
            else:
                return value

    def _read(self) -> bool:
        """Reads the next block. Returns whether there was one; a value of more than a block gets no further one."""
        unused = self._buffer[self._position :]
        block = "" if len(unused) > streams.BLOCK_BYTES else self._stream.read(streams.BLOCK_BYTES)
        self._buffer, self._position = unused + block, 0
        return bool(block)
