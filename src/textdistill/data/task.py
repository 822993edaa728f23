"""A classification task: labelled texts in the splits train, validation and test."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from textdistill.data.checks import check_splits
from textdistill.data.classes import find_classes
from textdistill.data.columns import find_columns
from textdistill.data.hub import read_hub, read_saved, stream_hub
from textdistill.data.in_memory import read_memory
from textdistill.data.readers import FileOptions, read_files
from textdistill.data.source import Columns, RawSplit, SourceSplit, TextSplit
from textdistill.data.splits import Protocol, cut_splits

logger = logging.getLogger(__name__)


# The default number of rows of a real batch in training.
BATCH_ROWS = 32


@dataclass
class DataConfig:
    """The configuration keys ``data.*``.

    Attributes:
        task_name: a built-in task, the id ``user/name`` of a dataset on the hub, or any name together with ``path``.
        path: a file, a list of files, an archive or a folder, read instead of the hub. Formats are csv, tsv, json,
            jsonl and parquet, and folders of texts that are named after their classes.
        header: whether the first row of csv files names the columns. With None it is found out.
        encoding: the encoding of text files, such as cp1252. With None they are UTF-8, or have a byte-order mark.
        delimiter: what separates the columns of csv files: a character, or one of the words comma, tab, semicolon and
            pipe. With None it is found out.
        config_name: the configuration of a dataset on the hub, or of a folder, that has several.
        text_columns: one or two columns with texts. None for those of a built-in task, or to choose them.
        label_column: a column of strings, whole numbers or truth values. None as for ``text_columns``.
        max_length: texts, or pairs of texts, are truncated to this number of tokens.
        protocol: clean, or paper for a comparison with the reference.
        datasets_path: folder of a ``DatasetDict`` that ``save_to_disk`` wrote, used without ``path``. If it does not
            exist, the download from the hub is saved there.
        preprocessed_datasets_path: folder of the token cache. With None the tokens are in temporary files, which the
            end of the process removes.
        train_batch_size: rows of a real batch in training. None for BATCH_ROWS; distillation takes at least one row a
            class.
        valid_batch_size: the most rows of a batch in validation.
        test_batch_size: the most rows of a batch in testing.
        num_proc: processes that prepare a download from the hub. Tokenizers use threads of their own.
        streaming: read a dataset of the hub over the network without storing it, once to check it and, unless the
            token cache holds it, once to tokenise it. ``datasets_path`` is not written.
        force_preprocess: ignore the token cache and write it anew.

    """

    task_name: str = "ag_news"
    path: Any = None  # a string or a list of strings, which Hydra has no type for
    header: bool | None = None
    encoding: str | None = None
    delimiter: str | None = None
    config_name: str | None = None
    text_columns: list[str] | None = None
    label_column: str | None = None
    max_length: int = 128
    protocol: Protocol = Protocol.clean
    datasets_path: str | None = None
    preprocessed_datasets_path: str | None = None
    train_batch_size: int | None = None
    valid_batch_size: int = 64
    test_batch_size: int = 64
    num_proc: int = 1
    streaming: bool = False
    force_preprocess: bool = False

    @property
    def file_options(self) -> FileOptions:
        """How the files at ``path`` are written."""
        return FileOptions(self.header, self.encoding, self.delimiter, self.config_name)

    @property
    def saved_path(self) -> str | None:
        """Where the download is saved: ``datasets_path``, and beside it for a configuration."""
        if self.datasets_path is None or self.config_name is None:
            return self.datasets_path
        return f"{self.datasets_path}_{self.config_name}"

    def check(self, *, in_memory: bool = False) -> None:
        """Raises ValueError for an unknown task or a value out of range."""
        if in_memory and self.path is not None:
            raise ValueError(f"data.path must be null for data in memory, got {self.path}; give one of the two")
        if self.task_name not in TASKS and "/" not in self.task_name and self.path is None and not in_memory:
            raise ValueError(
                f"unknown task {self.task_name!r}; known tasks: {', '.join(TASKS)} "
                "(or a hub id 'user/name', or data.path=). If its data were in memory, give them again from Python"
            )
        paths = [self.path] if self.path is None or isinstance(self.path, str) else self.path
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths if self.path):
            raise ValueError(f"data.path must be a file, a folder or a list of files, got {self.path!r}")
        self.file_options.check()
        minima = {"max_length": 3, "train_batch_size": 1, "valid_batch_size": 1, "test_batch_size": 1, "num_proc": 1}
        for key, minimum in minima.items():
            value = getattr(self, key)
            if value is not None and value < minimum:
                raise ValueError(f"data.{key} must be at least {minimum}, got {value}")


@dataclass(frozen=True)
class BuiltIn:
    """The facts about the data of a built-in task.

    Attributes:
        text_columns: one or two columns with texts.
        class_names: by class index; empty if the label column holds the names.
        hub: the arguments of ``datasets.load_dataset``; empty for a task that is read from local files only.
        test_hidden: whether the test split has no labels, as in GLUE. The validation split is the test split then.
        metric_names: the metrics of the task.

    """

    text_columns: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    test_hidden: bool = False
    metric_names: tuple[str, ...] = ("accuracy",)


_GLUE, _F1 = "nyu-mll/glue", ("accuracy", "f1", "combined")
TASKS = {
    "ag_news": BuiltIn(("text",), ("World", "Sports", "Business", "Sci/Tech"), ("fancyzhx/ag_news",)),
    "sst2": BuiltIn(("sentence",), ("negative", "positive"), (_GLUE, "sst2"), True),
    "qnli": BuiltIn(("question", "sentence"), ("entailment", "not_entailment"), (_GLUE, "qnli"), True),
    "mrpc": BuiltIn(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), (_GLUE, "mrpc"), metric_names=_F1),
    "qqp": BuiltIn(("question1", "question2"), ("not_duplicate", "duplicate"), (_GLUE, "qqp"), True, _F1),
    "mnli": BuiltIn(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), (_GLUE, "mnli"), True),
    "vader_movie": BuiltIn(("text",)),
    "vader_genre": BuiltIn(("text",)),
}


@dataclass(frozen=True)
class TextTask:
    """Labelled texts in three splits.

    Attributes:
        name: the name of the task.
        class_names: C names, by class index.
        text_columns: one or two columns with texts.
        label_column: the column with labels.
        protocol: the protocol that the splits follow.
        splits: "train", "validation" and "test", the split that scores are reported on.
        sources: for each split, in words, which rows of the source it holds.
        fingerprint: SHA-256, in hexadecimal, of the texts, labels and class names, and of the rows of each split.
        metric_names: the metrics of the task.

    """

    name: str
    class_names: tuple[str, ...]
    text_columns: tuple[str, ...]
    label_column: str
    protocol: Protocol
    splits: dict[str, TextSplit]
    sources: dict[str, str]
    fingerprint: str
    metric_names: tuple[str, ...]

    @property
    def num_labels(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)

    def chunks(self) -> Iterator[tuple[str, pa.Table]]:
        """Yields all texts in one pass over the source.

        Yields:
            The name of a split, and the text columns of its next rows, stripped of white space.

        Raises:
            ValueError: the source has changed since the task was loaded.

        """
        for source in {split.source: None for split in self.splits.values()}:
            start = 0
            for chunk in source.chunks():
                stop = start + len(chunk)
                for name, split in self.splits.items():
                    if split.source is source and split.chosen[start:stop].any():
                        yield name, chunk.filter(pa.array(split.chosen[start:stop]))
                start = stop


def load_task(config: DataConfig, seed: int, data: object = None) -> TextTask:
    """Reads the data of a task, checks every row, and splits them by the protocol; see ``Protocol``.

    Args:
        config: the configuration of the data.
        seed: the seed of the run (``base.seed``).
        data: data in memory, as ``read_memory`` takes them; None to read the source of the configuration.

    Raises:
        FileNotFoundError: there is nothing at ``data.path``, or the dataset cannot be fetched from the hub.
        ValueError: the task is unknown, a column is missing, or texts, labels or splits cannot be used.

    """
    config.check(in_memory=data is not None)
    built_in = TASKS.get(config.task_name)
    default = Columns(built_in.text_columns, "label") if built_in else None
    _check_columns(config.text_columns, config.label_column or (default.label if default else None))
    raw_splits = _read(config, data)
    columns = find_columns(raw_splits["train"], config.text_columns, config.label_column, default)
    source_splits = {name: SourceSplit(raw, columns) for name, raw in raw_splits.items()}
    test_source = _test_source(config, source_splits, built_in)
    classes = find_classes(source_splits["train"], built_in.class_names if built_in else ())
    splits, sources = cut_splits(source_splits["train"], test_source, classes.labels, config.protocol, seed)
    check_splits(splits, sources, classes.names)
    return TextTask(
        name=config.task_name,
        class_names=classes.names,
        text_columns=columns.texts,
        label_column=columns.label,
        protocol=Protocol(config.protocol),
        splits=splits,
        sources=sources,
        fingerprint=_fingerprint(classes.names, columns, splits),
        metric_names=built_in.metric_names if built_in else ("accuracy",),
    )


def _fingerprint(class_names: tuple[str, ...], columns: Columns, splits: Mapping[str, TextSplit]) -> str:
    content: list[object] = [class_names, columns.texts]
    for split in splits.values():
        arrays = (split.chosen, split.labels)
        content += [split.source.digests, *(hashlib.sha256(array.data).hexdigest() for array in arrays)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _check_columns(text_columns: Sequence[str] | None, label_column: str | None) -> None:
    """Raises ValueError unless the columns are one or two for texts and another one for labels."""
    if text_columns is not None:
        usable = set(text_columns) - {label_column, "labels"}
        if len(text_columns) not in (1, 2) or len(usable) < len(text_columns):
            raise ValueError(
                "data.text_columns must name one or two different columns, none of them the label column "
                f"{label_column!r} or called 'labels', got {list(text_columns)}"
            )


def _read(config: DataConfig, data: object) -> dict[str, RawSplit]:
    """The splits of the source, called "train", "validation" and "test" as far as they exist."""
    saved_path = config.saved_path
    saved = saved_path is not None and Path(saved_path).exists()
    if config.streaming and (config.path is not None or saved):
        reason = "data.path" if config.path is not None else f"data.datasets_path={saved_path}"
        logger.warning("data.streaming=true has no effect: %s is read from disk, in chunks in any case", reason)
    if data is not None:
        origin = "the data in memory"
        splits = read_memory(data)
    elif config.path is not None:
        origin = f"data.path={config.path}"
        splits = read_files(config.path, config.file_options)
    elif saved_path is not None and saved:
        origin = f"data.datasets_path={saved_path}"
        splits = read_saved(Path(saved_path), origin)
    else:
        origin = f"data.task_name={config.task_name}"
        splits = _read_hub(config)
    if "train" not in splits:
        names = ", ".join(split.name for split in splits.values()) or "none"
        raise ValueError(
            f"{origin} must hold a split called train (such as train.csv), got {names}; rename a file or name it "
            "in data.path"
        )
    return splits


def _read_hub(config: DataConfig) -> dict[str, RawSplit]:
    built_in = TASKS.get(config.task_name)
    arguments = built_in.hub if built_in else (config.task_name,)
    if not arguments:
        raise FileNotFoundError(
            f"task {config.task_name!r} is read from local files: make them with "
            f"`python examples/vader.py --output DIR`, then give data.path=DIR/{config.task_name}"
        )
    if config.config_name is not None:
        if built_in:
            raise ValueError(
                f"data.config_name must be left out for the built-in task {config.task_name}, got {config.config_name}"
            )
        arguments = (*arguments, config.config_name)
    if not config.streaming:
        return read_hub(config.task_name, arguments, config.num_proc, config.saved_path)
    if config.num_proc > 1:
        raise ValueError(
            f"data.num_proc must be 1 with data.streaming=true, which prepares no download, got "
            f"{config.num_proc}; leave one of them out"
        )
    return stream_hub(config.task_name, arguments)


def _test_source(
    config: DataConfig, source_splits: Mapping[str, SourceSplit], built_in: BuiltIn | None
) -> SourceSplit | None:
    """The split of the source that becomes the test split; None to cut it from train."""
    if set(source_splits) == {"train"}:
        if config.protocol == Protocol.paper:
            raise ValueError(
                "data.protocol=paper needs an official validation or test split, got a train split only; "
                "use data.protocol=clean"
            )
        return None
    order = ["test", "validation"] if config.protocol == Protocol.clean else ["validation", "test"]
    if built_in and built_in.test_hidden:
        order = ["validation"]
    candidates = [source_splits[name] for name in order if name in source_splits]
    if not candidates:
        raise ValueError(
            f"task {config.task_name!r} needs a validation split, because the labels of its test split are hidden, "
            f"got {', '.join(source_splits)} only; add the validation split"
        )
    chosen = next((split for split in candidates if split.labelled), None)
    if chosen is None:
        if config.protocol == Protocol.paper or (built_in and built_in.test_hidden):
            return candidates[0]  # reading its labels raises an error that says why
        logger.warning(
            "no row of the %s split has a label in %r, so it is not used, and a tenth of train is the test split",
            candidates[0].name, candidates[0].columns.label,
        )  # fmt: skip
    elif chosen is not candidates[0]:
        logger.warning(
            "no row of the %s split has a label, so the %s split is the test split", candidates[0].name, chosen.name
        )
    return chosen
