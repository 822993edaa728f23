"""Classes of a task: their names, their order, and labels that are refused."""

import logging

import pyarrow as pa
import pytest

from textdistill.data.classes import Classes, find_classes
from textdistill.data.source import Columns, RawSplit, SourceSplit

NAMES = ("World", "Sports", "Business")


def split(labels: list, names: tuple[str, ...] = (), name: str = "train") -> SourceSplit:
    """A split whose rows have these labels."""
    table = pa.table({"text": [f"text {row}" for row in range(len(labels))], "label": labels})
    class_names = {"label": names} if names else {}
    raw = RawSplit(name, "data.path=x", table.column_names, class_names, lambda columns: iter([table.select(columns)]))
    return SourceSplit(raw, Columns(("text",), "label"))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([True, False], ("False", "True")),
        ([1, -1], ("-1", "1")),
        ([3, 1, 2], ("1", "2", "3")),
        ([10, 9, 0], ("0", "9", "10")),
        ([2.0, 1.0], ("1", "2")),
        (["01", "00"], ("00", "01")),
        (["10", "9", "-1.5"], ("-1.5", "9", "10")),
        (["2.0", "1.0", "10"], ("1", "2", "10")),
        (["1.0", "1.5"], ("1.0", "1.5")),
        (["b", "10", "9"], ("10", "9", "b")),
        (["pos", "Pos"], ("Pos", "pos")),
        (["2020-01-02", "2020-01-01"], ("2020-01-01", "2020-01-02")),
    ],
)
def test_labels_are_names_in_the_order_of_numbers_or_texts(labels, names):
    train = split(labels)
    classes = find_classes(train, ())
    assert classes == Classes(names, names)
    indices = train.class_indices(classes.labels)
    assert sorted(indices) == list(range(len(names)))


@pytest.mark.parametrize("stated", ["source", "built in"])
@pytest.mark.parametrize("labels", [[0, 1, 2], ["2", "0", "1"], ["0.0", "1.0", "2.0"]])
def test_integers_are_looked_up_in_the_stated_names(stated, labels):
    train = split(labels, NAMES if stated == "source" else ())
    assert find_classes(train, NAMES if stated == "built in" else ()) == Classes(NAMES, ("0", "1", "2"))


def test_the_names_of_a_built_in_task_keep_their_order():
    assert find_classes(split(["Business", "Sports", "World"]), NAMES).names == NAMES
    assert find_classes(split(["b", "a"]), NAMES).names == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "names", "left_out"),
    [([0, 2], ("World", "Business"), "Sports"), ([1, 2, 1], ("Sports", "Business"), "World")],
)
def test_names_without_rows_are_left_out(caplog, labels, names, left_out):
    with caplog.at_level(logging.WARNING):
        classes = find_classes(split(labels, NAMES), ())
    assert classes == Classes(names, tuple(str(label) for label in sorted(set(labels))))
    assert f"1 of the 3 named classes have no row in train and are left out: {left_out}" in caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3, 1], r"must hold the integers 0 to 2, one a class, got 0, 1, 3: 1 row out of range \(row 2\); renumber"),
        ([0, 1, -1, -1], r"got -1, 0, 1: 2 rows out of range \(the first is row 3\)"),
    ],
)
def test_integers_without_a_name_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        find_classes(split(labels, NAMES), ())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "a"], r"must hold two or more classes, got 'a' only"),
        (["1", "1.0"], r"must hold two or more classes, got '1' only"),
        (["a", "", "b", None, " "], r"has 3 rows without a label \(the first is row 2\); fill or remove them"),
        ([0.5, 1.0], r"must hold classes, but has 1 row with a number that is not whole \(row 1\); round"),
        ([-1, -1], r"of the train split must not hold -1 in every row, which is how GLUE hides"),
        ([["a"], ["b"]], r"must hold strings, whole numbers or truth values, got lists; name a column of classes"),
        ([{"a": 1}, {"a": 2}], r"got dictionaries"),
        (pa.array([1, 2], pa.date32()), r"got dates or times"),
    ],
)
def test_labels_that_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        find_classes(split(labels), ())


def test_labels_that_train_lacks_are_refused_with_their_row():
    with pytest.raises(ValueError, match=r"label 'c' of the test split is none .* a, b: it has 1 row .*\(row 2\); rem"):
        split(["a", "c"], name="test").class_indices(["a", "b"])
    with pytest.raises(ValueError, match=r"it has 2 rows of such a class \(the first is row 3\)"):
        split(["a", "b", "d", "c"], name="test").class_indices(["a", "b"])


def test_trimmed_labels_are_counted(caplog):
    labels = split(["pos", " pos", "neg ", "neg"])
    with caplog.at_level(logging.WARNING):
        assert labels.class_indices(["neg", "pos"]).tolist() == [1, 1, 0, 0]
    assert "'label' of the train split: 2 labels had white space around them" in caplog.text


def test_integers_with_a_decimal_point_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        assert split(["1.0", "2", "1.0"], name="test").class_indices(["1", "2"]).tolist() == [0, 1, 0]
    assert "'label' of the test split: 2 labels such as 1.0 are read as 1" in caplog.text


@pytest.mark.parametrize(
    ("labels", "labelled"),
    [
        (["a", None], True),
        ([None, None], False),
        (["", " "], False),
        ([-1, -1], False),
        (["-1", None], False),
        ([-1, 0], True),
        ([0.5, 0.5], True),
    ],
)
def test_a_split_is_labelled_if_any_row_is(labels, labelled):
    assert split(labels).labelled is labelled
