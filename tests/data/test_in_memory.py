"""Data in memory: every form that is accepted is the task that its file is, and others are refused."""

from collections.abc import Callable
from datetime import date

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.support.tables import rows, save, texts_of
from textdistill.data.in_memory import read_memory
from textdistill.data.task import DataConfig, load_task

TRAIN = {"text": rows(60)["sentence"], "label": ["no", "yes"] * 30}
TEST = {"text": rows(20, start=60)["sentence"], "label": ["no", "yes"] * 10}


def of_rows(table: dict) -> list[dict]:
    return pa.table(table).to_pylist()


def category(table: dict) -> pd.DataFrame:
    frame = pd.DataFrame(table, index=range(100, 100 + len(table["label"])))
    return frame.assign(label=frame["label"].astype("category"))


FORMS: dict[str, Callable[[dict], object]] = {
    "Dataset": datasets.Dataset.from_dict,
    "DataFrame": pd.DataFrame,
    "DataFrame of categories with an index": category,
    "Arrow": pa.table,
    "rows": of_rows,
    "columns": dict,
    "two lists": lambda table: (table["text"], table["label"]),
    "a list of two lists": lambda table: [table["text"], table["label"]],
    "arrays": lambda table: (np.array(table["text"]), np.array(table["label"])),
    "series": lambda table: (pd.Series(table["text"]), pd.Series(table["label"])),
}


def memory(**keys: object) -> DataConfig:
    return DataConfig(**{"task_name": "mine"} | keys)


@pytest.mark.parametrize("form", FORMS)
def test_data_in_memory_are_the_task_that_their_files_are(tmp_path, form):
    files = load_task(memory(path=save(tmp_path, train=TRAIN, test=TEST)), 0)
    task = load_task(memory(), 0, {"train": FORMS[form](TRAIN), "test": FORMS[form](TEST)})
    assert task.fingerprint == files.fingerprint
    assert texts_of(task) == texts_of(files)
    assert task.class_names == ("no", "yes")
    assert task.sources == files.sources
    assert (task.text_columns, task.label_column) == (("text",), "label")


@pytest.mark.parametrize("form", FORMS)
def test_data_without_splits_are_cut_in_three(form):
    task = load_task(memory(), 0, FORMS[form](TRAIN))
    assert [len(split) for split in task.splits.values()] == [48, 6, 6]


def test_a_dataset_dict_keeps_the_names_of_its_classes():
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    named = datasets.Dataset.from_dict(TRAIN | {"label": [0, 1] * 30}, features)
    task = load_task(memory(), 0, datasets.DatasetDict(train=named.select(range(50)), test=named.select(range(50, 60))))
    assert task.class_names == ("bad", "good")
    assert texts_of(task)["test"]["text"] == TRAIN["text"][50:]


def test_rows_may_leave_out_what_others_have():
    table = [{"text": text} | ({"more": 1} if row else {}) for row, text in enumerate(TRAIN["text"])]
    split = read_memory(table)["train"]
    assert list(split.column_names) == ["text", "more"]
    (chunk, *_) = split.scan(["more"])
    assert chunk["more"].to_pylist()[:2] == [None, 1]


@pytest.mark.parametrize(("missing", "first"), [(None, 2), (float("nan"), 2), (pd.NA, 2), (" ", 2)])
def test_missing_labels_are_counted(missing, first):
    labels = pd.Series(TRAIN["label"], dtype=object)
    labels[[first - 1, 7]] = missing
    with pytest.raises(ValueError, match=r"has 2 rows without a label \(the first is row 2\)"):
        load_task(memory(), 0, pd.DataFrame({"text": TRAIN["text"], "label": labels}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            (TRAIN["text"], ["a", 1, *TRAIN["label"][2:]]),
            r"column 'label' of the train split must hold values of one type, got 1 in row 2 after strings; convert",
        ),
        ([{"text": "a", "label": 1}, {"text": 2, "label": 1}], r"column 'text' .* got 2 in row 2 after strings"),
        (
            {"train": pd.DataFrame({"text": ["a", None, 0.5], "label": [0, 1, 1]})},
            r"column 'text' .* got 0\.5 in row 3 after strings",
        ),
        ({"text": ["a", object()], "label": [0, 1]}, r"column 'text' .* got <object object at .* \(object\) in row 2"),
        ((["a", "b", "c"], [0, 1]), r"must have as many values, got 3 in 'text', 2 in 'label'"),
        ([], r"must be a path, a dataset, a data frame, .*got list \[\]"),
        ({}, r"must be a path.*got dict \{\}"),
        (["a", "b"], r"got list \['a', 'b'\]"),
        (("text", "label"), r"got tuple"),
        (7, r"got int 7"),
        ({"test": TRAIN}, r"the data in memory must hold a split called train .*got test"),
    ],
)
def test_data_in_memory_that_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        load_task(memory(), 0, data)


def test_numbers_as_texts_and_dates_as_labels_are_refused():
    with pytest.raises(ValueError, match=r"'text' of the train split must hold strings, got int64"):
        load_task(memory(text_columns=["text"]), 0, TRAIN | {"text": list(range(60))})
    with pytest.raises(ValueError, match=r"'label' .* got dates or times"):
        load_task(memory(), 0, TRAIN | {"label": [date(2020, 1, 1)] * 60})


def test_data_in_memory_and_a_path_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path must be null for data in memory, got x; give one of the two"):
        load_task(memory(path="x"), 0, TRAIN)
    with pytest.raises(ValueError, match=r"unknown task 'mine'; .*were in memory, give them again from Python"):
        load_task(memory(), 0)
