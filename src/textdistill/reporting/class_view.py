"""Prepares the scores by class for a page: a row for each class, and the confusion matrix of the most confused ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from textdistill.runs.results import RunResult

# The matrix shows at most this many classes, and the table at most this many rows.
MAX_MATRIX = 16
MAX_ROWS = 500


@dataclass(frozen=True)
class ClassRow:
    """The scores of one class over all learners.

    Attributes:
        name: the name of the class.
        support: the number of its test rows.
        share: its share of the test rows.
        precision: the share of right rows among those predicted as this class; 0 if there are none.
        recall: the share of right rows among those of this class; None if the test split has none.
        f1: the harmonic mean of precision and recall; None if the test split has no row of the class.
        taken_for: the class that its rows are most often taken for by mistake; empty if no row is.
        taken_share: the share of its rows that are.

    """

    name: str
    support: float
    share: float
    precision: float
    recall: float | None
    f1: float | None
    taken_for: str
    taken_share: float


@dataclass(frozen=True)
class ClassView:
    """The scores by class on the test split.

    Attributes:
        count: C, the number of classes.
        rows: the classes, largest first if some are left out; at most MAX_ROWS.
        matrix_names: the classes of the matrix, at most MAX_MATRIX: those with the most mistakes, in the order of the
            classes.
        matrix: the share of the rows of a true class (row) that are predicted as each class (column). If classes are
            left out, the last column is the sum over them.

    """

    count: int
    rows: list[ClassRow]
    matrix_names: list[str]
    matrix: list[list[float]]


def view_classes(results: Sequence[RunResult]) -> ClassView | None:
    """Sums the confusion matrices of results. Returns None unless all of them state the same classes."""
    stated = [result.classes for result in results if result.classes is not None]
    if not stated or len(stated) < len(results) or any(classes.names != stated[0].names for classes in stated):
        return None
    confusion = np.sum([np.array(classes.confusion) for classes in stated], axis=0)
    learners = sum(result.metrics["accuracy"].n for result in results)
    names = stated[0].names
    rows = [_row(names, index, confusion, learners) for index in range(len(names))]
    if len(rows) > MAX_ROWS:
        rows = sorted(rows, key=lambda row: -row.support)[:MAX_ROWS]
    chosen = _most_confused(confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    matrix = shares[np.ix_(chosen, chosen)]
    if len(chosen) < len(names):
        others = shares[chosen].sum(axis=1) - matrix.sum(axis=1)
        matrix = np.column_stack([matrix, others.clip(0)])
    return ClassView(len(names), rows, [names[index] for index in chosen], matrix.tolist())


def _row(names: Sequence[str], index: int, confusion: np.ndarray, learners: int) -> ClassRow:
    of_class, hits = int(confusion[index].sum()), int(confusion[index, index])
    predicted = int(confusion[:, index].sum())
    mistakes = confusion[index].copy()
    mistakes[index] = 0
    taken = int(mistakes.argmax())
    return ClassRow(
        name=names[index],
        support=of_class / learners,
        share=of_class / max(1, int(confusion.sum())),
        precision=hits / max(1, predicted),
        recall=hits / of_class if of_class else None,
        f1=2 * hits / (of_class + predicted) if of_class else None,
        taken_for=names[taken] if mistakes[taken] else "",
        taken_share=int(mistakes[taken]) / max(1, of_class),
    )


def _most_confused(confusion: np.ndarray) -> list[int]:
    """Returns the classes with the most mistakes in their rows and columns, in the order of the classes."""
    mistakes = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * confusion.diagonal()
    return sorted(np.argsort(-mistakes, kind="stable")[:MAX_MATRIX].tolist())
