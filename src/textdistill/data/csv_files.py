"""Reads csv and tsv files. All cells are strings: the text of a label is its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.csv

from textdistill.data import streams
from textdistill.data.csv_dialect import CsvOptions, find_dialect
from textdistill.data.source import Scan
from textdistill.data.streams import DataFile, open_utf8


def read_csv(file: DataFile, options: CsvOptions) -> tuple[tuple[str, ...], Scan]:
    """Returns the column names of a csv or tsv file, and what reads its rows.

    Raises:
        ValueError: the file is empty, broken or ambiguous; see ``find_dialect``.

    """
    dialect = find_dialect(file, options)

    def scan(columns: Sequence[str]) -> Iterator[pa.Table]:
        with open_utf8(file, options.encoding) as stream:
            batches = pa.csv.open_csv(
                stream,
                pa.csv.ReadOptions(
                    block_size=streams.BLOCK_BYTES,
                    column_names=dialect.column_names,
                    skip_rows_after_names=dialect.rows_before_data,
                ),
                pa.csv.ParseOptions(
                    delimiter=dialect.delimiter,
                    quote_char='"' if dialect.quoted else False,
                    double_quote=not dialect.backslash,
                    escape_char="\\" if dialect.backslash else False,
                    newlines_in_values=dialect.quoted,
                ),
                # Arrow would infer that a column of texts such as "1999" holds numbers.
                pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns)),
            )
            yield from (pa.Table.from_batches([batch]) for batch in batches)

    return dialect.column_names, scan
