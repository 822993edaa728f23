"""Columns that the configuration leaves open: what is chosen, what is said, and where a choice is not clear."""

import json
import logging
from collections.abc import Sequence

import pyarrow as pa
import pytest

from tests.support.tables import own, rows, save
from textdistill.data.columns import find_columns
from textdistill.data.source import Columns, RawSplit
from textdistill.data.task import DataConfig, load_task

COUNT = 40
PROSE = [f"a text of {i} words" for i in range(COUNT)]
OTHER_PROSE = [f"another line, number {i}" for i in range(COUNT)]
LABELS = ["good", "bad"] * (COUNT // 2)
STARS = [1, 2, 3, 4] * (COUNT // 4)
IDS = [f"R-{i:05}" for i in range(COUNT)]
NUMBERS = list(range(COUNT))
DATES = [f"2024-01-{i % 28 + 1:02}" for i in range(COUNT)]
FRACTIONS = [i / 7 for i in range(COUNT)]
CONSTANT = ["the same words"] * COUNT
LINKS = [f"https://example.com/{i}" for i in range(COUNT)]
WORDS = [f"{letter}{other}xyz" for letter in "abcdefgh" for other in "abcde"]
JAPANESE = [f"とても面白い映画{i}" for i in range(COUNT)]


def raw(columns: dict[str, list], class_names: dict[str, tuple[str, ...]] | None = None) -> RawSplit:
    table = pa.table(columns)
    return RawSplit(
        "train", "data.path=x", table.column_names, class_names or {}, lambda names: iter([table.select(names)])
    )


CLEAR = {
    "names": ({"text": PROSE, "label": LABELS}, "text", "label"),
    "reviews": ({"id": IDS, "review_text": PROSE, "stars": STARS}, "review_text", "stars"),
    "case and blanks": ({"Class Index": STARS, "TITLE": PROSE, "Review-Text": PROSE}, "Review-Text", "Class Index"),
    "a title beside the content": ({"label": LABELS, "title": OTHER_PROSE, "content": PROSE}, "content", "label"),
    "label before label_text": ({"text": PROSE, "label_text": LABELS, "label": [0, 1] * 20}, "text", "label"),
    "label wins whatever it holds": ({"text": PROSE, "stars": STARS, "label": CONSTANT}, "text", "label"),
    "the last word": ({"tweet_id": IDS, "airline_sentiment": LABELS, "x_text": PROSE}, "x_text", "airline_sentiment"),
    "by content": ({"a": PROSE, "b": LABELS}, "a", "b"),
    "by content, truth values": ({"a": [True, False] * 20, "b": PROSE}, "b", "a"),
    "ids, dates and links are no texts": (
        {"id": IDS, "day": DATES, "link": LINKS, "n": NUMBERS, "x": FRACTIONS, "words here": PROSE, "kind": LABELS},
        "words here", "kind",
    ),
    "a constant is neither": ({"source": CONSTANT, "a": PROSE, "b": LABELS}, "a", "b"),
    "a name does not make an id a text": ({"review": NUMBERS, "said": PROSE, "label": LABELS}, "said", "label"),
    "a name does not make dates a text": ({"text": DATES, "said": PROSE, "label": LABELS}, "said", "label"),
    "a name does not make fractions labels": ({"text": PROSE, "score": FRACTIONS, "kind": LABELS}, "text", "kind"),
    "a name does not make many values labels": ({"text": PROSE, "topic": WORDS, "kind": LABELS}, "text", "kind"),
    "single words": ({"text": WORDS, "label": LABELS}, "text", "label"),
    "a script without blanks": ({"a": JAPANESE, "b": LABELS}, "a", "b"),
    "pairs by name": ({"premise": PROSE, "hypothesis": OTHER_PROSE, "label": STARS}, "premise hypothesis", "label"),
    "pairs by name, question": ({"idx": NUMBERS, "question": PROSE, "sentence": OTHER_PROSE, "label": STARS},
                                "question sentence", "label"),
    "pairs by content": ({"left": PROSE, "right": OTHER_PROSE, "label": STARS}, "left right", "label"),
    "few texts": ({"text": PROSE[:4], "label": LABELS[:4]}, "text", "label"),
    "a label with gaps": ({"text": PROSE, "sentiment": ["", "good"] * 10 + ["bad"] * 20}, "text", "sentiment"),
}  # fmt: skip


@pytest.mark.parametrize("case", CLEAR)
def test_columns_that_are_clear(case, caplog):
    columns, texts, label = CLEAR[case]
    texts = (texts,) if texts in columns else tuple(texts.split())
    with caplog.at_level(logging.INFO):
        assert find_columns(raw(columns), None, None, None) == Columns(texts, label)
    (message,) = caplog.messages
    assert message.startswith(
        f"columns: texts from {' and '.join(map(repr, texts))}, labels from {label!r}; --text and"
    )


UNCLEAR = {
    "two labels": ({"text": PROSE, "a": LABELS, "b": STARS}, r"data\.label_column \(--label\) must name a column of "
                   r"data\.path=x.*'text' \(a text of 0 words, .*'a' \(good, bad\); 'b' \(1, 2, 3\)"),
    "no label": ({"text": PROSE, "id": IDS}, r"\(--label\) must name .*'id' \(R-00000, R-00001, R-00002\)"),
    "no text": ({"id": IDS, "label": LABELS}, r"data\.text_columns \(--text\) must name .*'label' \(good, bad\)"),
    "three texts": ({"a": PROSE, "b": OTHER_PROSE, "c": JAPANESE, "label": LABELS}, r"\(--text\) must name"),
    "long values": ({"a": [f"{'long ' * 20}{i}" for i in range(COUNT)]}, r"'a' \(long long long long long long…, "),
    "many columns": ({f"c{i}": NUMBERS for i in range(20)}, r"'c11' \(0, 1, 2\); and 8 more columns$"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNCLEAR)
def test_columns_that_are_not_clear(case):
    columns, message = UNCLEAR[case]
    with pytest.raises(ValueError, match=message):
        find_columns(raw(columns), None, None, None)


BLANK = ["", " "] * 20


@pytest.mark.parametrize(
    "columns", [{"text": BLANK}, {"id": NUMBERS, "Texts": BLANK}, {"x": BLANK, "text": ["ok"] * 40}]
)
def test_a_column_called_text_is_meant_whatever_it_holds(columns):
    """An error about its rows then says what is wrong."""
    (name,) = (name for name in columns if name.lower().startswith("text"))
    assert find_columns(raw({**columns, "label": LABELS}), None, None, None) == Columns((name,), "label")


@pytest.mark.parametrize("labels", [["a", 1], [True, "a"], [1, "b", None]])
def test_labels_of_several_types_are_an_error_of_their_row(tmp_path, labels):
    table = [{"text": PROSE[i], "label": labels[i % len(labels)]} for i in range(COUNT)]
    (tmp_path / "train.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"column 'label' of .*, but row 1 holds .* and row 2 .*; convert the values"):
        load_task(DataConfig("mine", path=str(tmp_path)), 0)


def test_a_column_that_is_given_is_taken_and_the_other_is_chosen():
    table = raw({"text": PROSE, "note": OTHER_PROSE, "label": LABELS, "stars": STARS})
    assert find_columns(table, ["note"], None, None) == Columns(("note",), "label")
    assert find_columns(table, None, "stars", None) == Columns(("text",), "stars")
    assert find_columns(table, ["note", "text"], "stars", None) == Columns(("note", "text"), "stars")


def test_class_names_of_the_source_make_a_column_the_label():
    table = {"words": PROSE, "coarse": STARS, "fine": [0, 1] * 20}
    names = {"fine": ("no", "yes")}
    assert find_columns(raw(table, names), None, None, None) == Columns(("words",), "fine")


def test_columns_that_are_given_are_not_looked_at():
    def scan(columns: Sequence[str]) -> None:
        raise AssertionError(columns)

    split = RawSplit("train", "x", ["a", "b"], {}, scan)
    assert find_columns(split, ["a"], "b", None) == Columns(("a",), "b")
    assert find_columns(split, None, None, Columns(("a",), "b")) == Columns(("a",), "b")


def test_columns_of_several_types_are_passed_over(tmp_path):
    others = [None, 1, "x", [1], {"y": None}, 1.5]
    table = [{"said": PROSE[i], "other": others[i % 6], "kind": LABELS[i]} for i in range(COUNT)]
    (tmp_path / "train.json").write_text(json.dumps(table))
    task = load_task(DataConfig("mine", path=str(tmp_path)), 0)
    assert (task.text_columns, task.label_column) == (("said",), "kind")


def test_a_task_in_a_file_needs_no_columns(tmp_path):
    (tmp_path / "reviews.csv").write_text(
        "id,review_text,stars\n" + "".join(f"{i},{PROSE[i]},{STARS[i]}\n" for i in range(COUNT))
    )
    task = load_task(DataConfig("mine", path=str(tmp_path / "reviews.csv")), 0)
    assert (task.text_columns, task.label_column) == (("review_text",), "stars")
    assert task.class_names == ("1", "2", "3", "4")


def test_a_built_in_task_with_other_columns_is_read_and_said(tmp_path, caplog):
    path = save(tmp_path, train=rows(40, columns=("review",)), validation=rows(10, columns=("review",), start=40))
    with caplog.at_level(logging.INFO):
        task = load_task(DataConfig("sst2", path=path), 0)
    assert (task.text_columns, task.class_names) == (("review",), ("negative", "positive"))
    assert "the columns of the task, sentence, label, are not in the source" in caplog.text
    assert "texts from 'review', labels from 'label'" in caplog.text


def test_a_mistyped_column_names_the_nearest(tmp_path):
    path = save(tmp_path, train=rows(40))
    with pytest.raises(ValueError, match=r"no column 'sentense' in the train split; .*did you mean 'sentence'"):
        load_task(own(path, text_columns=["sentense"]), 0)
