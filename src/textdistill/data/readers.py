"""Reads the splits of a source: local files, a saved ``DatasetDict``, or a dataset on the hub."""

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

from textdistill.data.source import CHUNK_ROWS, RawSplit, Scan

if TYPE_CHECKING:  # datasets takes over a second to import, and local files do not need it
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

# Our name of a split by the name in the source. Other splits are ignored.
SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "dev", "validation_matched"), "validation"
)
# Bytes of csv and JSON that are read at a time. A row must fit into them.
BLOCK_BYTES = 2**24


def read_files(path: Path) -> dict[str, RawSplit]:
    """Returns the splits of local files by name.

    Args:
        path: a file, which is the train split, or a folder whose files are named after their splits.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: the kind of a file is unknown, a split has two files, or a file is broken.

    """
    return {name: _file_split(name, file, f"data.path={path}") for name, file in _split_files(path).items()}


def read_saved(folder: str) -> dict[str, RawSplit]:
    """Returns the splits of a ``DatasetDict`` that ``save_to_disk`` wrote, by name.

    Raises:
        ValueError: the folder holds a single split instead.

    """
    from datasets import DatasetDict, load_from_disk

    splits, origin = load_from_disk(folder), f"data.datasets_path={folder}"
    if not isinstance(splits, DatasetDict):
        raise ValueError(f"{origin} must be a DatasetDict, saved by save_to_disk, got one split")
    return dataset_splits(splits, origin)


def read_hub(name: str, arguments: Sequence[str], num_proc: int, datasets_path: str | None) -> dict[str, RawSplit]:
    """Downloads a dataset from the hub and returns its splits by name.

    Args:
        name: ``data.task_name``, for errors.
        arguments: the arguments of ``datasets.load_dataset``.
        num_proc: the number of processes that prepare the download.
        datasets_path: a new folder to save the splits to; None to leave them in the cache of ``datasets``.

    Raises:
        FileNotFoundError: the dataset cannot be fetched.

    """
    from datasets import load_dataset

    origin = f"data.task_name={name}"
    with _fetch_errors(origin, arguments):
        splits: DatasetDict = load_dataset(*arguments, num_proc=num_proc if num_proc > 1 else None)
    if datasets_path is not None:
        target = Path(datasets_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            splits.save_to_disk(Path(folder) / "splits")
            if not target.exists():  # another job of a sweep may have saved the dataset meanwhile
                os.replace(Path(folder) / "splits", target)
    return dataset_splits(splits, origin)


def stream_hub(name: str, arguments: Sequence[str]) -> dict[str, RawSplit]:
    """Returns the splits of a dataset on the hub by name, without storing them.

    Every pass over the rows fetches them anew.

    Args:
        name: ``data.task_name``, for errors.
        arguments: the arguments of ``datasets.load_dataset``.

    Raises:
        FileNotFoundError: the dataset cannot be fetched, now or while its rows are read.
        ValueError: the files of the dataset cannot be streamed.

    """
    from datasets import load_dataset

    origin = f"data.task_name={name}"
    with _fetch_errors(origin, arguments), _stream_errors(origin):
        datasets: IterableDatasetDict = load_dataset(*arguments, streaming=True)
        splits = dataset_splits(datasets, origin)

    def with_errors(scan: Scan) -> Scan:
        def scan_with_errors(columns: Sequence[str]) -> Iterator[pa.Table]:
            with _fetch_errors(origin, arguments), _stream_errors(origin):
                yield from scan(columns)

        return scan_with_errors

    return {split_name: replace(split, scan=with_errors(split.scan)) for split_name, split in splits.items()}


@contextmanager
def _fetch_errors(origin: str, arguments: Sequence[str]) -> Iterator[None]:
    """Turns errors of the network into one that names the dataset and the alternative."""
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"{origin}: cannot fetch {' '.join(arguments)} from the hub ({type(error).__name__}: {error}); "
            "without a network give local files with data.path="
        ) from error


@contextmanager
def _stream_errors(origin: str) -> Iterator[None]:
    """Turns errors of files that cannot be streamed into one that names ``data.streaming``."""
    try:
        yield
    except (NotImplementedError, ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"data.streaming must be false for {origin}, got true: its files cannot be streamed, or are empty or "
            f"broken ({type(error).__name__}: {error}); leave it out"
        ) from error


def dataset_splits(datasets: Mapping[str, Dataset | IterableDataset], origin: str) -> dict[str, RawSplit]:
    """Returns the splits of datasets by name. ``origin`` names their source in errors."""
    splits = {}
    for name, dataset in datasets.items():
        # A stream of csv or JSON states no column names, so they are read from its first row.
        column_names: Sequence[str] = dataset.column_names or next(
            (table.column_names for table in dataset.with_format("arrow").iter(1)), []
        )
        features = (dataset.features or {}).items()
        class_names = {column: tuple(feature.names) for column, feature in features if hasattr(feature, "names")}
        splits[name] = RawSplit(name, origin, column_names, class_names, _dataset_scan(dataset))
    return splits


def _dataset_scan(dataset: Dataset | IterableDataset) -> Scan:
    def scan(columns: Sequence[str]) -> Iterator[pa.Table]:
        yield from dataset.select_columns(list(columns)).with_format("arrow").iter(CHUNK_ROWS)

    return scan


def _split_files(path: Path) -> dict[str, Path]:
    """Returns the file of each split by the name of the split in the source."""
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


