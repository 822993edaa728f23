"""Renders one self-contained HTML report.

Values from files are never markup. The template escapes each value or writes it as JSON. The page's script inserts
the JSON values as text.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from textdistill.reporting.class_view import ClassView, view_classes
from textdistill.reporting.rows import (
    COLUMN_KEYS,
    ReportRow,
    Scope,
    StoredResult,
    report_rows,
    spelled,
    varying_settings,
)
from textdistill.reporting.run_detail import RunDetail, read_detail
from textdistill.reporting.sample_view import Limits
from textdistill.reporting.tables import HEADINGS, METRIC_COLUMNS, mean_and_std, row_cells
from textdistill.runs.folder import RESULTS_FILE

# These columns describe the set or the baseline that was scored.
SHAPE_COLUMNS = ("method", "per_class", "steps", "labels", "attention", "positions")


class Cell(NamedTuple):
    """The value that sorts a cell, and the text that the cell shows."""

    value: object
    text: str


@dataclass(frozen=True)
class ResultTable:
    """A table with a row for each result.

    Attributes:
        columns: the headings of the visible columns.
        numbers: the headings of the visible columns that hold numbers.
        rows: a cell for each column, visible or hidden.

    """

    columns: list[str]
    numbers: list[str]
    rows: list[dict[str, Cell]]


@dataclass(frozen=True)
class SweepRun:
    """The settings and the metrics of one run in a sweep."""

    settings: dict[str, str]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in two settings or more. The seed counts as a setting."""

    keys: list[str]
    metrics: list[str]
    runs: list[SweepRun]


@dataclass(frozen=True)
class PageGroup:
    """The results of one task, protocol and model.

    Attributes:
        scope: task, protocol and model.
        rows: one row for all seeds of the same settings.
        table: one row for each result.
        headline: the row of the run that the page describes in detail; None if no run can be chosen.
        sweep: the sweep; None unless the runs differ in two settings or more.
        classes: the scores by class of the headline's row; None if its results do not state them.
        detail: the description of the headline run; None if its folder holds no distilled set.

    """

    scope: Scope
    rows: list[ReportRow]
    table: ResultTable
    headline: ReportRow | None
    sweep: Sweep | None
    classes: ClassView | None
    detail: RunDetail | None = None


def page(results: Sequence[StoredResult], device: torch.device | str = "cpu") -> str:
    """Returns the HTML page about the results.

    The page describes one run in detail for each task, protocol and model. This run has the lowest validation loss
    among the runs with a distilled set in their folder. Its model computes attention on ``device``.
    """
    return render(contents(results, device=device))


def contents(
    results: Sequence[StoredResult], limits: Limits | None = None, device: torch.device | str = "cpu"
) -> list[PageGroup]:
    """Returns the content of the page before it is formatted: a group for each task, protocol and model.

    Args:
        results: at least one result.
        limits: the limits of attention maps and tokens on the whole page; None for the defaults.
        device: where the models compute attention.

    """
    names = _names(stored.path for stored in results)
    groups: list[PageGroup] = []
    chosen: list[StoredResult | None] = []
    for scope, same_scope in groupby(report_rows(results), key=lambda row: row.group.scope):
        rows = list(same_scope)
        stored = [one for one in results if one.scope == scope]
        distilled = [one for one in stored if one.result.shape is not None]
        headline = _headline(distilled)
        row = next((row for row in rows if headline in row.results), None)
        classes = view_classes([one.result for one in row.results]) if row else None
        groups.append(PageGroup(scope, rows, _table(stored, names), row, _sweep(distilled), classes))
        chosen.append(headline if headline and headline.folder.distilled.is_dir() else None)
    share = (limits or Limits()).share(max(1, sum(one is not None for one in chosen)))
    return [
        group if one is None else replace(group, detail=read_detail(one, names[one.path], share, device))
        for group, one in zip(groups, chosen, strict=True)
    ]


