"""Scores by class: figures checked by hand, and what is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.results import distilled, full
from textdistill.reporting.class_view import MAX_MATRIX, ClassRow, view_classes
from textdistill.reporting.rows import MAJORITY_CLASS, report_rows
from textdistill.reporting.tables import comma_separated, markdown
from textdistill.runs.results import ClassScores, MajorityClass, RunResult

MAJORITY = MajorityClass(0, 0.9, {"accuracy": 0.9, "macro_f1": 0.3})


def with_classes(result: RunResult, confusion: list[list[int]], *names: str) -> RunResult:
    return replace(result, classes=ClassScores(list(names), confusion, MAJORITY))


def test_classes_by_hand() -> None:
    """Two learners on nine rows of class a and one of b; class c has no row."""
    result = with_classes(distilled(0.8, 0.6).result, [[12, 4, 2], [1, 1, 0], [0, 0, 0]], "a", "b", "c")
    view = view_classes([result])
    assert view is not None
    a, b, c = view.rows
    assert a == ClassRow("a", 9, 0.9, 12 / 13, 12 / 18, pytest.approx(24 / 31), "b", 4 / 18)
    assert b == ClassRow("b", 1, 0.1, 1 / 5, 0.5, pytest.approx(2 / 7), "a", 0.5)
    assert (c.support, c.precision, c.recall, c.f1, c.taken_for) == (0, 0, None, None, "")
    assert view.matrix == [pytest.approx([12 / 18, 4 / 18, 2 / 18]), [0.5, 0.5, 0], [0, 0, 0]]


def test_matrix_of_many_classes_is_cut() -> None:
    """The classes with the most mistakes stay; the last column sums the others."""
    count = 30
    confusion = [[10 if i == j else int(i >= 14 and j == i - 1) * i for j in range(count)] for i in range(count)]
    view = view_classes([with_classes(distilled(0.5).result, confusion, *map(str, range(count)))])
    assert view is not None
    assert (view.count, len(view.rows)) == (count, count)
    assert view.matrix_names == [str(index) for index in range(count - MAX_MATRIX, count)]
    assert all(sum(row) == pytest.approx(1) for row in view.matrix)
    assert view.matrix[0][-1] == pytest.approx(14 / 24)


def test_results_without_classes_have_no_view() -> None:
    known = with_classes(distilled(0.5).result, [[1, 0], [0, 1]], "a", "b")
    assert view_classes([known, distilled(0.5).result]) is None
    assert view_classes([known, with_classes(distilled(0.5).result, [[1, 0], [0, 1]], "b", "a")]) is None
    assert view_classes([]) is None


def test_majority_class_has_a_row_in_every_table() -> None:
    """One row for all seeds, after full data, without learners; older results have none."""
    stored = [distilled(0.95, seed=1), distilled(0.97, seed=2), full(0.98)]
    beside = [replace(one, result=with_classes(one.result, [[1, 0], [0, 1]], "a", "b")) for one in stored]
    rows = report_rows(beside)
    assert [row.group.method for row in rows] == ["distilled", "full data", MAJORITY_CLASS]
    assert (rows[2].accuracy.mean, rows[2].accuracy.std, rows[2].of_full) == (0.9, None, pytest.approx(0.9 / 0.98))
    assert "| majority class |  |  |  |  |  | 0.9000 | 0.3000 | 91.8% |  |  |  |" in markdown(rows)
    assert ",majority class,,,,,,,test,100,1 2,0.9," in comma_separated(rows)
    assert MAJORITY_CLASS not in markdown(report_rows(stored))
