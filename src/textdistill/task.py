"""A classification task: labelled texts from the hub or local files, split by protocol, tokenised, batched.

``load_task`` gives the texts, ``tokenize`` their token ids, ``train_batches`` and ``sorted_batches`` the
padded tensors a learner takes. Batches hold texts of similar length: padding costs as much as text does.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from textdistill.seeding import generator

if TYPE_CHECKING:  # over a second to import, and only a run that reads data needs them
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

VALIDATION_ROWS = 1000  # most rows carved from train for validation, where a test split is official
POOL_BATCHES = 100  # batches grouped by length together: more means less padding and a less random epoch
MAX_PADDING = 0.1  # of the tokens of a pool, where its batches also keep the shares of the classes
# Evaluation batches hold at most batch_size * 64 tokens: most texts of the built-in tasks are shorter and
# fill their batches, and a batch of long texts needs no more memory than a full batch of those.
TOKENS_PER_ROW = 64
TOKENIZE_CHUNK = 10_000  # rows a call of the tokenizer
CACHE_VERSION = 1  # raise it whenever tokenize would store something else


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
        preprocessed_datasets_path: folder of the token cache; None keeps none on disk.
        train_batch_size: rows a batch of ``train_batches``.
        valid_batch_size: most rows a batch when validating.
        test_batch_size: most rows a batch when testing.
        num_proc: processes that prepare a hub download (tokenizers run on threads of their own).
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
SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "dev", "validation_matched"), "validation"
)


@dataclass(frozen=True)
class TextTask:
    """Labelled texts in three splits.

    Attributes:
        name: the task's name.
        class_names: C names, by class index.
        text_columns: one or two columns of ``splits`` that hold stripped texts.
        protocol: which protocol made the splits.
        splits: "train", "validation", "test" (the reported rows); columns: the texts and "labels" (0..C-1).
        sources: which rows of which official split each split holds, in words.
        fingerprint: sha256 over the texts, labels and class names of all splits, in hexadecimal.
        metric_names: the metrics the task reports.

    """

    name: str
    class_names: tuple[str, ...]
    text_columns: tuple[str, ...]
    protocol: Protocol
    splits: dict[str, Dataset]
    sources: dict[str, str]
    fingerprint: str
    metric_names: tuple[str, ...]

    @property
    def num_labels(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)


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
    from datasets import Dataset

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
    text_columns, label_column = _columns(config, built_in)
    official = _read(config, text_columns)
    reported = _reported_split(config, official, label_column, built_in)
    class_names, values = _classes(official["train"], label_column, built_in)

    def encode(split: _OfficialSplit) -> pa.Table:
        labels = split.class_indices(label_column, values)
        return pa.table({column: split.texts(column) for column in text_columns} | {"labels": labels})

    train, whole = encode(official["train"]), official["train"].name
    random, tenth = generator(seed, "split"), len(train) // 10
    if reported is None:
        test, train = _carve(train, tenth, random)
        validation, train = _carve(train, tenth, random)
        sources = [f"{whole} (rest)", f"{len(validation):,} of {whole}", f"{len(test):,} of {whole}"]
    elif config.protocol == Protocol.paper:
        validation = test = encode(reported)
        sources = [whole, reported.name, reported.name]
    else:
        test = encode(reported)
        validation, train = _carve(train, min(tenth, VALIDATION_ROWS), random)
        sources = [f"{whole} (rest)", f"{len(validation):,} of {whole}", reported.name]

    tables = {"train": train, "validation": validation, "test": test}
    digest = hashlib.sha256(json.dumps([class_names, text_columns]).encode())
    for (split, table), source in zip(tables.items(), sources, strict=True):
        counts = np.bincount(table["labels"].to_numpy(), minlength=len(class_names))
        if not counts.all():
            raise ValueError(
                f"data: class {class_names[counts.argmin()]!r} has no row in the {split} split ({source}); "
                "every split needs every class: add rows, or leave the class out"
            )
        for column in table.columns:
            digest.update(json.dumps(column.to_pylist()).encode())

    return TextTask(
        name=config.task_name,
        class_names=class_names,
        text_columns=text_columns,
        protocol=Protocol(config.protocol),
        splits={split: Dataset(table) for split, table in tables.items()},
        sources=dict(zip(tables, sources, strict=True)),
        fingerprint=digest.hexdigest(),
        metric_names=built_in.metric_names if built_in else ("accuracy",),
    )


def _columns(config: DataConfig, built_in: BuiltIn | None) -> tuple[tuple[str, ...], str]:
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
    return tuple(text_columns), label_column


def _read(config: DataConfig, text_columns: Sequence[str]) -> dict[str, _OfficialSplit]:
    """The official splits by our names: train, validation, test."""
    from datasets import Dataset, DatasetDict, load_from_disk

    found: Mapping[str, Dataset]
    if config.path is not None:
        where = f"data.path={config.path}"
        found = {name: Dataset(_read_file(file, text_columns)) for name, file in _files(Path(config.path)).items()}
    elif config.datasets_path is not None and Path(config.datasets_path).exists():
        where = f"data.datasets_path={config.datasets_path}"
        found = load_from_disk(config.datasets_path)
        if not isinstance(found, DatasetDict):
            raise ValueError(f"{where} must be a DatasetDict, saved by save_to_disk, got one split")
    else:
        where = f"data.task_name={config.task_name}"
        found = _download(config)

    official: dict[str, _OfficialSplit] = {}
    for name in filter(SPLIT_NAMES.__contains__, found):
        ours = SPLIT_NAMES[name]
        if ours in official:
            raise ValueError(f"{where} must hold one {ours} split, got {official[ours].name} and {name}; remove one")
        if len(found[name]) == 0:
            raise ValueError(f"{where}: the {name} split must not be empty; give it rows or remove it")
        official[ours] = _OfficialSplit(name, found[name])
    if "train" not in official:
        raise ValueError(
            f"{where} must hold a split called train (such as train.csv), got {', '.join(found) or 'none'}"
        )
    return official


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


def _read_file(file: Path, text_columns: Sequence[str]) -> pa.Table:
    try:
        table = _READERS[file.suffix](file, text_columns)
    except (pa.ArrowException, ValueError, RecursionError) as error:
        raise ValueError(f"data.path: {file} is empty or broken: {error}") from error
    # Categories, as pandas writes them, are read as the strings they stand for.
    plain = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in table.schema]
    return table.cast(pa.schema(plain, metadata=table.schema.metadata))


def _download(config: DataConfig) -> dict[str, Dataset]:
    from datasets import load_dataset

    built_in = TASKS.get(config.task_name)
    arguments = built_in.hub if built_in else (config.task_name,)
    if not arguments:
        raise FileNotFoundError(
            f"task {config.task_name!r} is read from local files: make them with "
            f"`python examples/vader.py --output DIR`, then give data.path=DIR/{config.task_name}"
        )
    try:
        splits = load_dataset(*arguments, num_proc=config.num_proc if config.num_proc > 1 else None)
    except OSError as error:
        raise FileNotFoundError(
            f"data.task_name={config.task_name}: cannot fetch {' '.join(arguments)} from the hub "
            f"({type(error).__name__}: {error}); without a network give local files with data.path="
        ) from error
    if config.datasets_path is not None:
        target = Path(config.datasets_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            splits.save_to_disk(Path(folder) / "splits")
            if not target.exists():  # another job of a sweep may have been quicker
                os.replace(Path(folder) / "splits", target)
    return dict(splits)


@dataclass(frozen=True)
class _OfficialSplit:
    """A split as its source has it; ``name`` is the source's."""

    name: str
    rows: Dataset

    def column(self, column: str, key: str) -> pa.ChunkedArray:
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
        if not _is_string(texts.type):
            raise ValueError(f"{key} must hold strings, got {texts.type}; name a column of texts")
        if texts.null_count:
            raise ValueError(f"{key} has {texts.null_count:,} rows without a text; fill or remove them")
        # 64-bit offsets, so that a column of more than 2 GiB may be one array.
        return pc.utf8_trim_whitespace(texts.cast(pa.large_string()))

    def labels(self, column: str) -> pa.ChunkedArray:
        """The label column: integers from 0, or strings."""
        labels = self.column(column, "label_column")
        key = f"data.label_column: {column!r} of the {self.name} split"
        if not (pa.types.is_integer(labels.type) or _is_string(labels.type)):
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


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _classes(train: _OfficialSplit, label_column: str, built_in: BuiltIn | None) -> tuple[tuple[str, ...], list[str]]:
    """Class names, and the labels that stand for them written as strings, both by class index."""
    labels = train.labels(label_column)
    present = sorted(pc.unique(labels).to_pylist())
    key = f"data.label_column: {label_column!r}"
    if len(present) < 2:
        raise ValueError(f"{key} must hold two or more classes, got {present[0]!r} only; add rows of another")
    if _is_string(labels.type):
        if "" in present:
            raise ValueError(f"{key} must not hold empty strings; fill or remove these rows")
        return tuple(present), present
    # The hub's datasets know the names of integer labels: their column is a ClassLabel feature.
    names = getattr(train.rows.features[label_column], "names", None) or (built_in and built_in.class_names)
    names = names or [str(index) for index in range(len(present))]
    if present[-1] >= len(names):
        raise ValueError(
            f"{key} must hold the integers 0 to {len(names) - 1}, one a class, got "
            f"{', '.join(map(str, present[:20]))}; renumber the labels, or write them as strings"
        )
    return tuple(names), [str(index) for index in range(len(names))]


