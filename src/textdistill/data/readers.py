"""Reads the splits of local files: tables of several formats, folders of texts, and saved datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from textdistill.data import streams
from textdistill.data.csv_dialect import CsvOptions
from textdistill.data.csv_files import read_csv
from textdistill.data.files import SplitFiles, find_splits, text_files
from textdistill.data.hub import is_saved, read_saved
from textdistill.data.json_files import read_json
from textdistill.data.nested import flat_columns, flatten
from textdistill.data.source import CHUNK_ROWS, RawSplit, Scan
from textdistill.data.streams import DataFile, RefusedFileError, file_errors, open_utf8

# The columns of texts in folders that are named after their classes.
TEXT_COLUMN, LABEL_COLUMN = "text", "label"


@dataclass(frozen=True)
class FileOptions(CsvOptions):
    """What the configuration says about files.

    Attributes:
        config_name: the configuration to read, if a folder holds several.

    """

    config_name: str | None = None


@dataclass(frozen=True)
class _Table:
    """One file: its columns, the names of integer classes by column, and what reads its rows."""

    column_names: tuple[str, ...]
    class_names: dict[str, tuple[str, ...]]
    scan: Scan


def read_files(path: Path | str | Sequence[str], options: FileOptions | None = None) -> dict[str, RawSplit]:
    """Returns the splits of local files by our name: "train", "validation" and "test", as far as they exist.

    Args:
        path: a file, which is the train split; an archive or a folder, whose files are named after their splits; a
            folder that ``save_to_disk`` wrote; or several files.
        options: how the files are written.

    Raises:
        FileNotFoundError: there is nothing at a path.
        ValueError: the kind of a file is unknown, the splits are not clear, or a file is broken.

    """
    options = options or FileOptions()
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(file) for file in path]
    if len(paths) == 1 and is_saved(paths[0]):
        return read_saved(paths[0], f"data.path={paths[0]}")
    origin = f"data.path={', '.join(map(str, paths))}"
    splits = find_splits(paths, options.config_name)
    return {name: _read_split(files, options, origin) for name, files in splits.items()}


def _read_split(files: SplitFiles, options: FileOptions, origin: str) -> RawSplit:
    if files.class_folders:
        scan = _scan_texts(files.class_folders, options.encoding)
        return RawSplit(files.name, origin, (TEXT_COLUMN, LABEL_COLUMN), {}, scan)
    tables = [_read_table(file, options) for file in files.tables]
    first = tables[0]
    for file, table in zip(files.tables, tables, strict=True):
        if set(table.column_names) != set(first.column_names):
            raise ValueError(
                f"data.path: {file} must have the columns of {files.tables[0]}, {', '.join(first.column_names)}, got "
                f"{', '.join(table.column_names)}; rename the columns, or leave the file out"
            )

    def scan_all(columns: Sequence[str]) -> Iterator[pa.Table]:
        for table in tables:
            yield from table.scan(columns)

    return RawSplit(files.name, origin, first.column_names, first.class_names, scan_all)


def _read_table(file: DataFile, options: FileOptions) -> _Table:
    with file_errors(file):
        if file.suffix == ".parquet":
            table = _parquet(file)
        elif file.suffix in (".csv", ".tsv"):
            names, scan = read_csv(file, options)
            table = _Table(names, {}, scan)
        else:
            names, scan = read_json(file, options.encoding)
            table = _Table(names, {}, scan)

    def scan_with_errors(columns: Sequence[str]) -> Iterator[pa.Table]:
        with file_errors(file):
            yield from table.scan(columns)

    return _Table(table.column_names, table.class_names, scan_with_errors)


def _parquet(file: DataFile) -> _Table:
    if file.compressed:
        raise RefusedFileError(f"data.path: {file} must not be compressed: parquet compresses its columns; unpack it")
    schema = pa.parquet.read_schema(file.path)
    roots = flat_columns(schema)

    def scan(columns: Sequence[str]) -> Iterator[pa.Table]:
        # Without pre_buffer=False a whole row group is read at once, which may be the whole file.
        with pa.parquet.ParquetFile(file.path, pre_buffer=False, buffer_size=2**20) as rows:
            for batch in rows.iter_batches(CHUNK_ROWS, columns=list(dict.fromkeys(roots[name] for name in columns))):
                yield flatten(pa.Table.from_batches([batch])).select(list(columns))

    return _Table(tuple(roots), _stated_class_names(schema), scan)


def _stated_class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Returns the class names that ``datasets`` wrote into the metadata of a parquet file, by column."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    return {column: tuple(f["names"]) for column, f in features.items() if f.get("_type") == "ClassLabel"}


def _scan_texts(class_folders: Sequence[Path], encoding: str | None) -> Scan:
    def rows() -> Iterator[dict[str, str]]:
        for folder in class_folders:
            for file in sorted(text_files(folder), key=str):
                with file_errors(file), open_utf8(file, encoding) as stream:
                    text = stream.read(streams.BLOCK_BYTES + 1)
                    if len(text) > streams.BLOCK_BYTES:
                        raise ValueError(f"a text must not be longer than {streams.BLOCK_BYTES:,} bytes; shorten it")
                    yield {TEXT_COLUMN: text.decode(), LABEL_COLUMN: folder.name}

    def scan(columns: Sequence[str]) -> Iterator[pa.Table]:
        chunk: list[dict[str, str]] = []
        for row in rows():
            chunk.append(row)
            if len(chunk) == CHUNK_ROWS:
                yield pa.Table.from_pylist(chunk).select(list(columns))
                chunk = []
        if chunk:
            yield pa.Table.from_pylist(chunk).select(list(columns))

    return scan
