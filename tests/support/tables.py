"""Small tables of texts on disk, and what a task reads from them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from textdistill.data.task import DataConfig, TextTask

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon"]


def rows(count: int, classes: int = 2, start: int = 0, columns: tuple[str, ...] = ("sentence",)) -> dict:
    texts = {c: [f"{c} {WORDS[i % 5]} {i}" for i in range(start, start + count)] for c in columns}
    return texts | {"label": [i % classes for i in range(count)]}


def save(folder: Path, **splits: dict) -> str:
    folder.mkdir(exist_ok=True)
    for name, table in splits.items():
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    return str(folder)


def own(path: object, **keys: object) -> DataConfig:
    """The configuration of a task that is not built in."""
    return DataConfig(
        **{"task_name": "mine", "path": str(path), "text_columns": ["sentence"], "label_column": "label"} | keys
    )


def texts_of(task: TextTask) -> dict[str, dict[str, list]]:
    """The texts of a task by split and column."""
    found = {split: {column: [] for column in task.text_columns} for split in task.splits}
    for split, chunk in task.chunks():
        for column, texts in chunk.to_pydict().items():
            found[split][column] += texts
    return found


def labelled(task: TextTask) -> dict[str, int]:
    """Maps each text of a task to its class index. The task has one text column."""
    (column,) = task.text_columns
    return {
        text: label
        for split, texts in texts_of(task).items()
        for text, label in zip(texts[column], task.splits[split].labels.tolist(), strict=True)
    }
