"""Where labelled texts come from: local files, a saved ``DatasetDict`` or the hub.

A source holds official splits: rows as their authors cut them, with columns of texts and of labels, which are
checked when they are read.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

if TYPE_CHECKING:  # over a second to import, and only a run that reads data needs it
    from datasets import Dataset, DatasetDict

SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "dev", "validation_matched"), "validation"
)


def files(path: Path) -> dict[str, Path]:
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


_BLOCK = 2**26  # bytes; no row may be longer


def _read_csv(file: Path, text_columns: Sequence[str], delimiter: str = ",") -> pa.Table:
    return pa.csv.read_csv(
        file,
        read_options=pa.csv.ReadOptions(block_size=_BLOCK),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        # Without the types a column of texts such as "1999" would be read as numbers.
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(text_columns, pa.string())),
    )


def _read_json(file: Path, text_columns: Sequence[str]) -> pa.Table:
    with file.open(encoding="utf-8") as lines:
        if lines.read(1) == "[":  # one array of objects; else an object a line
            lines.seek(0)
            return pa.Table.from_pylist(json.load(lines))
    return pa.json.read_json(file, read_options=pa.json.ReadOptions(block_size=_BLOCK))


_READERS: dict[str, Callable[[Path, Sequence[str]], pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": lambda file, text_columns: _read_csv(file, text_columns, delimiter="\t"),
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": lambda file, text_columns: pa.parquet.read_table(file),
}


def read_file(file: Path, text_columns: Sequence[str]) -> pa.Table:
    """All columns of a file; those in ``text_columns`` are texts even where they look like numbers."""
    try:
        table = _READERS[file.suffix](file, text_columns)
    except (pa.ArrowException, ValueError, RecursionError) as error:
        raise ValueError(f"data.path: {file} is empty or broken: {error}") from error
    # Categories, as pandas writes them, are read as the strings they stand for.
    plain = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in table.schema]
    return table.cast(pa.schema(plain, metadata=table.schema.metadata))


def download(name: str, arguments: Sequence[str], num_proc: int, datasets_path: str | None) -> DatasetDict:
    """The splits of a hub dataset, also saved to ``datasets_path`` if given; ``name`` is for the error's sake."""
    from datasets import load_dataset

    try:
        splits = load_dataset(*arguments, num_proc=num_proc if num_proc > 1 else None)
    except OSError as error:
        raise FileNotFoundError(
            f"data.task_name={name}: cannot fetch {' '.join(arguments)} from the hub "
            f"({type(error).__name__}: {error}); without a network give local files with data.path="
        ) from error
    if datasets_path is not None:
        target = Path(datasets_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            splits.save_to_disk(Path(folder) / "splits")
            if not target.exists():  # another job of a sweep may have been quicker
                os.replace(Path(folder) / "splits", target)
    return splits


@dataclass(frozen=True)
class OfficialSplit:
    """A split as its source has it; ``name`` is the source's."""

    name: str
    rows: Dataset

    def column(self, column: str, key: str) -> pa.ChunkedArray:
        """A column as it is; ``data.key`` names it."""
        if column not in self.rows.column_names:
            raise ValueError(
                f"data.{key}: there is no column {column!r} in the {self.name} split; "
                f"its columns are {', '.join(self.rows.column_names)}"
            )
        return self.rows.select_columns([column]).with_format("arrow")[:][column]

    def texts(self, column: str) -> pa.ChunkedArray:
        """A column of texts, stripped."""
        texts = self.column(column, "text_columns")
        key = f"data.text_columns: {column!r} of the {self.name} split"
        if not is_string(texts.type):
            raise ValueError(f"{key} must hold strings, got {texts.type}; name a column of texts")
        if texts.null_count:
            raise ValueError(f"{key} has {texts.null_count:,} rows without a text; fill or remove them")
        # 64-bit offsets, so that a column of more than 2 GiB may be one array.
        return pc.utf8_trim_whitespace(texts.cast(pa.large_string()))

    def labels(self, column: str) -> pa.ChunkedArray:
        """The label column: integers from 0, or strings."""
        labels = self.column(column, "label_column")
        key = f"data.label_column: {column!r} of the {self.name} split"
        if not (pa.types.is_integer(labels.type) or is_string(labels.type)):
            raise ValueError(f"{key} must hold integers or strings, got {labels.type}; convert the labels")
        if labels.null_count:
            raise ValueError(f"{key} has {labels.null_count:,} rows without a label; fill or remove them")
        if pa.types.is_integer(labels.type) and (least := pc.min(labels).as_py()) < 0:
            raise ValueError(
                f"{key} must hold labels of at least 0, got {least}, which is how GLUE hides the labels of "
                "its test splits; use a split with labels"
            )
        return labels

    def class_indices(self, column: str, values: list[str]) -> pa.ChunkedArray:
        """Class index of every row, int64; ``values`` are the labels, written as strings, by class index."""
        labels = self.labels(column).cast(pa.string())
        indices = pc.index_in(labels, value_set=pa.array(values))
        if indices.null_count:
            unknown = labels.filter(pc.is_null(indices))[0].as_py()
            raise ValueError(
                f"data.label_column: label {unknown!r} of the {self.name} split is none "
                f"of the labels of train, {', '.join(values[:20])}; remove its rows"
            )
        return indices.cast(pa.int64())


def is_string(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