def _reported_split(
    config: DataConfig, official: dict[str, _OfficialSplit], label_column: str, built_in: BuiltIn | None
) -> _OfficialSplit | None:
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

    def labelled(split: _OfficialSplit) -> bool:
        if label_column not in split.rows.column_names:
            return False
        labels = split.column(label_column, "label_column")
        return not labels.null_count and not (pa.types.is_integer(labels.type) and pc.min(labels).as_py() < 0)

    # Where none is labelled, the first is refused with the reason when its labels are read.
    return next(filter(labelled, candidates), candidates[0])


def _carve(table: pa.Table, rows: int, random: torch.Generator) -> tuple[pa.Table, pa.Table]:
    """``rows`` rows drawn in proportion to the classes, at least one of each, and the rest, both in order."""
    labels = table["labels"].to_numpy()
    counts = np.bincount(labels)
    share = counts * rows / len(labels)
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share, kind="stable")[: rows - quota.sum()]] += 1  # largest remainders
    carved = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(counts):
        drawn = torch.randperm(int(count), generator=random).numpy()[: max(quota[label], 1)]
        carved[np.flatnonzero(labels == label)[drawn]] = True
    return table.take(np.flatnonzero(carved)), table.take(np.flatnonzero(~carved))


@dataclass(frozen=True)
class TokenizedSplit:
    """Token ids of N texts, flat: row i is ``ids[offsets[i] : offsets[i + 1]]``.

    Attributes:
        ids: token ids, int32, (tokens,).
        offsets: int64, (N + 1,).
        token_types: segment of every token, uint8, (tokens,); None where the model takes none.
        labels: class indices, int64, (N,).
        pad_token_id: fills ``input_ids`` behind a text.

    """

    ids: np.ndarray
    offsets: np.ndarray
    token_types: np.ndarray | None
    labels: np.ndarray
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every row, special tokens included, (N,)."""
        return np.diff(self.offsets)

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """The rows, padded to the longest of them.

        Args:
            rows: B row indices.

        Returns:
            int64 tensors on the CPU: input_ids, attention_mask and, where the model takes it, token_type_ids,
            each (B, L), and labels (B,).

        """
        rows = np.asarray(rows)
        lengths = self.lengths[rows]
        column = np.arange(lengths.max())
        mask = column < lengths[:, None]
        places = (self.offsets[rows][:, None] + column)[mask]

        def padded(flat: np.ndarray, fill: int) -> torch.Tensor:
            values = np.full(mask.shape, fill, dtype=np.int64)
            values[mask] = flat[places]
            return torch.from_numpy(values)

        batch = {
            "input_ids": padded(self.ids, self.pad_token_id),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        if self.token_types is not None:
            batch["token_type_ids"] = padded(self.token_types, 0)
        return batch | {"labels": torch.from_numpy(self.labels[rows])}


def tokenize(task: TextTask, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> dict[str, TokenizedSplit]:
    """Token ids of every split, from the cache where it has them.

    The name of a cached file is a hash of all that decides its content (texts, tokenizer, max_length,
    versions), so it is never stale. Slow tokenizers cannot be hashed by content and are not cached.

    Args:
        task: the texts.
        tokenizer: the learner's; texts of a pair are joined as it joins pairs.
        config: the data keys.

    Raises:
        ValueError: ``data.max_length`` leaves no room for text or is more than the model takes.

    """
    least = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2) + len(task.text_columns)
    if not least <= config.max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"data.max_length must be from {least} (special tokens and one of each text) to "
            f"{tokenizer.model_max_length} (the tokenizer's model_max_length), got {config.max_length}"
        )
    file = None
    if config.preprocessed_datasets_path is not None and tokenizer.is_fast:
        key = _cache_key(task, tokenizer, config.max_length)
        file = Path(config.preprocessed_datasets_path) / f"{key}.safetensors"
    arrays = _cached(file) if file is not None and not config.force_preprocess else None
    if arrays is None:
        arrays = {}
        for split, texts in task.splits.items():
            for part, array in _token_arrays(task, texts, tokenizer, config.max_length).items():
                arrays[f"{split}.{part}"] = array
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:
                save_file(arrays, Path(folder) / file.name)
                os.replace(Path(folder) / file.name, file)
    return {
        split: TokenizedSplit(
            ids=arrays[f"{split}.ids"],
            offsets=arrays[f"{split}.offsets"],
            token_types=arrays.get(f"{split}.token_types"),
            labels=texts.with_format("arrow")[:]["labels"].to_numpy(),
            pad_token_id=tokenizer.pad_token_id,
        )
        for split, texts in task.splits.items()
    }


def _cache_key(task: TextTask, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    import tokenizers

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["truncation"] = content["padding"] = None  # leftovers of the tokenizer's latest call
    inputs = [tokenizer.model_input_names, tokenizer.truncation_side, max_length]
    versions = [CACHE_VERSION, tokenizers.__version__]
    return hashlib.sha256(json.dumps([task.fingerprint, content, inputs, versions]).encode()).hexdigest()[:32]


def _cached(file: Path) -> dict[str, np.ndarray] | None:
    if not file.exists():
        return None
    try:
        arrays: dict[str, np.ndarray] = load_file(file)
    except SafetensorError as error:
        logger.warning("the token cache %s is broken (%s) and is rebuilt", file, error)
        return None
    return arrays


def _token_arrays(
    task: TextTask, texts: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, np.ndarray]:
    """The arrays of ``TokenizedSplit`` but for the labels."""
    with_types = "token_type_ids" in tokenizer.model_input_names
    ids, token_types, lengths = [], [], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(texts), TOKENIZE_CHUNK):
        rows = texts[start : start + TOKENIZE_CHUNK]
        encoded = tokenizer(
            *(rows[column] for column in task.text_columns),
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=with_types,
        )
        ids.append(np.fromiter(chain.from_iterable(encoded["input_ids"]), dtype=np.int32))
        lengths.append(np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64))
        if with_types:
            token_types.append(np.fromiter(chain.from_iterable(encoded["token_type_ids"]), dtype=np.uint8))
    arrays: dict[str, np.ndarray] = {
        "ids": np.concatenate(ids),
        "offsets": np.cumsum(np.concatenate(lengths)),
    }
    if with_types:
        arrays["token_types"] = np.concatenate(token_types)
    return arrays


def steps_per_epoch(split: TokenizedSplit, batch_size: int) -> int:
    """Batches that ``train_batches`` yields."""
    return max(len(split) // batch_size, 1)


def train_batches(
    split: TokenizedSplit, batch_size: int, seed: int, epoch: int, start: int = 0, stride: int = 1
) -> Iterator[dict[str, torch.Tensor]]:
    """One epoch in random order, in batches of texts of similar length and with the pool's shares of the classes.

    All rows are shuffled and cut into pools of 100 batches; the rows of each class in a pool are ranked by
    length, the pool is sorted by rank relative to the class's size and cut into batches; the batches are
    shuffled. Where that pads more than a tenth of the tokens, because the classes differ in length or are
    many, the pool is sorted by length alone. The last, incomplete batch is dropped, as the reference does; a
    split with fewer rows than ``batch_size`` is one batch.

    Args:
        split: the rows.
        batch_size: B, rows a batch.
        seed: the run's seed.
        epoch: decides the order, together with ``seed``.
        start: batches to leave out at the start of the epoch.
        stride: of the rest, every how many-th to yield.

    """
    random = generator(seed, "order", epoch)
    steps = steps_per_epoch(split, batch_size)
    rows = torch.randperm(len(split), generator=random).numpy()[: steps * batch_size]
    pool = POOL_BATCHES * batch_size
    batches: list[np.ndarray] = []
    for first in range(0, len(rows), pool):
        members = rows[first : first + pool]
        grouped = _cut(members, _ranks_within_class(split, members), batch_size)
        if _padding(split, grouped) > MAX_PADDING:
            grouped = _cut(members, split.lengths[members], batch_size)
        batches += grouped
    for index in torch.randperm(steps, generator=random).tolist()[start::stride]:
        yield split.batch(batches[index])


def _ranks_within_class(split: TokenizedSplit, rows: np.ndarray) -> np.ndarray:
    """Rank by length of each row among those of its class, from 0 to 1."""
    ranks = np.empty(len(rows))
    for label in np.unique(split.labels[rows]):
        (members,) = np.nonzero(split.labels[rows] == label)
        members = members[np.argsort(split.lengths[rows[members]], kind="stable")]
        ranks[members] = (np.arange(len(members)) + 0.5) / len(members)
    return ranks


def _cut(rows: np.ndarray, keys: np.ndarray, batch_size: int) -> list[np.ndarray]:
    ordered = rows[np.argsort(keys, kind="stable")]
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def _padding(split: TokenizedSplit, batches: Sequence[np.ndarray]) -> float:
    tokens = sum(len(rows) * int(split.lengths[rows].max()) for rows in batches)
    return 1 - sum(int(split.lengths[rows].sum()) for rows in batches) / tokens


def sorted_batches(split: TokenizedSplit, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Every row once, sorted by length, at most ``batch_size`` rows and ``batch_size * 64`` tokens a batch.

    The longest come first, so that a batch too large for memory shows at once.

    Args:
        split: the rows.
        batch_size: most rows a batch; a text longer than all the tokens allowed is a batch of its own.

    Yields:
        Row indices (B,) and the batch.

    """
    order = np.argsort(-split.lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(split.lengths[order[start]])
        rows = order[start : start + min(batch_size, max(batch_size * TOKENS_PER_ROW // longest, 1))]
        start += len(rows)
        yield rows, split.batch(rows)


def stratified_sample(labels: np.ndarray, per_class: int, generator: torch.Generator) -> np.ndarray:
    """Rows drawn without replacement, ``per_class`` of every class.

    Args:
        labels: class indices 0..C-1, (N,).
        per_class: rows of each class, at least 1.
        generator: source of the draws.

    Returns:
        Row indices, (per_class * C,); entry i is of class i % C.

    Raises:
        ValueError: a class has fewer rows.

    """
    drawn = []
    for label, count in enumerate(np.bincount(labels)):
        if count < per_class:
            raise ValueError(
                "distilled_data.data_per_label must be at most the training rows of every class, but"
                f" class {label} has {count} rows, fewer than the {per_class} to be drawn of every class"
            )
        order = torch.randperm(int(count), generator=generator).numpy()[:per_class]
        drawn.append(np.flatnonzero(labels == label)[order])
    return np.stack(drawn, axis=1).reshape(-1)
