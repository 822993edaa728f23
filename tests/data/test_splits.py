"""Splits of a task: the rows that each protocol holds out, and the test split of each built-in task."""

import numpy as np
import pytest

from tests.support.tables import own, rows, save, texts_of
from textdistill.data.splits import Protocol
from textdistill.data.task import TASKS, DataConfig, TextTask, load_task


def sentences(task: TextTask, split: str) -> list[str]:
    return texts_of(task)[split]["sentence"]


def test_clean_holds_validation_out_of_train_and_keeps_the_test_split(tmp_path):
    train, validation, test = rows(200), rows(20, start=200), rows(30, start=220)
    path = save(tmp_path, train=train, validation=validation, test=test)
    task = load_task(own(path), seed=1)
    assert sentences(task, "test") == test["sentence"]
    assert set(sentences(task, "validation")) | set(sentences(task, "train")) == set(train["sentence"])
    assert [len(task.splits[split]) for split in ("train", "validation", "test")] == [180, 20, 30]
    assert task.sources == {"train": "train (rest)", "validation": "20 of train", "test": "test"}


def test_validation_is_at_most_1000_rows_and_stratified(tmp_path):
    train = rows(20_000)
    train["label"] = [0] * 15_000 + [1] * 4_993 + [2] * 7
    path = save(tmp_path, train=train, test=rows(30, classes=3))
    labels = load_task(own(path), 0).splits["validation"].labels
    # Exactly 750, 249.65 and 0.35: the largest remainder takes the odd row, and every class has one.
    assert np.bincount(labels).tolist() == [750, 250, 1]


def test_the_seed_and_nothing_else_decides_which_rows_are_held_out(tmp_path):
    path = save(tmp_path, train=rows(200), test=rows(30))
    held_out = [sentences(load_task(own(path), seed), "validation") for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_own_data_with_train_only_are_cut_80_10_10(tmp_path):
    task = load_task(own(save(tmp_path, train=rows(203, classes=4))), 0)
    split_texts = [sentences(task, split) for split in ("train", "validation", "test")]
    assert [len(texts) for texts in split_texts] == [163, 20, 20]
    assert len(set().union(*split_texts)) == 203
    for split in ("validation", "test"):
        assert np.bincount(task.splits[split].labels).tolist() == [5, 5, 5, 5]
    assert task.sources == {"train": "train (rest)", "validation": "20 of train", "test": "20 of train"}


@pytest.mark.parametrize("other", ["validation", "test"])
def test_paper_selects_on_the_test_split_and_trains_on_all_of_train(tmp_path, other):
    path = save(tmp_path, train=rows(200), **{other: rows(20, start=200)})
    task = load_task(own(path, protocol=Protocol.paper), 0)
    assert sentences(task, "validation") == sentences(task, "test") == rows(20, start=200)["sentence"]
    assert len(task.splits["train"]) == 200
    assert task.sources == {"train": "train", "validation": other, "test": other}


@pytest.mark.parametrize(
    ("name", "protocol", "source"),
    [
        ("mrpc", "clean", "test"),
        ("mrpc", "paper", "validation"),
        ("sst2", "clean", "validation"),
        ("sst2", "paper", "validation"),
        ("qnli", "clean", "validation"),
        ("qqp", "clean", "validation"),
        ("mnli", "clean", "validation_matched"),
        ("mnli", "paper", "validation_matched"),
        ("ag_news", "clean", "test"),
    ],
)
def test_test_split_of_built_in_tasks(tmp_path, name, protocol, source):
    built_in = TASKS[name]

    def make(start: int) -> dict:
        return rows(60, len(built_in.class_names), start, built_in.text_columns)

    validation = {"validation_matched": make(60), "validation_mismatched": make(300)}
    path = save(
        tmp_path,
        train=make(0),
        test=make(120),
        **(validation if name == "mnli" else {"validation": make(60)}),
    )
    task = load_task(DataConfig(name, path=path, protocol=Protocol(protocol)), 0)
    assert task.sources["test"] == source
    first = texts_of(task)["test"][built_in.text_columns[0]][0]
    assert first.endswith(" 120" if source == "test" else " 60")
    assert task.class_names == built_in.class_names


def test_mrpc_is_tested_on_validation_where_the_labels_of_test_are_hidden(tmp_path, caplog):
    pairs = TASKS["mrpc"].text_columns
    hidden = rows(20, columns=pairs) | {"label": [-1] * 20}
    path = save(tmp_path, train=rows(60, columns=pairs), validation=rows(20, columns=pairs), test=hidden)
    assert load_task(DataConfig("mrpc", path=path), 0).sources["test"] == "validation"
    assert "no row of the test split has a label, so the validation split is the test split" in caplog.text


@pytest.mark.parametrize("labels", [[None] * 20, [" "] * 20, None])
def test_a_split_without_any_label_is_not_scored_and_said(tmp_path, caplog, labels):
    test = rows(20, start=100)
    test = {"sentence": test["sentence"]} if labels is None else test | {"label": labels}
    path = save(tmp_path, train=rows(60), validation=rows(20, start=60), test=test)
    assert load_task(own(path), 0).sources["test"] == "validation"
    assert "no row of the test split has a label" in caplog.text


@pytest.mark.parametrize("alias", ["dev", "valid"])
def test_other_names_of_validation(tmp_path, alias):
    path = save(tmp_path, train=rows(60), **{alias: rows(20, start=60)})
    assert load_task(own(path), 0).sources["test"] == alias
