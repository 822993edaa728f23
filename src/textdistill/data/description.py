"""Describes the data of a run in a few lines: its splits, its classes, and the lengths of its texts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from textdistill.data.task import TextTask
from textdistill.data.tokenized import TokenizedSplit

SHOWN_CLASSES = 8


def describe(task: TextTask, splits: Mapping[str, TokenizedSplit], max_length: int) -> list[str]:
    """Returns the lines, without an end of line.

    Args:
        task: the texts of the splits.
        splits: their tokens.
        max_length: the number of tokens that texts are cut to (``data.max_length``).

    """
    rows = ", ".join(f"{len(split):,} {name} ({task.sources[name]})" for name, split in splits.items())
    return [f"rows: {rows}", f"classes in train: {_classes(task)}", f"tokens: {_lengths(task, splits, max_length)}"]


def _classes(task: TextTask) -> str:
    """The shares of the classes, cut with a count where they are many."""
    counts = np.bincount(task.splits["train"].labels, minlength=task.num_labels)
    order = np.argsort(-counts, kind="stable")
    shares = [f"{task.class_names[index]} {counts[index] / counts.sum():.1%}".replace("%", " %") for index in order]
    if len(shares) <= SHOWN_CLASSES:
        return ", ".join(shares)
    hidden = len(shares) - SHOWN_CLASSES
    return f"{', '.join(shares[: SHOWN_CLASSES - 1])}, {hidden} others, {shares[-1]}"


def _lengths(task: TextTask, splits: Mapping[str, TokenizedSplit], max_length: int) -> str:
    # With the paper protocol, two names stand for the same split.
    tokens = [splits[name] for name in splits if name != "validation" or task.splits[name] is not task.splits["test"]]
    lengths = np.concatenate([split.lengths for split in tokens])
    median, most = (f"{int(np.percentile(lengths, share, method='higher')):,}" for share in (50, 95))
    cut = sum(int(split.cut.sum()) for split in tokens if split.cut is not None)
    texts = "texts" if len(task.text_columns) == 1 else "pairs of texts"
    share = f"{cut / len(lengths):.1%}".replace("%", " %")
    end = f"{cut:,} of {len(lengths):,} ({share}) are cut at data.max_length={max_length}" if cut else "none is cut"
    return f"half of the {texts} have at most {median}, 95 % have at most {most}; {end}"