def render(groups: Sequence[PageGroup]) -> str:
    """Renders the page as HTML. The page runs only its own script and fetches nothing."""
    templates = files("textdistill.reporting") / "templates"
    style, script = ((templates / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(
        loader=PackageLoader("textdistill.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "size": _size,
        "duration": _duration,
        "cells": row_cells,
        "fields": asdict,
        "strongest": _strongest,
    }
    environment.globals |= {"headings": HEADINGS, "metric_columns": METRIC_COLUMNS}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values = {"groups": groups, "style": Markup(style), "script": Markup(script), "script_sha256": digest}
    return environment.get_template("page.html").render(values).strip() + "\n"


def _names(paths: Iterable[Path]) -> dict[Path, str]:
    """Names each result by the part of its folder's path that differs.

    The name includes the file if the file is not called ``results.json``.
    """
    named_paths = {path: path.parent if path.name == RESULTS_FILE else path for path in paths}
    common = Path(os.path.commonpath(named_paths.values()))
    return {
        path: named.name if named == common else str(named.relative_to(common)) for path, named in named_paths.items()
    }


def _headline(distilled: Sequence[StoredResult]) -> StoredResult | None:
    """Returns the result with the lowest validation loss.

    Results with a distilled set in their folder have priority. Returns None if there are several results, no folder
    holds a set, and no result has a validation loss.
    """
    complete = [stored for stored in distilled if stored.folder.distilled.is_dir()]
    best = min(complete or distilled, key=lambda stored: stored.validation.get("loss", float("inf")), default=None)
    if best is not None and not complete and len(distilled) > 1 and not best.validation:
        return None
    return best


def _table(results: Sequence[StoredResult], names: Mapping[Path, str]) -> ResultTable:
    """Builds a table with a row for each result. A column in which all results agree is hidden."""
    keys = [key for key in varying_settings(results) if key not in COLUMN_KEYS]
    described = [*(HEADINGS[name] for name in SHAPE_COLUMNS), *keys, "seed"]
    rows = [_table_row(stored, names[stored.path], keys) for stored in results]
    texts = {name: {row[name].text for row in rows} for name in rows[0]}
    # A column of descriptions helps only if the results differ in it.
    columns = [name for name in texts if len(texts[name]) > 1 or (name not in described and texts[name] != {""})]
    numbers = [name for name in columns if any(isinstance(row[name].value, int | float) for row in rows)]
    return ResultTable(columns, numbers, rows)


def _table_row(stored: StoredResult, name: str, keys: Sequence[str]) -> dict[str, Cell]:
    def cell(value: object, text: str | None = None) -> Cell:
        return Cell(value, "" if value is None else text or str(value))

    row, *_ = report_rows([stored])
    metrics = stored.result.metrics
    loss = stored.validation.get("loss")
    return {
        "run": cell(name),
        **{HEADINGS[column]: cell(getattr(row.group, column)) for column in SHAPE_COLUMNS},
        **{key: cell(stored.settings.get(key)) for key in keys},
        "seed": cell(stored.result.seed),
        **{
            HEADINGS[metric]: cell(metrics[metric].mean, mean_and_std(metrics[metric]))
            if metric in metrics
            else cell(None)
            for metric in METRIC_COLUMNS
        },
        "validation loss": cell(loss, "" if loss is None else f"{loss:.4f}"),
        "best step": cell(stored.best_step),
        "minutes": cell(row.minutes, row_cells(row)["minutes"]),
    }


def _sweep(distilled: Iterable[StoredResult]) -> Sweep | None:
    seeded = [
        replace(stored, settings={**stored.settings, "base.seed": stored.result.seed})
        for stored in distilled
        if stored.settings
    ]
    keys = varying_settings(seeded)
    if len(keys) < 2:
        return None
    runs = []
    for stored in seeded:
        metrics = {
            f"validation {name}": value for name, value in stored.validation.items() if not name.endswith("_std")
        }
        metrics |= {f"test {name}": score.mean for name, score in stored.result.metrics.items()}
        runs.append(SweepRun({key: spelled(stored.settings.get(key)) for key in keys}, metrics))
    return Sweep(keys, list(dict.fromkeys(name for run in runs for name in run.metrics)), runs)


def _strongest(values: Sequence[float], count: int | None) -> list[tuple[int, float]]:
    """Returns the positions and values of the ``count`` largest absolute values, or of all of them in order."""
    indexed = list(enumerate(values))
    return indexed if count is None else sorted(indexed, key=lambda one: -abs(one[1]))[:count]


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
