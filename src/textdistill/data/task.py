"""A classification task: labelled texts in three splits, cut by protocol."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from textdistill.core.seeding import generator
from textdistill.data.readers import SPLIT_NAMES, read_files, read_hub, read_saved, stream_hub
from textdistill.data.source import Columns, SourceSplit, TextSplit

logger = logging.getLogger(__name__)

VALIDATION_ROWS = 1000  # most rows held out of train for validation, where a test split is official


class Protocol(StrEnum):
    """Which rows select a checkpoint and which are reported: see ``load_task``."""

    clean = "clean"
    paper = "paper"


@dataclass
class DataConfig:
    """The ``data`` keys of a run.

    Attributes:
        task_name: a built-in task, a hub dataset id ``user/name``, or with ``path`` any name.
        path: file or folder of csv, tsv, json, jsonl or parquet to read instead of the hub.
        text_columns: one or two columns; built-in tasks know theirs.
        label_column: column of integers 0..C-1 or of strings; built-in tasks know theirs.
        max_length: tokens a text, or a pair of texts, is cut to.
        protocol: clean, or paper for comparison with the reference.
        datasets_path: without ``path``, folder of a ``DatasetDict`` saved by ``save_to_disk``: read if it exists,
            else the hub's download is saved there.
        preprocessed_datasets_path: folder of the token cache; with None tokens are in a temporary folder while the
            process lives.
        train_batch_size: rows a batch of ``train_batches``.
        valid_batch_size: most rows a batch when validating.
        test_batch_size: most rows a batch when testing.
        num_proc: processes that prepare a hub download (tokenizers run on threads of their own).
        streaming: read the hub's files over the network, once to check them and once more where the token cache
            does not have them, instead of storing them; also leaves ``datasets_path`` alone.
        force_preprocess: ignore and rewrite the token cache.

    """

    task_name: str = "ag_news"
    path: str | None = None
    text_columns: list[str] | None = None
    label_column: str | None = None
    max_length: int = 128
    protocol: Protocol = Protocol.clean
    datasets_path: str | None = None
    preprocessed_datasets_path: str | None = None
    train_batch_size: int = 32
    valid_batch_size: int = 64
    test_batch_size: int = 64
    num_proc: int = 1
    streaming: bool = False
    force_preprocess: bool = False


@dataclass(frozen=True)
class BuiltIn:
    """What a built-in task knows about its data."""

    text_columns: tuple[str, ...]
    class_names: tuple[str, ...] = ()  # empty: the label column holds the names
    hub: tuple[str, ...] = ()  # arguments of datasets.load_dataset; empty: local files only
    test_hidden: bool = False  # GLUE keeps the labels of the test split: validation is reported
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
        name: the task's name.
        class_names: C names, by class index.
        text_columns: one or two columns of texts.
        protocol: which protocol made the splits.
        splits: "train", "validation", "test" (the reported rows).
        sources: which rows of which official split each split holds, in words.
        fingerprint: sha256 over texts, labels and class names and over which rows each split holds, in hexadecimal.
        metric_names: the metrics the task reports.

    """

    name: str
    class_names: tuple[str, ...]
    text_columns: tuple[str, ...]
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
        """All texts in one pass over every official split: a split's name, and the next of its rows, stripped.

        Raises:
            ValueError: the source changed since the task was loaded.

        """
        for official in {split.source: None for split in self.splits.values()}:
            start = 0
            for chunk in official.chunks():
                stop = start + len(chunk)
                for name, split in self.splits.items():
                    if split.source is official and split.chosen[start:stop].any():
                        yield name, chunk.filter(pa.array(split.chosen[start:stop]))
                start = stop


