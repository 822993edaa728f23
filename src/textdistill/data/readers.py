"""Where official splits come from: local files, a saved ``DatasetDict`` or the hub."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from textdistill.data.source import CHUNK_ROWS, Columns, Scan, SourceSplit

if TYPE_CHECKING:  # over a second to import, and local files do without
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "dev", "validation_matched"), "validation"
)
_BLOCK = 2**24  # bytes of csv and json read at a time; no row may be longer


def read_files(path: Path, columns: Columns) -> dict[str, SourceSplit]:
    """The splits of a folder's files that are called after them, or of one file, which is the train split.

    Raises:
        FileNotFoundError: nothing at ``path``.
        ValueError: a file of another kind, two files of a split, or a broken file.

    """
    return {name: _file_split(name, file, f"data.path={path}", columns) for name, file in _files(path).items()}


def read_saved(folder: str, columns: Columns) -> dict[str, SourceSplit]:
    """The splits of a ``DatasetDict`` saved by ``save_to_disk``.

    Raises:
        ValueError: one split was saved, and not several by name.

    """
    from datasets import DatasetDict, load_from_disk

    found, origin = load_from_disk(folder), f"data.datasets_path={folder}"
    if not isinstance(found, DatasetDict):
        raise ValueError(f"{origin} must be a DatasetDict, saved by save_to_disk, got one split")
    return _dataset_splits(found, origin, columns)


def read_hub(
    name: str, arguments: Sequence[str], columns: Columns, num_proc: int, datasets_path: str | None
) -> dict[str, SourceSplit]:
    """The splits of a hub dataset, downloaded, and saved to ``datasets_path`` if given.

    Args:
        name: ``data.task_name``, for errors.
        arguments: of ``datasets.load_dataset``.
        columns: those to read.
        num_proc: processes that prepare the download.
        datasets_path: new folder, or None.

    Raises:
        FileNotFoundError: the dataset cannot be fetched.

    """
    from datasets import load_dataset

    origin = f"data.task_name={name}"
    with _fetching(origin, arguments):
        splits: DatasetDict = load_dataset(*arguments, num_proc=num_proc if num_proc > 1 else None)
    if datasets_path is not None:
        target = Path(datasets_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            splits.save_to_disk(Path(folder) / "splits")
            if not target.exists():  # another job of a sweep may have been quicker
                os.replace(Path(folder) / "splits", target)
    return _dataset_splits(splits, origin, columns)


def stream_hub(name: str, arguments: Sequence[str], columns: Columns) -> dict[str, SourceSplit]:
    """The splits of a hub dataset, fetched anew by every pass over their rows and never on disk.

    Args:
        name: ``data.task_name``, for errors.
        arguments: of ``datasets.load_dataset``.
        columns: those to read.

    Raises:
        FileNotFoundError: the dataset cannot be fetched, now or while it is read.
        ValueError: its files cannot be streamed.

    """
    from datasets import load_dataset

    origin = f"data.task_name={name}"
    with _fetching(origin, arguments), _streaming(origin):
        splits: IterableDatasetDict = load_dataset(*arguments, streaming=True)
        found = _dataset_splits(splits, origin, columns)

    def fetched(scan: Scan) -> Scan:
        def fetch(columns: Sequence[str]) -> Iterator[pa.Table]:
            with _fetching(origin, arguments), _streaming(origin):
                yield from scan(columns)

        return fetch

    return {split: replace(rows, scan=fetched(rows.scan)) for split, rows in found.items()}


@contextmanager
def _fetching(origin: str, arguments: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"{origin}: cannot fetch {' '.join(arguments)} from the hub ({type(error).__name__}: {error}); "
            "without a network give local files with data.path="
        ) from error


@contextmanager
def _streaming(origin: str) -> Iterator[None]:
    try:
        yield
    except (NotImplementedError, ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"data.streaming must be false for {origin}, got true: its files cannot be streamed, or are empty or "
            f"broken ({type(error).__name__}: {error}); leave it out"
        ) from error


def _dataset_splits(
    splits: Mapping[str, Dataset | IterableDataset], origin: str, columns: Columns
) -> dict[str, SourceSplit]:
    found = {}
    for name, rows in splits.items():
        # Where csv or json is streamed, nothing is known of the columns before the first row.
        column_names: Sequence[str] = rows.column_names or next(
            (t.column_names for t in rows.with_format("arrow").iter(1)), []
        )
        label = (rows.features or {}).get(columns.label)
        class_names = tuple(getattr(label, "names", None) or ())
        found[name] = SourceSplit(name, origin, columns, column_names, class_names, _dataset_scan(rows))
    return found


def _dataset_scan(rows: Dataset | IterableDataset) -> Scan:
    def scan(columns: Sequence[str]) -> Iterator[pa.Table]:
        yield from rows.select_columns(list(columns)).with_format("arrow").iter(CHUNK_ROWS)

    return scan


def _files(path: Path) -> dict[str, Path]:
    """Files by the name of the split they hold."""
    if path.is_file():
        if path.suffix not in _READERS:
            raise ValueError(f"data.path must end in one of {', '.join(_READERS)}, got {path}; convert the file")
        return {"train": path}
    if not path.is_dir():
        raise FileNotFoundError(f"data.path must be a file or a folder, but there is nothing at {path}")
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if file.suffix in _READERS and file.stem in SPLIT_NAMES:
            if file.stem in files:
                raise ValueError(
                    f"data.path must hold one file a split, got {files[file.stem].name} and {file.name} in "
                    f"{path}; remove one"
                )
            files[file.stem] = file
    return files


def _file_split(name: str, file: Path, origin: str, columns: Columns) -> SourceSplit:
    def scan(names: Sequence[str]) -> Iterator[pa.Table]:
        with _reading(file):
            for table in rows(names):
                # Categories, as pandas writes them, are read as the strings they stand for.
                plain = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in table.schema]
                yield table.cast(pa.schema(plain))

    with _reading(file):
        schema, rows = _READERS[file.suffix](file, columns)
        class_names: tuple[str, ...] = ()
        if columns.label in schema.names and b"huggingface" in (schema.metadata or {}):
            from datasets import Features

            label = pa.schema([schema.field(columns.label)], schema.metadata)
            class_names = tuple(getattr(Features.from_arrow_schema(label)[columns.label], "names", None) or ())
    return SourceSplit(name, origin, columns, schema.names, class_names, scan)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, RecursionError) as error:
        raise ValueError(f"data.path: {file} is empty or broken: {error}") from error


# A reader gives the names of all columns, with the types of those that count, and reads the rows.
_Reader = Callable[[Path, Columns], tuple[pa.Schema, Scan]]


def _parquet(file: Path, columns: Columns) -> tuple[pa.Schema, Scan]:
    def scan(names: Sequence[str]) -> Iterator[pa.Table]:
        # Buffered, so that a row group, which may be the whole file, is not read at once.
        with pa.parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as rows:
            for batch in rows.iter_batches(CHUNK_ROWS, columns=list(names)):
                yield pa.Table.from_batches([batch])

    return pa.parquet.read_schema(file), scan


def _csv(file: Path, columns: Columns, delimiter: str = ",") -> tuple[pa.Schema, Scan]:
    def opened(kinds: Mapping[str, pa.DataType], names: Sequence[str] = ()) -> Any:
        return pa.csv.open_csv(
            file,
            read_options=pa.csv.ReadOptions(block_size=_BLOCK),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(column_types=kinds, include_columns=list(names)),
        )

    # Without the types a column of texts such as "1999" would be read as numbers.
    kinds = dict.fromkeys((*columns.texts, columns.label), pa.string())
    schema = opened(kinds).schema
    if columns.label in schema.names:
        # The type of the labels depends on all of them, and on the distinct ones only.
        labels = {label for batch in opened(kinds, [columns.label]) for label in batch[0].unique().to_pylist()}
        distinct = pa.BufferOutputStream()
        pa.csv.write_csv(pa.table({"label": pa.array(sorted(labels), pa.string())}), distinct)
        inferred = pa.csv.read_csv(
            pa.BufferReader(distinct.getvalue()), parse_options=pa.csv.ParseOptions(newlines_in_values=True)
        )
        kinds[columns.label] = inferred.schema.types[0]

    def scan(names: Sequence[str]) -> Iterator[pa.Table]:
        yield from (pa.Table.from_batches([batch]) for batch in opened(kinds, names))

    return schema, scan


def _json(file: Path, columns: Columns) -> tuple[pa.Schema, Scan]:
    with file.open(encoding="utf-8") as text:
        if text.read(1) == "[":  # one array of objects; else an object a line
            return _json_array(file)
    options = pa.json.ReadOptions(block_size=_BLOCK)
    schema = pa.json.open_json(file, read_options=options).schema

    def scan(names: Sequence[str]) -> Iterator[pa.Table]:
        # Types as in the first block, but texts that there look like dates; other columns may change theirs.
        fields = [
            pa.field(n, pa.string()) if pa.types.is_timestamp(schema.field(n).type) else schema.field(n) for n in names
        ]
        parsing = pa.json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore")
        yield from (pa.Table.from_batches([b]) for b in pa.json.open_json(file, options, parsing))

    return schema, scan


def _json_array(file: Path) -> tuple[pa.Schema, Scan]:
    def scan(names: Sequence[str]) -> Iterator[pa.Table]:
        rows: list[dict[str, Any]] = []
        for row in _elements(file):
            rows.append({name: row.get(name) for name in names})
            if len(rows) == CHUNK_ROWS:
                yield pa.Table.from_pylist(rows)
                rows = []
        if rows:
            yield pa.Table.from_pylist(rows)

    return pa.schema([(name, pa.null()) for name in next(_elements(file), {})]), scan


_BETWEEN = re.compile(r"[ \t\n\r]*([\[,\]])[ \t\n\r]*")


def _elements(file: Path) -> Iterator[dict[str, Any]]:
    """The objects in the JSON array of a file, without the whole of it in memory."""
    parse = json.JSONDecoder().raw_decode
    with file.open(encoding="utf-8") as text:
        buffer, end, expected = "", 0, "["
        while True:
            try:
                between = _BETWEEN.match(buffer, end)
                if between is None or between[1] not in expected:
                    raise json.JSONDecodeError(f"Expecting one of '{expected}'", buffer, end)
                after = between.end()
                if between[1] == "]" or (between[1] == "[" and buffer[after : after + 1] == "]"):
                    break
                row, after = parse(buffer, after)
            except json.JSONDecodeError:
                more = "" if len(buffer) - end > _BLOCK else text.read(_BLOCK)
                if not more:
                    raise
                buffer, end = buffer[end:] + more, 0
                continue
            if not isinstance(row, dict):
                raise ValueError(f"the array must hold objects, got {row!r:.50}")
            yield row
            end, expected = after, ",]"
        rest = buffer[after:].removeprefix("]") if between[1] == "[" else buffer[after:]
        if (rest + text.read(_BLOCK)).strip():
            raise ValueError("there is more behind the array")


_READERS: dict[str, _Reader] = {
    ".csv": _csv,
    ".tsv": lambda file, columns: _csv(file, columns, delimiter="\t"),
    ".json": _json,
    ".jsonl": _json,
    ".parquet": _parquet,
}
