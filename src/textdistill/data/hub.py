"""Reads the splits of a dataset on the hub, and of a dataset that ``save_to_disk`` wrote."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from textdistill.data.nested import flat_columns, flatten
from textdistill.data.source import CHUNK_ROWS, RawSplit, Scan
from textdistill.data.split_names import SPLIT_NAMES

if TYPE_CHECKING:  # datasets takes over a second to import, and local files do not need it
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

logger = logging.getLogger(__name__)


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_saved(folder: Path, origin: str) -> dict[str, RawSplit]:
    """Returns the splits that ``save_to_disk`` wrote, by our name. A ``Dataset`` is the train split.

    Args:
        folder: the folder.
        origin: the configuration key that names it, and its value.

    Raises:
        ValueError: the folder is broken.

    """
    from datasets import DatasetDict, load_from_disk

    try:
        splits = load_from_disk(str(folder))
        return dataset_splits(splits if isinstance(splits, DatasetDict) else {"train": splits}, origin)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{origin} is broken: {error}; save the dataset again with save_to_disk") from error


def read_hub(name: str, arguments: Sequence[str], num_proc: int, datasets_path: str | None) -> dict[str, RawSplit]:
    """Downloads a dataset from the hub and returns its splits by our name.

    Args:
        name: ``data.task_name``, for errors.
        arguments: the arguments of ``datasets.load_dataset``.
        num_proc: the number of processes that prepare the download.
        datasets_path: a new folder to save the splits to; None to leave them in the cache of ``datasets``.

    Raises:
        FileNotFoundError: the dataset cannot be fetched.
        ValueError: the configuration is not clear, or the dataset cannot be read.

    """
    from datasets import load_dataset

    origin = f"data.task_name={name}"
    with _fetch_errors(origin, arguments), _load_errors(origin, arguments):
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
    """Returns the splits of a dataset on the hub by our name, without storing them.

    Every pass over the rows fetches them anew.

    Args:
        name: ``data.task_name``, for errors.
        arguments: the arguments of ``datasets.load_dataset``.

    Raises:
        FileNotFoundError: the dataset cannot be fetched, now or while its rows are read.
        ValueError: the configuration is not clear, or the files of the dataset cannot be streamed.

    """
    from datasets import load_dataset

    origin = f"data.task_name={name}"
    with _fetch_errors(origin, arguments), _stream_errors(origin), _load_errors(origin, arguments):
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


class _UnusableDatasetError(ValueError):
    """The message says why a dataset cannot be used."""


@contextmanager
def _load_errors(origin: str, arguments: Sequence[str]) -> Iterator[None]:
    """Turns the errors of ``load_dataset`` about a dataset into one line that says what to do."""
    from datasets import get_dataset_config_names
    from datasets.exceptions import DatasetGenerationError

    try:
        yield
    except ValueError as error:
        if not str(error).startswith(("Config name is missing", "BuilderConfig")):
            raise
        names = get_dataset_config_names(arguments[0])
        given = arguments[1] if len(arguments) > 1 else "none"
        raise _UnusableDatasetError(
            f"data.config_name must name one of the configurations of {origin}, {', '.join(names)}, got {given}; give "
            f"for example data.config_name={names[0]}"
        ) from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise _UnusableDatasetError(
            f"{origin} must hold files of data, but is a Python script, which the package datasets does not run; "
            "choose a copy of the dataset in parquet, csv or JSON, or download its files and give data.path="
        ) from error
    except DatasetGenerationError as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise _UnusableDatasetError(
            f"{origin} must hold files that the package datasets can read: {reason}; download the files and give "
            "data.path="
        ) from error


@contextmanager
def _stream_errors(origin: str) -> Iterator[None]:
    """Turns errors of files that cannot be streamed into one that names ``data.streaming``."""
    try:
        yield
    except _UnusableDatasetError:
        raise
    except (NotImplementedError, ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"data.streaming must be false for {origin}, got true: its files cannot be streamed, or are empty or "
            f"broken ({type(error).__name__}: {error}); leave it out"
        ) from error


def dataset_splits(datasets: Mapping[str, Dataset | IterableDataset], origin: str) -> dict[str, RawSplit]:
    """Returns the splits of datasets by our name, and warns of those that are not used.

    Args:
        datasets: a dataset for each name of a split.
        origin: the configuration key that names the source, and its value.

    Raises:
        ValueError: two datasets are the same split.

    """
    splits: dict[str, RawSplit] = {}
    for name, dataset in datasets.items():
        split = SPLIT_NAMES.get(name)
        if split is None:
            continue
        if split in splits:
            raise ValueError(f"{origin} must hold one {split} split, got {splits[split].name} and {name}; remove one")
        splits[split] = _dataset_split(name, dataset, origin)
    if unused := [name for name in datasets if name not in SPLIT_NAMES]:
        logger.warning("%s: the splits %s are not used", origin, ", ".join(unused))
    return splits


def _dataset_split(name: str, dataset: Dataset | IterableDataset, origin: str) -> RawSplit:
    # A stream of csv or JSON states no column names, so they are read from its first row.
    schema = (
        dataset.features.arrow_schema
        if dataset.features
        else next((table.schema for table in dataset.with_format("arrow").iter(1)), pa.schema([]))
    )
    roots = flat_columns(schema)
    features = (dataset.features or {}).items()
    class_names = {column: tuple(feature.names) for column, feature in features if hasattr(feature, "names")}

    def scan(columns: Sequence[str]) -> Iterator[pa.Table]:
        needed = list(dict.fromkeys(roots[column] for column in columns))
        for table in dataset.select_columns(needed).with_format("arrow").iter(CHUNK_ROWS):
            yield flatten(table).select(list(columns))

    return RawSplit(name, origin, tuple(roots), class_names, scan)