def load_task(config: DataConfig, seed: int) -> TextTask:
    """Read the data of a task and split them by protocol.

    ``clean``: "test", the reported split, is the official test split where it is labelled, else the official
    validation split; "validation" is a tenth of train, at most 1,000 rows, stratified, drawn by ``seed``.
    Data with a train split only are cut 80/10/10 likewise. An official validation split is never selected on.
    ``paper``, the reference's: "validation" and "test" are both the official validation split (or the
    official test split where there is no other), "train" is all of train.

    Args:
        config: the data keys.
        seed: the run's seed (``base.seed``).

    Raises:
        FileNotFoundError: nothing at ``data.path``, or a hub dataset that cannot be fetched.
        ValueError: an unknown task, a missing column, or texts, labels or splits that cannot be used.

    """
    if config.task_name not in TASKS and "/" not in config.task_name and config.path is None:
        raise ValueError(
            f"unknown task {config.task_name!r}; known tasks: {', '.join(TASKS)} "
            "(or a hub id 'user/name', or data.path=)"
        )
    least_values = {"max_length": 3, "train_batch_size": 1, "valid_batch_size": 1, "test_batch_size": 1}
    for key, least in (least_values | {"num_proc": 1}).items():
        if getattr(config, key) < least:
            raise ValueError(f"data.{key} must be at least {least}, got {getattr(config, key)}")
    built_in = TASKS.get(config.task_name)
    columns = _columns(config, built_in)
    official = _read(config, columns)
    reported = _reported_split(config, official, built_in)
    class_names, values = _classes(official["train"], built_in)

    def whole(split: SourceSplit) -> TextSplit:
        labels = split.class_indices(values)
        split.check_texts()
        return TextSplit(split, np.ones(len(labels), dtype=bool), labels)

    train, name = whole(official["train"]), official["train"].name
    random, tenth = generator(seed, "split"), len(train) // 10
    if reported is None:
        test, train = _hold_out(train, tenth, random)
        validation, train = _hold_out(train, tenth, random)
        sources = [f"{name} (rest)", f"{len(validation):,} of {name}", f"{len(test):,} of {name}"]
    elif config.protocol == Protocol.paper:
        validation = test = whole(reported)
        sources = [name, reported.name, reported.name]
    else:
        test = whole(reported)
        validation, train = _hold_out(train, min(tenth, VALIDATION_ROWS), random)
        sources = [f"{name} (rest)", f"{len(validation):,} of {name}", reported.name]

    splits = {"train": train, "validation": validation, "test": test}
    content: list[object] = [class_names, columns.texts]
    for (split, rows), source in zip(splits.items(), sources, strict=True):
        counts = np.bincount(rows.labels, minlength=len(class_names))
        if not counts.all():
            raise ValueError(
                f"data: class {class_names[counts.argmin()]!r} has no row in the {split} split ({source}); "
                "every split needs every class: add rows, or leave the class out"
            )
        content += [rows.source.digests, *(hashlib.sha256(a.data).hexdigest() for a in (rows.chosen, rows.labels))]

    return TextTask(
        name=config.task_name,
        class_names=class_names,
        text_columns=columns.texts,
        protocol=Protocol(config.protocol),
        splits=splits,
        sources=dict(zip(splits, sources, strict=True)),
        fingerprint=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        metric_names=built_in.metric_names if built_in else ("accuracy",),
    )


def _columns(config: DataConfig, built_in: BuiltIn | None) -> Columns:
    """Text columns and label column: the given ones, else the built-in task's."""
    text_columns: Sequence[str] | None = config.text_columns
    label_column = config.label_column
    if built_in:
        text_columns = built_in.text_columns if text_columns is None else text_columns
        label_column = label_column or "label"
    if text_columns is None or label_column is None:
        raise ValueError(
            f"data.text_columns and data.label_column must be given, as task {config.task_name!r} is not "
            "built in; for example data.text_columns=[text] data.label_column=label"
        )
    usable = set(text_columns) - {label_column, "labels"}
    if len(text_columns) not in (1, 2) or len(usable) < len(text_columns):
        raise ValueError(
            "data.text_columns must name one or two different columns, none of them the label column "
            f"{label_column!r} or called 'labels', got {list(text_columns)}"
        )
    return Columns(tuple(text_columns), label_column)


