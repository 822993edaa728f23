"""Warnings of data whose scores may mislead."""

import logging

import pytest

from tests.support.tables import own, rows, save
from textdistill.data.splits import Protocol
from textdistill.data.task import load_task


def warnings(caplog: pytest.LogCaptureFixture, path: str, **keys: object) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_task(own(path, **keys), 0)
    return caplog.text


def test_nothing_is_said_of_good_data(tmp_path, caplog):
    assert warnings(caplog, save(tmp_path, train=rows(200), test=rows(40, start=200))) == ""


@pytest.mark.parametrize(("ones", "warned"), [(17, True), (16, False), (18, True)])
def test_a_class_with_over_80_percent_is_warned_of(tmp_path, caplog, ones, warned):
    train = rows(200) | {"label": ([1] * ones + [0] * (20 - ones)) * 10}
    text = warnings(caplog, save(tmp_path, train=train, test=rows(40, start=200)))
    assert (f"{ones / 20:.1%}".replace("%", " %") + " of the training rows are of class '1'" in text) == warned


def test_texts_in_two_splits_are_counted(tmp_path, caplog):
    train, test = rows(200), rows(40, start=200)
    path = save(tmp_path / "a", train=train, test=test | {"sentence": train["sentence"][:7] + test["sentence"][7:]})
    assert "7 of the 40 texts of the test split are also in train or validation" in warnings(caplog, path)
    text = warnings(caplog, path, protocol=Protocol.paper)
    assert "7 of the 40 texts of the test split are also in train (leakage)" in text
    assert "validation split" not in text
    one_file = save(tmp_path / "b", train=rows(100) | {"sentence": ["the same text"] * 100})
    text = warnings(caplog, one_file)
    assert "10 of the 10 texts of the validation split are also in train" in text
    assert "10 of the 10 texts of the test split are also in train or validation" in text


def test_pairs_are_the_same_if_both_texts_are(tmp_path, caplog):
    pairs = ("first", "second")
    train, test = rows(100, columns=pairs), rows(20, start=100, columns=pairs)
    test["first"] = train["first"][:20]
    keys = {"text_columns": list(pairs)}
    assert "leakage" not in warnings(caplog, save(tmp_path, train=train, test=test), **keys)
    test["second"][3] = train["second"][3]
    assert "1 of the 20 texts" in warnings(caplog, save(tmp_path, train=train, test=test), **keys)


def test_a_test_split_may_lack_a_class(tmp_path, caplog):
    train, test = rows(90, classes=3), rows(20, classes=2, start=90)
    path = save(tmp_path, train=train, test=test)
    assert "1 of the 3 classes have no row in the test split (test)" in warnings(caplog, path)
    test["label"] = [2] * 20
    assert "2 of the 3 classes have no row in the test split (test)" in warnings(caplog, save(tmp_path, test=test))


def test_train_may_not_lack_a_class(tmp_path):
    path = save(tmp_path, train=rows(40) | {"label": ["rare"] + ["a", "b", "c"] * 13})
    with pytest.raises(ValueError, match=r"1 of the 4 classes have no row in the train split .* the first is 'rare'"):
        load_task(own(path), 0)
