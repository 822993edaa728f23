"""Finds out how a csv or tsv file is written: its delimiter, its quoting, its header and its columns."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, NoReturn

from textdistill.data import streams
from textdistill.data.streams import DataFile, RefusedFileError, open_utf8

logger = logging.getLogger(__name__)

DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
# Bytes from which the delimiter and the header are found out. A cell of Python's csv module holds no more characters.
SAMPLE_BYTES = 2**17 - 1
_NUMBER = re.compile(r"[-+]?[0-9]+([.,][0-9]+)?")
# A first row with so many words in a cell holds texts, not names of columns.
_WORDS_OF_A_TEXT = 8


@dataclass(frozen=True)
class CsvOptions:
    """What the configuration says about csv files. None: found out.

    Attributes:
        header: whether the first row names the columns.
        encoding: the encoding of the file.
        delimiter: what separates the columns: one character, or a key of ``DELIMITERS``.

    """

    header: bool | None = None
    encoding: str | None = None
    delimiter: str | None = None

    def check(self) -> None:
        """Raises ValueError for an unknown encoding or an impossible delimiter."""
        try:
            # Nothing at all would be decoded without a look at the encoding.
            b"a".decode(self.encoding or "utf-8", "ignore")
        except (LookupError, ValueError):
            raise ValueError(
                f"data.encoding must be an encoding that Python knows, such as utf-8, cp1252 or latin-1, got "
                f"{self.encoding!r}"
            ) from None
        delimiter = self.delimiter
        if delimiter is None or delimiter in DELIMITERS:
            return
        if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n' or delimiter.isalnum():
            raise ValueError(
                f"data.delimiter must be one character, or one of {', '.join(DELIMITERS)}, got {delimiter!r}"
            )


@dataclass(frozen=True)
class Dialect:
    """How a csv file is written.

    Attributes:
        delimiter: one character.
        quoted: whether a quotation mark at the start of a cell opens a quotation.
        backslash: whether a backslash, and not a second quotation mark, escapes a quotation mark.
        column_names: the names of the columns, without white space around them.
        rows_before_data: the header and empty lines above it.

    """

    delimiter: str
    quoted: bool
    backslash: bool
    column_names: tuple[str, ...]
    rows_before_data: int


def find_dialect(file: DataFile, options: CsvOptions) -> Dialect:
    """Reads a file once and returns how it is written.

    Raises:
        ValueError: the file is empty, or two columns have one name.
        RefusedFileError: a quotation mark does not close where its cell ends, or a byte is not of the encoding.

    """
    return _Survey(file, options).dialect()


class _Survey:
    def __init__(self, file: DataFile, options: CsvOptions) -> None:
        self._file, self._options = file, options

    def dialect(self) -> Dialect:
        delimiter = self._delimiter
        quoted, backslash = self._quoting(delimiter)
        rows = _parse(self._sample, delimiter, quoted, backslash)
        if not rows:
            raise RefusedFileError(
                f"data.path: {self._file} is empty or broken: its first row must end within {SAMPLE_BYTES:,} bytes"
            )
        if len(rows[0]) == 1 and self._file.suffix == ".tsv" and any(map(rows[0][0].__contains__, ",;|")):
            raise RefusedFileError(
                f"data.delimiter: the columns of {self._file} must be separated by tabs, but the first row is "
                f"{rows[0][0]!r}; give what separates them, for example data.delimiter=comma"
            )
        header = self._has_header(rows)
        names = [name.strip() for name in rows[0]] if header else [""] * len(rows[0])
        names = [name or f"column_{number}" for number, name in enumerate(names, start=1)]
        if doubled := [name for name, count in Counter(names).items() if count > 1]:
            raise RefusedFileError(
                f"data.path: the columns of {self._file} must have different names, got {doubled[0]!r} "
                f"{names.count(doubled[0])} times; rename one, or give data.header=false if the first row is data"
            )
        blank = len(self._sample) - len(self._sample.lstrip("\r\n"))
        blank_lines = len(self._sample[:blank].splitlines())
        return Dialect(delimiter, quoted, backslash, tuple(names), blank_lines + 1 if header else 0)

    def _open(self) -> IO[bytes]:
        return open_utf8(self._file, self._options.encoding)

    @cached_property
    def _sample(self) -> str:
        """The rows at the start of the file, as far as they are whole."""
        with self._open() as stream:
            data = stream.read(SAMPLE_BYTES)
        if not data.strip():
            raise RefusedFileError(f"data.path: {self._file} is empty or broken: it must hold rows; fill or remove it")
        if len(data) == SAMPLE_BYTES:
            data = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
        return data.decode()

    @cached_property
    def _delimiter(self) -> str:
        given, usual = self._options.delimiter, "\t" if self._file.suffix == ".tsv" else ","
        if given is not None:
            return DELIMITERS.get(given, given)
        if usual == "\t":
            return usual
        first_line = self._sample.lstrip().partition("\n")[0]
        present = [delimiter for delimiter in DELIMITERS.values() if delimiter in first_line]
        even = [delimiter for delimiter in present if self._is_even(delimiter)]
        delimiter = (even or present or [usual])[0]
        if delimiter != usual:
            name = next(name for name, value in DELIMITERS.items() if value == delimiter)
            logger.info("%s: the columns are separated by %ss (data.delimiter=%s)", self._file, name, name)
        return delimiter

    def _is_even(self, delimiter: str) -> bool:
        """Whether all rows of the sample have the same number of cells."""
        return any(len({len(row) for row in _parse(self._sample, delimiter, quoted)}) == 1 for quoted in (True, False))

    def _quoting(self, delimiter: str) -> tuple[bool, bool]:
        """Whether the file quotes, and whether a backslash escapes quotation marks in it.

        A tab-separated file may contain single quotation marks. Everywhere else they are an error, because rows would
        be merged up to the next mark.
        """
        tab, broken = delimiter == "\t", self._first_broken(_cells(delimiter))
        if broken is not None and not tab and self._first_broken(_cells(delimiter, backslash=True)) is None:
            return True, True
        if broken is None and self._lines_are_even(delimiter):
            # No quotation needs to hold a delimiter or a line break. One that does merges rows.
            broken = self._first_broken(_cells(delimiter, one_line=True))
        if broken is not None and not tab:
            self._refuse(broken)
        return broken is None, False

    def _first_broken(self, cells: re.Pattern[bytes]) -> int | None:
        """Returns the offset of the first cell that the pattern does not match, or None."""
        rest, offset = b"", 0
        with self._open() as stream:
            while block := stream.read(streams.BLOCK_BYTES):
                buffer = rest + block
                match = cells.match(buffer)
                assert match is not None  # the pattern matches nothing at all, too
                rest, offset = buffer[match.end() :], offset + match.end()
                if len(rest) > streams.BLOCK_BYTES:
                    return offset
        return None if cells.fullmatch(rest + b"\n") else offset

    def _lines_are_even(self, delimiter: str) -> bool:
        """Whether without quoting all lines have the same number of cells, and nothing else tells that the file quotes.

        Only a program that quotes writes two quotation marks in a row.
        """
        rest, marks = b"", False
        counts: set[int] = set()
        with self._open() as stream:
            while (block := stream.read(SAMPLE_BYTES)) and len(counts) < 2 and len(rest) < streams.BLOCK_BYTES:
                if b'""' in block:
                    return False
                *lines, rest = (rest + block.replace(b"\r", b"\n")).split(b"\n")
                marks |= b'"' in block
                counts |= {line.count(delimiter.encode()) for line in lines if line.strip()}
        counts |= {rest.count(delimiter.encode())} if rest.strip() else set()
        return marks and len(counts) == 1

    def _refuse(self, offset: int) -> NoReturn:
        """Raises an error that names the row of the cell that begins at ``offset``."""
        line, row = self._position(offset)
        with self._open() as stream:
            stream.read(offset)
            cell = stream.read(60)
        if not cell.startswith(b'"'):
            raise RefusedFileError(
                f"data.path: {self._file} is empty or broken: a row must fit into {streams.BLOCK_BYTES:,} bytes, but "
                f"row {row:,} (line {line:,}) is longer; shorten its text"
            )
        start = cell.decode(errors="ignore").splitlines()[0]
        raise RefusedFileError(
            f"data.path: {self._file}: a quotation mark that opens a cell must close at the end of it, but that in "
            f"row {row:,} (line {line:,}) does not: {start:.40}; close it, or write the mark twice in a quoted cell"
        )

    def _position(self, offset: int) -> tuple[int, int]:
        """Returns the line of an offset, and its row below the header, both from 1."""
        cell, line, row = _cell(self._delimiter), 1, 1
        with self._open() as stream:
            buffer = stream.read(offset)
        for match in cell.finditer(buffer):
            line += match[0].count(b"\n")
            ends = match[0][len(match[0].rstrip(self._delimiter.encode() + b"\r\n")) :]
            row += len(re.findall(rb"[\r\n]+", ends))
        has_header = self._has_header(_parse(self._sample, self._delimiter, quoted=False))
        return line, row - has_header

    def _has_header(self, rows: Sequence[Sequence[str]]) -> bool:
        if self._options.header is not None:
            return self._options.header
        reason = _reason_for_data(rows)
        if reason:
            logger.warning(
                "%s: the first row looks like data (%s), so the columns are called %s; "
                "if it names the columns, give data.header=true",
                self._file,
                reason,
                ", ".join(f"column_{number + 1}" for number in range(len(rows[0]))),
            )
        return not reason


def _reason_for_data(rows: Sequence[Sequence[str]]) -> str:
    """Says why the first of the rows looks like data, not like names of columns; empty if it does not."""
    first = [cell.strip() for cell in rows[0]]
    # pandas numbers columns without names.
    if first == [str(number) for number in range(len(first))]:
        return ""
    for cell in first:
        if _NUMBER.fullmatch(cell):
            return f"it holds the number {cell}"
        if len(cell.split()) > _WORDS_OF_A_TEXT:
            return f"it holds the text {cell[:30]!r}..."
    for index, cell in enumerate(first):
        column = [row[index].strip() for row in rows[1:] if len(row) == len(first)]
        if cell and cell in column and len(set(column)) < len(column):
            return f"{cell!r} comes again in its column"
    return ""


def _parse(sample: str, delimiter: str, quoted: bool, backslash: bool = False) -> list[list[str]]:
    rows: Iterator[list[str]] = csv.reader(
        io.StringIO(sample, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        escapechar="\\" if backslash else None,
        doublequote=not backslash,
    )
    return [row for row in rows if row]


def _cell(delimiter: str) -> re.Pattern[bytes]:
    return re.compile(_pattern(delimiter, one_line=False, backslash=False))


def _cells(delimiter: str, one_line: bool = False, backslash: bool = False) -> re.Pattern[bytes]:
    """Matches cells, each with what ends it, up to the first that opens a quotation and does not end with it.

    Args:
        delimiter: what separates the cells.
        one_line: whether a quoted cell may hold no delimiter and no line break.
        backslash: whether a backslash escapes a quotation mark.

    """
    return re.compile(b"(?:" + _pattern(delimiter, one_line, backslash) + b")*+")


def _pattern(delimiter: str, one_line: bool, backslash: bool) -> bytes:
    end = b"[" + re.escape(delimiter.encode()) + rb"\r\n]"
    content = rb'[^"\\]++|\\.' if backslash else rb'[^"]++|""'
    if one_line:
        content = b'[^"' + end[1:-1] + b']++|""'
    ends = end + b"++"
    plain = b'[^"' + end[1:] + b"[^" + end[1:] + b"*+" + ends
    return b"(?s:" + plain + b"|" + ends + b'|"(?:' + content + b')*+"' + ends + b")"