def _read(config: DataConfig, columns: Columns) -> dict[str, SourceSplit]:
    """The official splits by our names: train, validation, test."""
    saved = config.datasets_path is not None and Path(config.datasets_path).exists()
    if config.streaming and (config.path is not None or saved):
        reason = "data.path" if config.path is not None else f"data.datasets_path={config.datasets_path}"
        logger.warning("data.streaming=true has no effect: %s is there, and is read chunk by chunk anyway", reason)
    if config.path is not None:
        origin = f"data.path={config.path}"
        found = read_files(Path(config.path), columns)
    elif config.datasets_path is not None and saved:
        origin = f"data.datasets_path={config.datasets_path}"
        found = read_saved(config.datasets_path, columns)
    else:
        origin = f"data.task_name={config.task_name}"
        built_in = TASKS.get(config.task_name)
        arguments = built_in.hub if built_in else (config.task_name,)
        if not arguments:
            raise FileNotFoundError(
                f"task {config.task_name!r} is read from local files: make them with "
                f"`python examples/vader.py --output DIR`, then give data.path=DIR/{config.task_name}"
            )
        if config.streaming:
            if config.num_proc > 1:
                raise ValueError(
                    f"data.num_proc must be 1 with data.streaming=true, which prepares no download, got "
                    f"{config.num_proc}; leave one of them out"
                )
            found = stream_hub(config.task_name, arguments, columns)
        else:
            found = read_hub(config.task_name, arguments, columns, config.num_proc, config.datasets_path)

    official: dict[str, SourceSplit] = {}
    for name in filter(SPLIT_NAMES.__contains__, found):
        ours = SPLIT_NAMES[name]
        if ours in official:
            raise ValueError(f"{origin} must hold one {ours} split, got {official[ours].name} and {name}; remove one")
        official[ours] = found[name]
    if "train" not in official:
        raise ValueError(
            f"{origin} must hold a split called train (such as train.csv), got {', '.join(found) or 'none'}"
        )
    return official


def _classes(train: SourceSplit, built_in: BuiltIn | None) -> tuple[tuple[str, ...], list[str]]:
    """Class names, and the labels that stand for them written as strings, both by class index."""
    present = sorted(train.labels()[0])
    key = f"data.label_column: {train.columns.label!r}"
    if len(present) < 2:
        raise ValueError(f"{key} must hold two or more classes, got {present[0]!r} only; add rows of another")
    if isinstance(present[0], str):
        if "" in present:
            raise ValueError(f"{key} must not hold empty strings; fill or remove these rows")
        return tuple(present), present
    # The hub's datasets know the names of integer labels.
    names = train.class_names or (built_in and built_in.class_names) or [str(index) for index in range(len(present))]
    if present[-1] >= len(names):
        raise ValueError(
            f"{key} must hold the integers 0 to {len(names) - 1}, one a class, got "
            f"{', '.join(map(str, present[:20]))}; renumber the labels, or write them as strings"
        )
    return tuple(names), [str(index) for index in range(len(names))]


def _reported_split(
    config: DataConfig, official: dict[str, SourceSplit], built_in: BuiltIn | None
) -> SourceSplit | None:
    """The official split whose rows are reported, or None where train must be cut in three."""
    if set(official) == {"train"}:
        if config.protocol == Protocol.paper:
            raise ValueError(
                "data.protocol=paper needs an official validation or test split, got a train split only; "
                "use data.protocol=clean"
            )
        return None
    order = ["test", "validation"] if config.protocol == Protocol.clean else ["validation", "test"]
    if built_in and built_in.test_hidden:
        order = ["validation"]
    candidates = [official[split] for split in order if split in official]
    if not candidates:
        raise ValueError(
            f"task {config.task_name!r} reports its validation split, got {', '.join(official)} only; "
            "add the validation split"
        )

    # Where none is labelled, the first is refused with the reason when its labels are read.
    return next((split for split in candidates if split.labelled), candidates[0])


def _hold_out(split: TextSplit, rows: int, random: torch.Generator) -> tuple[TextSplit, TextSplit]:
    """``rows`` rows drawn in proportion to the classes, at least one of each, and the rest, both in order."""
    labels = split.labels
    counts = np.bincount(labels)
    share = counts * rows / len(labels)
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share, kind="stable")[: rows - quota.sum()]] += 1  # largest remainders
    held_out = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(counts):
        drawn = torch.randperm(int(count), generator=random).numpy()[: max(quota[label], 1)]
        held_out[np.flatnonzero(labels == label)[drawn]] = True

    def part(mask: np.ndarray) -> TextSplit:
        chosen = split.chosen.copy()
        chosen[split.chosen] = mask
        return TextSplit(split.source, chosen, labels[mask])

    return part(held_out), part(~held_out)