def _file_split(name: str, file: Path, origin: str) -> RawSplit:
    def scan(column_names: Sequence[str]) -> Iterator[pa.Table]:
        with _file_errors(file):
            for table in read_rows(column_names):
                # pandas writes a column of categories as a dictionary of values and codes. Read the values.
                fields = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in table.schema]
                yield table.cast(pa.schema(fields))

    with _file_errors(file):
        schema, read_rows = _READERS[file.suffix](file)
        class_names = _stated_class_names(schema)
    return RawSplit(name, origin, schema.names, class_names, scan)


def _stated_class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Returns the class names that ``datasets`` wrote into the metadata of a parquet file, by column."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    return {column: tuple(f["names"]) for column, f in features.items() if f.get("_type") == "ClassLabel"}


@contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    """Turns the parsers' errors into one that names the file."""
    try:
        yield
    except (pa.ArrowException, ValueError, RecursionError) as error:
        raise ValueError(f"data.path: {file} is empty or broken: {error}") from error


# A reader of a file format returns a schema, which names all columns of the file, and a function that reads the rows.
_Reader = Callable[[Path], tuple[pa.Schema, Scan]]


def _parquet(file: Path) -> tuple[pa.Schema, Scan]:
    def scan(column_names: Sequence[str]) -> Iterator[pa.Table]:
        # Without pre_buffer=False a whole row group is read at once, which may be the whole file.
        with pa.parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as rows:
            for batch in rows.iter_batches(CHUNK_ROWS, columns=list(column_names)):
                yield pa.Table.from_batches([batch])

    return pa.parquet.read_schema(file), scan


def _csv(file: Path, delimiter: str = ",") -> tuple[pa.Schema, Scan]:
    def open_csv(column_names: Sequence[str], types: Mapping[str, pa.DataType]) -> Any:
        return pa.csv.open_csv(
            file,
            read_options=pa.csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=list(column_names)),
        )

    def scan(column_names: Sequence[str]) -> Iterator[pa.Table]:
        # The text of a cell is kept. Arrow would infer that a column of texts such as "1999" holds numbers.
        types = dict.fromkeys(column_names, pa.string())
        yield from (pa.Table.from_batches([batch]) for batch in open_csv(column_names, types))

    return open_csv([], {}).schema, scan


def _json(file: Path) -> tuple[pa.Schema, Scan]:
    with file.open(encoding="utf-8") as text:
        if text.read(1) == "[":  # one array of objects; otherwise each line is an object
            return _json_array(file)
    options = pa.json.ReadOptions(block_size=BLOCK_BYTES)
    schema = pa.json.open_json(file, read_options=options).schema

    def scan(column_names: Sequence[str]) -> Iterator[pa.Table]:
        # Arrow infers types from the first block. It takes texts that look like dates for timestamps.
        fields = [
            pa.field(name, pa.string()) if pa.types.is_timestamp(schema.field(name).type) else schema.field(name)
            for name in column_names
        ]
        # The types of other columns may change from block to block, so they are ignored.
        parsing = pa.json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore")
        yield from (pa.Table.from_batches([batch]) for batch in pa.json.open_json(file, options, parsing))

    return schema, scan


def _json_array(file: Path) -> tuple[pa.Schema, Scan]:
    def scan(column_names: Sequence[str]) -> Iterator[pa.Table]:
        rows = []
        for row in _array_objects(file):
            rows.append({name: row.get(name) for name in column_names})
            if len(rows) == CHUNK_ROWS:
                yield pa.Table.from_pylist(rows)
                rows = []
        if rows:
            yield pa.Table.from_pylist(rows)

    return pa.schema([(name, pa.null()) for name in next(_array_objects(file), {})]), scan


_PUNCTUATION = re.compile(r"[ \t\n\r]*([\[,\]])[ \t\n\r]*")


def _array_objects(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of the JSON array in a file, and holds one block of the file in memory."""
    parse = json.JSONDecoder().raw_decode
    with file.open(encoding="utf-8") as text:
        buffer, end, expected = "", 0, "["
        while True:
            try:
                punctuation = _PUNCTUATION.match(buffer, end)
                if punctuation is None or punctuation[1] not in expected:
                    raise json.JSONDecodeError(f"Expecting one of '{expected}'", buffer, end)
                after = punctuation.end()
                if punctuation[1] == "]" or (punctuation[1] == "[" and buffer[after : after + 1] == "]"):
                    break
                row, after = parse(buffer, after)
            except json.JSONDecodeError:
                # The block may end inside an object: parse again with the next block.
                next_block = "" if len(buffer) - end > BLOCK_BYTES else text.read(BLOCK_BYTES)
                if not next_block:
                    raise
                buffer, end = buffer[end:] + next_block, 0
                continue
            if not isinstance(row, dict):
                raise ValueError(f"the array must hold objects, got {row!r:.50}")
            yield row
            end, expected = after, ",]"
        rest = buffer[after:].removeprefix("]") if punctuation[1] == "[" else buffer[after:]
        if (rest + text.read(BLOCK_BYTES)).strip():
            raise ValueError("the file must end after the array, but more text follows")


_READERS: dict[str, _Reader] = {
    ".csv": _csv,
    ".tsv": lambda file: _csv(file, delimiter="\t"),
    ".json": _json,
    ".jsonl": _json,
    ".parquet": _parquet,
}
