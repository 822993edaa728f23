"""The verb ``predict``: where its texts come from, and where the predictions go."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path

from textdistill.cli import terminal
from textdistill.commands.predict import Classifier, as_rows, load_classifier
from textdistill.commands.predicted_files import (
    TextTable,
    check_output,
    json_line,
    output_columns,
    predict_rows,
    write_predictions,
)

STDIN = "-"
# A terminal shows this many rows at most.
SHOWN_ROWS = 50


def run_predict(
    source: str,
    texts: list[str],
    *,
    input_file: str | None = None,
    columns: list[str] | None = None,
    output: Path | None = None,
    model: str | None = None,
    seed: int = 42,
) -> None:
    """Predicts and prints, or writes to ``output``.

    Args:
        source: a distilled set or a fine-tuned model.
        texts: the texts, two by two for a set of pairs; ``-`` alone for the lines of standard input.
        input_file: a file with the texts instead, or ``-``.
        columns: the columns of the file that hold the texts.
        output: a csv or jsonl file.
        model: the encoder to fine-tune on a set.
        seed: decides the head of the learner.

    """
    if bool(texts) == (input_file is not None):
        raise ValueError("predict needs texts, or a file of texts: give TEXT arguments or --input FILE, not both")
    if output is not None:
        check_output(output)
    classifier = load_classifier(source, model, seed)
    table = _read(classifier, texts or [str(input_file)], input_file, columns)
    if output is not None:
        write_predictions(classifier, table, output)
        print(f"predictions: {output} ({table.rows:,} rows)")
        return
    output_columns(classifier, table)
    if terminal.on_terminal():
        shown = min(table.rows, SHOWN_ROWS)
        terminal.print_predictions(list(predict_rows(classifier, table, shown)), table.text_columns)
        if shown < table.rows:
            print(f"{shown} of {table.rows:,} rows; --output FILE writes all")
        return
    try:
        for row in predict_rows(classifier, table):
            print(json_line(row))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as head, has enough. Python would complain when it flushes the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _read(classifier: Classifier, texts: list[str], input_file: str | None, columns: list[str] | None) -> TextTable:
    if texts == [STDIN]:
        return TextTable.of_texts(as_rows(line.rstrip("\r\n") for line in sys.stdin))
    if input_file is not None:
        return TextTable.of_file(Path(input_file), columns, classifier.text_columns)
    if columns is not None:
        raise ValueError(f"--text must be left out without --input, got {','.join(columns)}; add --input FILE")
    if len(classifier.text_columns) < 2:
        return TextTable.of_texts(as_rows(texts))
    if len(texts) % 2:
        names = " and ".join(classifier.text_columns)
        raise ValueError(f"{classifier.source} takes pairs of texts ({names}), got {len(texts)} TEXT; give both")
    return TextTable.of_texts(as_rows(list(pairwise(texts))[::2]))
