"""The classes of a task: the labels of train in order, and their names."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from textdistill.data.cells import RowCount
from textdistill.data.source import SourceSplit, whole_number

logger = logging.getLogger(__name__)

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True)
class Classes:
    """The names and the labels of C classes, both by class index. Most labels are their own names."""

    names: tuple[str, ...]
    labels: tuple[str, ...]


def find_classes(train: SourceSplit, built_in_names: Sequence[str]) -> Classes:
    """Returns the classes that the labels of train are.

    Integers are looked up in the class names of the source, or else in those of the built-in task. Other labels are
    names themselves. They are sorted as numbers if all of them are numbers, else as texts.

    Args:
        train: the train split of the source.
        built_in_names: the class names of the built-in task, by class index; empty for another task.

    Raises:
        ValueError: the labels cannot be used, or are fewer than two classes.

    """
    distinct, codes = train.labels()
    key = f"data.label_column: {train.columns.label!r}"
    labels = list(dict.fromkeys(map(whole_number, distinct)))
    if not all(map(_INTEGER.fullmatch, labels)):
        labels = distinct
    if len(labels) < 2:
        raise ValueError(f"{key} must hold two or more classes, got {labels[0]!r} only; add rows of another")
    stated_names = train.class_names or built_in_names
    if stated_names and all(map(_INTEGER.fullmatch, labels)):
        known = {str(index) for index in range(len(stated_names))}
        outside = RowCount.of(np.array([whole_number(label) not in known for label in distinct])[codes])
        if outside.count:
            remedy = "renumber the labels" + ("" if train.class_names else ", or give data.task_name another name")
            raise ValueError(
                f"{key} must hold the integers 0 to {len(stated_names) - 1}, one a class, got "
                f"{', '.join(sorted(labels, key=int)[:20])}: {outside.describe('out of range')}; {remedy}"
            )
        return _named(sorted(labels, key=int), stated_names)
    if set(labels) <= set(stated_names):
        labels = [name for name in stated_names if name in labels]
    elif all(map(_NUMBER.fullmatch, labels)):
        labels = sorted(labels, key=lambda label: (Decimal(label), label))
    else:
        labels = sorted(labels)
    return Classes(tuple(labels), tuple(labels))


def _named(labels: Sequence[str], stated_names: Sequence[str]) -> Classes:
    names = tuple(stated_names[int(label)] for label in labels)
    unused = [name for name in stated_names if name not in names]
    if unused:
        logger.warning(
            "%s of the %d named classes have no row in train and are left out: %s",
            len(unused), len(stated_names), ", ".join(unused[:20]),
        )  # fmt: skip
    return Classes(names, tuple(labels))
