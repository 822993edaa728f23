"""Results of runs and baselines: which of them share a line, what each line stands beside, and tables of the lines."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import yaml

from textdistill.config import CHANGEABLE
from textdistill.runs.metrics import flatten
from textdistill.runs.mlflow import ARTIFACTS

Results = Mapping[str, Any]
Line = dict[str, Any]

RESULTS_FILE = "results.json"
CONFIG_FILE = "config.yaml"
# What a line is about; results that differ in nothing else than the seed share one.
KEY = ("task", "protocol", "model", "method", "per_class", "steps", "labels", "attention", "positions", "settings")
HEADINGS = {
    "method": "method",
    "per_class": "samples per class",
    "steps": "steps",
    "labels": "labels",
    "attention": "attention labels",
    "positions": "positions",
    "settings": "settings",
    "accuracy": "accuracy",
    "f1": "F1",
    "of_full": "of full data",
    "over_random": "over random",
    "learners": "learners",
    "outer_steps": "outer steps",
    "minutes": "minutes",
}
WORDS = {"method", "labels", "attention", "settings"}
# Keys of config.yaml with a column of their own,
COLUMNS = {
    "distilled_data.data_per_label",
    "distilled_data.label_type",
    "distilled_data.attention_label_type",
    "distilled_data.seq_length",
    "learner_train.train_step",
}
# and those that only follow others, or say how a set was scored.
NO_SETTINGS = re.compile(rf"base\..*|evaluate\..*|model\.task_name|train\.inner_loop|{CHANGEABLE.pattern}")
LATEX = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
}


class Format(StrEnum):
    """What a report is written as; the value is the ending of its file."""

    html = "html"
    markdown = "md"
    csv = "csv"
    latex = "tex"


class _Table(NamedTuple):
    """The lines of one task, protocol and model as text."""

    title: str
    rows_of: str
    names: list[str]
    rows: list[list[str]]


def find_results(paths: Iterable[str | Path]) -> dict[Path, Results]:
    """The results in files, run folders, and folders of run folders, by file, each once: MLflow's copies do not count.

    Beside what the file holds each has ``settings``: by dotted key what ``config.yaml`` beside it sets, but for seed,
    places and how the run was watched; empty where there is none.

    Raises:
        FileNotFoundError: a path holds none.
        ValueError: a file is not one that this package wrote.

    """
    found = {}
    for path in map(Path, paths):
        files = [path] if path.is_file() else sorted(path.rglob(RESULTS_FILE))
        files = [file for file in files if ARTIFACTS not in file.relative_to(path).parts]
        if not files:
            raise FileNotFoundError(f"{path} holds no {RESULTS_FILE}: name a run folder, or a folder of run folders")
        for file in files:
            try:
                results = json.loads(file.read_text(encoding="utf-8"))
                _check(results)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{file} must be what distill, evaluate or baseline wrote, got {error!r}") from error
            config = flatten(read_config(file.parent))
            settings = {key: value for key, value in config if not NO_SETTINGS.fullmatch(key)}
            found[file.resolve()] = results | {"settings": settings}
    return found


def read_config(run_dir: Path) -> dict[str, Any]:
    """What ``config.yaml`` of a run folder holds; empty where there is none."""
    file = run_dir / CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} must be the configuration of a run: {error}; restore it from a copy") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must be the configuration of a run, got no keys; restore it from a copy")
    return {str(key): value for key, value in config.items()}


def varying(found: Iterable[Results]) -> list[str]:
    """The settings in which results differ, among those that have settings."""
    values: dict[str, set[str]] = {}
    for results in found:
        for key, value in results.get("settings", {}).items():
            values.setdefault(key, set()).add(str(value))
    return [key for key, distinct in values.items() if len(distinct) > 1]


def where(results: Results) -> tuple[str, str, str]:
    """Task, protocol and model: results of the same can be compared."""
    return results["task"], results["protocol"], results["model"]["name"]


def summarise(found: Iterable[Results]) -> list[Line]:
    """One line for all seeds of one setting, in the order of KEY.

    A line has the values of KEY, where ``settings`` names those in which the distilled sets of this task, protocol and
    model differ and that no other column shows; and ``rows`` (of the reported split), ``seeds``, ``learners`` (values
    over all seeds), ``metrics`` (mean and standard deviation over all learners of all seeds by metric), ``outer_steps``
    and ``minutes`` (means over seeds; None for baselines, and where they are not known), ``of_full`` (mean accuracy
    over that of full data on the same rows), ``over_random`` (mean accuracy less that of random real samples, equally
    many, through equally many inner steps; None, both, where what they compare with is not among the results), and
    ``runs``, its results.
    """
    lines: list[Line] = []
    for _, alike in groupby(sorted(found, key=where), key=where):
        group = list(alike)
        key = partial(_key, named=[name for name in varying(group) if name not in COLUMNS])
        keyed = sorted(group, key=lambda results, key=key: _order(key(results)))  # type: ignore[misc]
        lines += [_line(values, list(same)) for values, same in groupby(keyed, key=key)]
    by_key = {tuple(line[name] for name in KEY): line for line in lines}
    for line in lines:
        place = tuple(line[name] for name in KEY[:3])
        full = by_key.get((*place, "full data", *(None,) * 6))
        random = by_key.get((*place, "random, inner loop", line["per_class"], line["steps"], *(None,) * 4))
        mean = line["metrics"]["accuracy"]["mean"]
        line["of_full"] = mean / full["metrics"]["accuracy"]["mean"] if full and _same_rows(line, full) else None
        over = random["metrics"]["accuracy"]["mean"] if random and _same_rows(line, random) else None
        line["over_random"] = None if over is None else mean - over
    return lines


def markdown(lines: Sequence[Line]) -> str:
    """A section with a table for each task, protocol and model; columns that say nothing are left out."""
    sections = []
    for table in _tables(lines):
        rows = [[HEADINGS[name] for name in table.names], ["---"] * len(table.names)]
        rows += [[_plain(cell) for cell in row] for row in table.rows]
        head = [f"### {_plain(table.title)}", "", f"{_plain(table.rows_of)}.", ""]
        sections.append("\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)]))
    return "\n\n".join(sections) + "\n"


def latex(lines: Sequence[Line]) -> str:
    """A ``table`` for each task, protocol and model; needs the package booktabs."""
    tables = []
    for table in _tables(lines):
        rows = [" & ".join(map(_latex, row)) + r" \\" for row in table.rows]
        columns = "".join("l" if name in WORDS else "r" for name in table.names)
        text = [
            r"\begin{table}",
            rf"\caption{{{_latex(table.title)}: {_latex(table.rows_of)}.}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(HEADINGS[name] for name in table.names) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        tables.append("\n".join(text))
    return "\n\n".join(tables) + "\n"


def comma_separated(lines: Sequence[Line]) -> str:
    """One table of all lines with every number in full; empty where a line has no value."""
    metrics = list(dict.fromkeys(name for line in lines for name in line["metrics"]))
    numbers = ("learners", "of_full", "over_random", "outer_steps", "minutes")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    spread = [f"{name}_{value}" for name in metrics for value in ("mean", "std")]
    writer.writerow([*KEY, "split", "rows", "seeds", *spread, *numbers])
    for line in lines:
        known = [line["metrics"].get(name, {}).get(value) for name in metrics for value in ("mean", "std")]
        seeds = " ".join(map(str, line["seeds"]))
        writer.writerow(
            [*(line[n] for n in KEY), line["split"], line["rows"], seeds, *known, *(line[n] for n in numbers)]
        )
    return file.getvalue()


def cells(line: Line) -> dict[str, str]:
    """The columns of HEADINGS as text, empty for what the line lacks."""
    texts = {name: "" if line[name] is None else str(line[name]) for name in KEY[3:]}
    for name in ("accuracy", "f1"):
        metric = line["metrics"].get(name)
        texts[name] = "" if metric is None else spread(metric)
    seeds = len(line["seeds"])
    texts["learners"] = f"{line['learners']}" + (f" ({seeds} seeds)" if seeds > 1 else "")
    texts["of_full"] = "" if line["of_full"] is None else f"{line['of_full']:.1%}"
    texts["over_random"] = "" if line["over_random"] is None else f"{line['over_random']:+.4f}"
    texts["outer_steps"] = "" if line["outer_steps"] is None else f"{line['outer_steps']:,.0f}"
    texts["minutes"] = "" if line["minutes"] is None else f"{line['minutes']:.1f}"
    return texts


def spread(metric: Mapping[str, Any]) -> str:
    """A mean with its standard deviation, where there is one."""
    return f"{metric['mean']:.4f}" + ("" if metric["std"] is None else f" ± {metric['std']:.4f}")


def _check(results: Results) -> None:
    """Raises one of the errors that find_results translates for what no verb writes."""
    line = _line(_key(results), [results])
    for name, value in zip(KEY[:4], line.values(), strict=False):
        if not isinstance(value, str):
            raise ValueError(f"{name} {value!r}")
    for metric in line["metrics"].values():
        if not math.isfinite(metric["mean"]):
            raise ValueError(f"a mean of {metric['mean']}")


def spelled(value: Any) -> str:
    """A setting in the words of ``config.yaml``: null, true, a text without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def _key(results: Results, named: Sequence[str] = ()) -> tuple[Any, ...]:
    place = where(results)
    kind = results.get("baseline")
    if kind == "full":
        return (*place, "full data", *(None,) * 6)
    if kind is not None:
        method = f"{kind}, {results['training'].replace('_', ' ')}"
        return (*place, method, results["data_per_label"], results.get("train_step"), *(None,) * 4)
    shape, inner = results["distilled_data"], results["learner_train"]
    labels = (shape["label_type"], shape["attention_label_type"], shape["seq_length"])
    made_for = results["made_for"]
    method = "distilled" if made_for == results["model"]["name"] else f"distilled for {made_for}"
    has = results.get("settings", {})
    settings = ", ".join(f"{name}={spelled(has[name])}" for name in named if name in has)
    return (*place, method, shape["data_per_label"], inner["train_step"], *labels, settings or None)


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sets distilled for the model first, full data last; None before any number."""
    task, protocol, model, method, *rest = key
    rank = {"distilled": 0, "full data": 2}.get(method, 1)
    return (task, protocol, model, rank, method, *((value is not None, value) for value in rest))


def _line(key: tuple[Any, ...], group: Sequence[Results]) -> Line:
    first = group[0]
    metrics = {}
    for name in first["metrics"]:
        values = [value for results in group for value in results["metrics"][name]["values"]]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        metrics[name] = {"mean": fmean(values), "std": std}
    test = first["splits"]["test"]
    trained = all("training_seconds" in results for results in group)
    return {
        **dict(zip(KEY, key, strict=True)),
        "split": test["source"],
        "rows": test["rows"],
        "seeds": sorted({results["seed"] for results in group}),
        "learners": sum(results["metrics"]["accuracy"]["n"] for results in group),
        "metrics": metrics,
        "outer_steps": fmean(results["outer_steps"] for results in group) if trained else None,
        "minutes": fmean(results["training_seconds"] for results in group) / 60 if trained else None,
        "runs": list(group),
    }


def _same_rows(line: Line, other: Line) -> bool:
    return bool((line["split"], line["rows"]) == (other["split"], other["rows"]))


def _tables(lines: Sequence[Line]) -> Iterator[_Table]:
    for (task, protocol, model), group in groupby(lines, key=lambda line: tuple(line[name] for name in KEY[:3])):
        rows = list(group)
        texts = [cells(row) for row in rows]
        names = [name for name in HEADINGS if any(text[name] for text in texts)]
        rows_of = ", ".join(sorted({f"{row['rows']:,} rows of {row['split']}" for row in rows}))
        yield _Table(
            f"{task}, {model}, protocol {protocol}", rows_of, names, [[text[name] for name in names] for text in texts]
        )


def _plain(text: str) -> str:
    """Text of a file as Markdown that stays on its line and in its cell, and starts nothing."""
    escaped = re.sub(r"([\\`*\[\]|])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))
