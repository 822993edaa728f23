"""Writes report rows as Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

from textdistill.reporting.rows import GROUP_FIELDS, ReportRow, Scope
from textdistill.runs.results import Score

HEADINGS = {
    "method": "method",
    "per_class": "samples per class",
    "steps": "steps",
    "labels": "labels",
    "attention": "attention labels",
    "positions": "positions",
    "settings": "settings",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "MCC",
    "f1": "F1",
    "of_full": "of full data",
    "over_random": "over random",
    "learners": "learners",
    "outer_steps": "outer steps",
    "minutes": "minutes",
}
# The metrics that have a column.
METRIC_COLUMNS = ("accuracy", "macro_f1", "balanced_accuracy", "mcc", "f1")
# These columns hold text, so they are aligned to the left.
TEXT_COLUMNS = {"method", "labels", "attention", "settings"}
LATEX = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
}


class Format(StrEnum):
    """The format of a report; the value is the extension of its file."""

    html = "html"
    markdown = "md"
    csv = "csv"
    latex = "tex"


class _Table(NamedTuple):
    """The rows of one task, protocol and model as text, without empty columns.

    Attributes:
        title: task, model and protocol.
        test_rows: the rows that the scores are measured on.
        columns: keys of ``HEADINGS``.
        cells: a text for each row and column.

    """

    title: str
    test_rows: str
    columns: list[str]
    cells: list[list[str]]


def markdown(rows: Sequence[ReportRow]) -> str:
    """Writes a Markdown section with a table for each task, protocol and model. Empty columns are left out."""
    sections = []
    for table in _tables(rows):
        lines = [[HEADINGS[name] for name in table.columns], ["---"] * len(table.columns)]
        lines += [[_plain(cell) for cell in row] for row in table.cells]
        head = [f"### {_plain(table.title)}", "", f"{_plain(table.test_rows)}.", ""]
        sections.append("\n".join([*head, *("| " + " | ".join(line) + " |" for line in lines)]))
    return "\n\n".join(sections) + "\n"


def latex(rows: Sequence[ReportRow]) -> str:
    """Writes a LaTeX ``table`` for each task, protocol and model. The tables need the package booktabs."""
    tables = []
    for table in _tables(rows):
        body = [" & ".join(map(_latex, row)) + r" \\" for row in table.cells]
        alignment = "".join("l" if name in TEXT_COLUMNS else "r" for name in table.columns)
        text = [
            r"\begin{table}",
            rf"\caption{{{_latex(table.title)}: {_latex(table.test_rows)}.}}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            " & ".join(HEADINGS[name] for name in table.columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        tables.append("\n".join(text))
    return "\n\n".join(tables) + "\n"


def comma_separated(rows: Sequence[ReportRow]) -> str:
    """Writes one CSV table of all rows with unrounded numbers. A missing value is empty."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    statistics = [f"{name}_{value}" for name in metrics for value in ("mean", "std")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    last = ("learners", "of_full", "over_random", "outer_steps", "minutes")
    writer.writerow([*GROUP_FIELDS, "split", "rows", "seeds", *statistics, *last])
    for row in rows:
        scores = [row.metrics.get(name) for name in metrics]
        values = [value for score in scores for value in ((score.mean, score.std) if score else (None, None))]
        seeds = " ".join(map(str, row.seeds))
        learners = row.accuracy.n if row.results else None
        comparisons = (learners, row.of_full, row.over_random, row.outer_steps, row.minutes)
        writer.writerow([*row.group, row.split, row.rows, seeds, *values, *comparisons])
    return file.getvalue()


def row_cells(row: ReportRow) -> dict[str, str]:
    """Returns the text of a row for each column of ``HEADINGS``. A missing value is empty."""
    fields = zip(GROUP_FIELDS, row.group, strict=True)
    texts = {name: "" if value is None else str(value) for name, value in fields if name not in Scope._fields}
    for name in METRIC_COLUMNS:
        texts[name] = mean_and_std(row.metrics[name]) if name in row.metrics else ""
    seeds = len(row.seeds)
    texts["learners"] = f"{row.accuracy.n}" + (f" ({seeds} seeds)" if seeds > 1 else "") if row.results else ""
    texts["of_full"] = "" if row.of_full is None else f"{row.of_full:.1%}"
    texts["over_random"] = "" if row.over_random is None else f"{row.over_random:+.4f}"
    texts["outer_steps"] = "" if row.outer_steps is None else f"{row.outer_steps:,.0f}"
    texts["minutes"] = "" if row.minutes is None else f"{row.minutes:.1f}"
    return texts


def mean_and_std(score: Score) -> str:
    """Writes the mean and, for several learners, the standard deviation."""
    return f"{score.mean:.4f}" + ("" if score.std is None else f" ± {score.std:.4f}")


def _tables(rows: Sequence[ReportRow]) -> Iterator[_Table]:
    for (task, protocol, model), same_scope in groupby(rows, key=lambda row: row.group.scope):
        members = list(same_scope)
        texts = [row_cells(row) for row in members]
        columns = [name for name in HEADINGS if any(text[name] for text in texts)]
        test_rows = ", ".join(sorted({f"{row.rows:,} rows of {row.split}" for row in members}))
        cells = [[text[name] for name in columns] for text in texts]
        yield _Table(f"{task}, {model}, protocol {protocol}", test_rows, columns, cells)


def _plain(text: str) -> str:
    """Escapes text for a Markdown cell. The cell stays on one line and shows the text unchanged."""
    escaped = re.sub(r"([\\`*\[\]|])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))
