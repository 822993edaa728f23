"""Cells of label and text columns: what they are read as, and which rows are counted."""

import numpy as np
import pyarrow as pa
import pytest

from textdistill.data.cells import LabelColumn, RowCount, TextColumn


def read_labels(*chunks: pa.Array) -> LabelColumn:
    labels = LabelColumn()
    for chunk in chunks:
        labels.add(pa.chunked_array([chunk]))
    return labels


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([True, False]), ["True", "False"]),
        (pa.array([-1, 1]), ["-1", "1"]),
        (pa.array([3, 1], pa.uint8()), ["3", "1"]),
        (pa.array([1.0, 2.0, -3.0]), ["1", "2", "-3"]),
        (pa.array([1, 2], pa.decimal128(5, 2)), ["1", "2"]),
        (pa.array([" 007\t", "7", "Pos", "pos", "a b"]), ["007", "7", "Pos", "pos", "a b"]),
        (pa.array(["1.0", "0.5", "2020-01-01"], pa.large_string()), ["1.0", "0.5", "2020-01-01"]),
    ],
)
def test_the_text_of_a_label(values, texts):
    labels = read_labels(values)
    assert list(labels.codes_by_label) == texts
    assert labels.codes.tolist() == list(range(len(texts)))
    assert labels.missing.count == labels.fractions.count == 0
    assert len(labels.kinds) == 1


def test_rows_are_counted_from_1_over_all_chunks():
    labels = read_labels(
        pa.array(["a", "b "]), pa.array([None, None], pa.null()), pa.array([" ", None, "\tb", "a"]), pa.array(["a"])
    )
    assert labels.missing == RowCount(4, first=3)
    assert labels.trimmed == RowCount(2, first=2)
    assert labels.codes.tolist() == [0, 1, -1, -1, -1, -1, 1, 0, 0]


def test_numbers_that_are_not_whole_are_no_labels():
    labels = read_labels(pa.array([1.0, float("nan"), 0.5]), pa.array([float("inf")]))
    assert labels.missing == RowCount(1, first=2)
    assert labels.fractions == RowCount(2, first=3)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([0], pa.date32()), "dates or times"),
        (pa.array([0], pa.timestamp("s")), "dates or times"),
        (pa.array([["a"]]), "lists"),
        (pa.array([{"a": 1}]), "dictionaries"),
        (pa.array([b"a"]), "bytes"),
    ],
)
def test_kinds_of_values_that_are_no_labels(values, kind):
    assert read_labels(pa.array([None]), pa.array(["a"]), values).kinds == {"strings": 2, kind: 3}


def test_a_text_of_white_space_is_missing():
    texts = TextColumn()
    for chunk in (["a", " \n"], [None, "b", "\u2003"]):
        texts.add(pa.chunked_array([pa.array(chunk)]))
    assert texts.missing == RowCount(3, first=2)
    assert texts.other_type is None
    texts.add(pa.chunked_array([pa.array([1, 2])]))
    assert texts.other_type == pa.int64()


def test_counts_of_rows_in_words():
    assert RowCount.of(np.array([False, True])).describe("without a label") == "1 row without a label (row 2)"
    many = RowCount.of(np.arange(2000) >= 5)
    assert many.describe("without a label") == "1,995 rows without a label (the first is row 6)"
