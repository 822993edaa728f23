"""Predicts the texts of files: which column, which rows, and what is written."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.commands.test_predict import stating
from tests.support.runs import our_warnings
from tests.support.words import CLASS_NAMES, toy_rows
from textdistill.commands import predicted_files
from textdistill.commands.predict import Classifier, load_classifier, predict
from textdistill.commands.predicted_files import TextTable, write_predictions

TEXTS = [text for text, _ in toy_rows(10, seed=8)]
PROBABILITIES = [f"p_{name}" for name in CLASS_NAMES]


@pytest.fixture(scope="module")
def classifier(distilled_dir: Path) -> Classifier:
    return load_classifier(distilled_dir)


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def table_of(path: Path, *columns: str, made_for: tuple[str, ...] = ()) -> TextTable:
    return TextTable.of_file(path, columns or None, made_for)


@pytest.mark.parametrize("chunk_rows", [1, 7, 8192])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_file_keeps_rows_and_columns(
    suffix: str,
    chunk_rows: int,
    classifier: Classifier,
    distilled_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predicted_files, "CHUNK_ROWS", chunk_rows)
    numbers = [f"{number:03}" for number in range(len(TEXTS))]
    file = write_csv(tmp_path / "in.csv", ("id", "body", "note"), zip(numbers, TEXTS, ["", "é, \n'"] * 15, strict=True))
    output = tmp_path / "new" / f"out{suffix}"
    write_predictions(classifier, table_of(file, "body"), output)
    if suffix == ".csv":
        with output.open(newline="") as opened:
            rows: list[dict[str, Any]] = list(csv.DictReader(opened))
    else:
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert list(rows[0]) == ["id", "body", "note", "prediction", "probability", *PROBABILITIES]
    assert [(row["id"], row["body"], row["note"]) for row in rows] == list(
        zip(numbers, TEXTS, ["", "é, \n'"] * 15, strict=True)
    )
    expected = predict(distilled_dir, TEXTS)
    assert [row["prediction"] for row in rows] == expected.labels
    for row, probabilities in zip(rows, expected.probabilities.tolist(), strict=True):
        assert [float(row[name]) for name in PROBABILITIES] == pytest.approx(probabilities, abs=1e-6)
        assert float(row["probability"]) == max(float(row[name]) for name in PROBABILITIES)
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_values_that_json_does_not_know_become_strings(classifier: Classifier, tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": TEXTS[:2], "day": [date(2026, 1, 2), None], "stars": [4.5, 1.0]})
    frame.to_parquet(tmp_path / "in.parquet")
    write_predictions(classifier, table_of(tmp_path / "in.parquet", "text"), tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["day"], row["stars"]) for row in rows] == [("2026-01-02", 4.5), (None, 1.0)]


# --- Which column


def test_columns_of_the_set_are_the_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    file = write_csv(tmp_path / "in.csv", ("title", "body"), [("a", "b")])
    assert table_of(file, made_for=("body",)).text_columns == ("body",)
    assert table_of(file, made_for=("body", "title")).text_columns == ("body", "title")
    assert table_of(file, "title", made_for=("body",)).text_columns == ("title",)
    assert f"texts: body of {file}; --text names another column" in caplog.messages
    reviews = write_csv(tmp_path / "reviews.csv", ("id", "review_text"), [(1, "a long walk"), (2, "a short one")])
    assert table_of(reviews, made_for=("body",)).text_columns == ("review_text",)
    only = write_csv(tmp_path / "only.csv", ("anything",), [("a",)])
    assert table_of(only, made_for=("body",)).text_columns == ("anything",)


@pytest.mark.parametrize(
    ("columns", "made_for", "message"),
    [
        ((), (), "--text must name the column .* the columns are 'title' \\(a\\); 'body' \\(b\\)"),
        ((), ("review",), "--text must name the column"),
        (("bodi",), ("body",), "no column 'bodi' in .*; its columns are title, body"),
        (("body", "body"), (), "two different ones, got body, body"),
    ],
)
def test_columns_that_are_unclear(
    columns: tuple[str, ...], made_for: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    file = write_csv(tmp_path / "in.csv", ("title", "body"), [("a", "b")])
    with pytest.raises(ValueError, match=message):
        table_of(file, *columns, made_for=made_for)


def test_pairs_are_two_columns(distilled_dir: Path, classifier: Classifier, tmp_path: Path) -> None:
    pairs = list(zip(TEXTS[:4], TEXTS[4:8], strict=True))
    file = write_csv(tmp_path / "in.csv", ("premise", "hypothesis"), pairs)
    made_for_pairs = load_classifier(stating(distilled_dir, tmp_path / "set", text_columns=["premise", "hypothesis"]))
    write_predictions(made_for_pairs, table_of(file, made_for=made_for_pairs.text_columns), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["prediction"] for row in rows] == predict(tmp_path / "set", pairs).labels
    with pytest.raises(ValueError, match="was made for single texts"):
        write_predictions(classifier, table_of(file, "premise", "hypothesis"), tmp_path / "other.csv")
    assert not (tmp_path / "other.csv").exists()


# --- What is refused before anything is written


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("1", "cat"), ("2", ""), ("3", " \t"), ("4", "dog")],
            "has 2 rows without a text in text, the first is row 2",
        ),
        ([], "one or more rows, got none|is empty or broken|must not be empty"),
    ],
)
def test_rows_without_a_text_are_refused(rows: list[tuple[str, str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        table_of(write_csv(tmp_path / "in.csv", ("id", "text"), rows), "text")


def test_missing_texts_and_other_types_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["cat", None, "dog"], "stars": [1, 2, 3]}).to_parquet(tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=r"has 1 rows without a text in text, the first is row 2"):
        table_of(tmp_path / "in.parquet", "text")
    with pytest.raises(ValueError, match=r"--text: 'stars' of .* must hold strings, got int64"):
        table_of(tmp_path / "in.parquet", "stars")


def test_files_that_are_refused(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        table_of(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="--input must be a file, got the folder"):
        table_of(tmp_path)
    file = write_csv(tmp_path / "in.csv", ("text", "prediction"), [("cat", "a")])
    with pytest.raises(ValueError, match="must have no column 'prediction'"):
        write_predictions(classifier, table_of(file, "text"), tmp_path / "out.csv")
    with pytest.raises(ValueError, match=r"--output must end in one of .csv, .jsonl, got .*out.xlsx"):
        write_predictions(classifier, table_of(file, "text"), tmp_path / "out.xlsx")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_failure_leaves_the_earlier_file(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicted_files, "CHUNK_ROWS", 2)
    output = tmp_path / "out.csv"
    output.write_text("earlier")
    ordinary, chunks = Classifier.__call__, iter(range(2))

    def fails(*arguments: Any, **options: Any) -> Any:
        if next(chunks):
            raise RuntimeError("out of memory")
        return ordinary(*arguments, **options)

    monkeypatch.setattr(Classifier, "__call__", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        write_predictions(classifier, TextTable.of_texts([(text,) for text in TEXTS]), output)
    assert output.read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_cut_texts_are_counted_over_all_chunks(
    distilled_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(predicted_files, "CHUNK_ROWS", 2)
    short = load_classifier(stating(distilled_dir, tmp_path / "set", max_length=7))
    long = "cat dog goat fox hare cat"
    write_predictions(
        short, TextTable.of_texts([(text,) for text in (long, "cat", long, "cat", long)]), tmp_path / "a.csv"
    )
    assert our_warnings(caplog) == ["3 of 5 texts were cut to 7 tokens"]
