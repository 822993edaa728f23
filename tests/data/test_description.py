"""The lines that describe the data of a run."""

import numpy as np
import pytest

from tests.data.test_tokens import make_tokenizer
from tests.support.tables import own, rows, save
from textdistill.data.description import describe
from textdistill.data.splits import Protocol
from textdistill.data.task import TextTask, load_task
from textdistill.data.tokens import tokenize


def lines(task: TextTask, max_length: int = 16) -> list[str]:
    config = own("x", max_length=max_length)
    return describe(task, tokenize(task, make_tokenizer(model_max_length=64), config), max_length)


def test_rows_classes_and_lengths(tmp_path):
    train, test = rows(200), rows(40, start=200)
    train["label"] = ["good"] * 150 + ["bad"] * 50
    train["sentence"][:20] = [f"{'w ' * 18}{i}" for i in range(20)]
    path = save(tmp_path, train=train, test=test | {"label": ["good", "bad"] * 20})
    # Texts have 3 words and 2 special tokens, and 20 of the 240 have 19 words.
    assert lines(load_task(own(path), 0)) == [
        "rows: 180 train (train (rest)), 20 validation (20 of train), 40 test (test)",
        "classes in train: good 75.0 %, bad 25.0 %",
        "tokens: half of the texts have at most 5, 95 % have at most 16; "
        "20 of 240 (8.3 %) are cut at data.max_length=16",
    ]


@pytest.mark.parametrize(
    ("max_length", "end"), [(5, "none is cut"), (4, "240 of 240 (100.0 %) are cut at data.max_length=4")]
)
def test_a_text_of_exactly_the_most_tokens_is_not_cut(tmp_path, max_length, end):
    path = save(tmp_path, train=rows(200), test=rows(40, start=200))
    assert lines(load_task(own(path), 0), max_length)[2].endswith(end)


def test_pairs_and_the_paper_protocol(tmp_path):
    pairs = ("first", "second")
    path = save(tmp_path, train=rows(80, columns=pairs), test=rows(40, start=80, columns=pairs))
    task = load_task(own(path, text_columns=list(pairs), protocol=Protocol.paper), 0)
    described = lines(task, max_length=8)
    assert described[0] == "rows: 80 train (train), 40 validation (test), 40 test (test)"
    assert described[2].startswith("tokens: half of the pairs of texts have at most 8")
    assert described[2].endswith("120 of 120 (100.0 %) are cut at data.max_length=8")


def test_many_classes_are_cut_with_a_count(tmp_path):
    labels = np.repeat([f"c{index}" for index in range(20)], [40 + index for index in range(20)]).tolist()
    train = rows(len(labels)) | {"label": labels}
    shown = lines(load_task(own(save(tmp_path, train=train)), 0))[1]
    assert shown.startswith("classes in train: c19 5.9 %, c18 5.8 %, ")
    assert shown.endswith(", 12 others, c0 4.0 %")
