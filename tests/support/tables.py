"""Small tables of texts on disk, a tokenizer of a few words, and splits of given lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from textdistill.data.task import DataConfig, TextTask
from textdistill.data.tokens import TokenizedSplit

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon"]
PLAIN_INPUTS = ["input_ids", "attention_mask"]


def make_tokenizer(words: list[str] = WORDS, **options: object) -> PreTrainedTokenizerFast:
    options = {"model_input_names": [*PLAIN_INPUTS, "token_type_ids"]} | options
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*specials, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **options)


def rows(count: int, classes: int = 2, start: int = 0, columns: tuple[str, ...] = ("sentence",)) -> dict:
    texts = {c: [f"{c} {WORDS[i % 5]} {i}" for i in range(start, start + count)] for c in columns}
    return texts | {"label": [i % classes for i in range(count)]}


def save(folder: Path, **splits: dict) -> str:
    folder.mkdir(exist_ok=True)
    for name, table in splits.items():
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    return str(folder)


def own(path: object, **keys: object) -> DataConfig:
    """The configuration of data that are not a built-in task's."""
    return DataConfig(
        **{"task_name": "mine", "path": str(path), "text_columns": ["sentence"], "label_column": "label"} | keys
    )


def texts_of(task: TextTask) -> dict[str, dict[str, list]]:
    """The columns of texts of every split."""
    found = {split: {column: [] for column in task.text_columns} for split in task.splits}
    for split, chunk in task.chunks():
        for column, texts in chunk.to_pydict().items():
            found[split][column] += texts
    return found


def labelled(task: TextTask) -> dict[str, int]:
    """The class index by text, of all splits of a task with one column of texts."""
    (column,) = task.text_columns
    return {
        text: label
        for split, texts in texts_of(task).items()
        for text, label in zip(texts[column], task.splits[split].labels.tolist(), strict=True)
    }


def split_of(lengths: np.ndarray, labels: np.ndarray | None = None) -> TokenizedSplit:
    """Row i holds ``lengths[i]`` times the token i."""
    return TokenizedSplit(
        ids=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        token_types=None,
        labels=np.arange(len(lengths)) if labels is None else labels,
        pad_token_id=0,
    )
