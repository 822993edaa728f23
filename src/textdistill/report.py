"""Tables of results: runs and baselines side by side, from their ``results.json``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

Results = Mapping[str, Any]
Line = dict[str, Any]

RESULTS_FILE = "results.json"
# What a line is about; results that differ in nothing else than the seed share one.
KEY = ("task", "protocol", "model", "method", "per_class", "steps", "labels", "attention", "positions")
HEADINGS = {
    "method": "method",
    "per_class": "samples per class",
    "steps": "steps",
    "labels": "labels",
    "attention": "attention labels",
    "positions": "positions",
    "accuracy": "accuracy",
    "f1": "F1",
    "of_full": "of full data",
    "over_random": "over random",
    "learners": "learners",
    "outer_steps": "outer steps",
    "minutes": "minutes",
}


def find_results(paths: Iterable[str | Path]) -> list[Results]:
    """The results in files, run folders, and folders of run folders.

    Raises:
        FileNotFoundError: a path holds none.
        ValueError: a file is not one that this package wrote.

    """
    found = []
    for path in map(Path, paths):
        files = [path] if path.is_file() else sorted(path.rglob(RESULTS_FILE))
        if not files:
            raise FileNotFoundError(f"{path} holds no {RESULTS_FILE}: name a run folder, or a folder of run folders")
        for file in files:
            try:
                results = json.loads(file.read_text(encoding="utf-8"))
                _line([results])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file} must be what distill, evaluate or baseline wrote, got {error!r}") from error
            found.append(results)
    return found


def summarise(found: Iterable[Results]) -> list[Line]:
    """One line for all seeds of one setting, in the order of KEY.

    A line has the values of KEY, and ``rows`` (of the reported split), ``seeds``, ``learners`` (values over all seeds),
    ``metrics`` (mean and standard deviation over all learners of all seeds by metric), ``outer_steps`` and
    ``minutes`` (means over seeds; None for baselines, and where they are not known), ``of_full`` (mean accuracy over
    that of full data on the same rows) and ``over_random`` (mean accuracy less that of random real samples, equally
    many, through equally many inner steps); None where what they compare with is not among the results.
    """
    keyed = sorted(found, key=lambda results: _order(_key(results)))
    lines = [_line(list(group)) for _, group in groupby(keyed, key=_key)]
    by_key = {tuple(line[name] for name in KEY): line for line in lines}
    for line in lines:
        where = tuple(line[name] for name in KEY[:3])
        full = by_key.get((*where, "full data", *(None,) * 5))
        random = by_key.get((*where, "random, inner loop", line["per_class"], line["steps"], *(None,) * 3))
        mean = line["metrics"]["accuracy"]["mean"]
        line["of_full"] = mean / full["metrics"]["accuracy"]["mean"] if full and _same_rows(line, full) else None
        over = random["metrics"]["accuracy"]["mean"] if random and _same_rows(line, random) else None
        line["over_random"] = None if over is None else mean - over
    return lines


def markdown(lines: Sequence[Line]) -> str:
    """A section with a table for each task, protocol and model; columns that say nothing are left out."""
    sections = []
    for (task, protocol, model), group in groupby(lines, key=lambda line: tuple(line[name] for name in KEY[:3])):
        rows = list(group)
        cells = [_cells(row) for row in rows]
        names = [name for name in HEADINGS if any(cell[name] for cell in cells)]
        split = ", ".join(sorted({f"{row['rows']:,} rows of {row['split']}" for row in rows}))
        sections.append(
            "\n".join(
                [
                    f"### {task}, {model}, protocol {protocol}",
                    "",
                    f"{split}.",
                    "",
                    "| " + " | ".join(HEADINGS[name] for name in names) + " |",
                    "| " + " | ".join("---" for _ in names) + " |",
                    *("| " + " | ".join(cell[name] for name in names) + " |" for cell in cells),
                ]
            )
        )
    return "\n\n".join(sections) + "\n"


def _key(results: Results) -> tuple[Any, ...]:
    where = (results["task"], results["protocol"], results["model"]["name"])
    kind = results.get("baseline")
    if kind == "full":
        return (*where, "full data", None, None, None, None, None)
    if kind is not None:
        method = f"{kind}, {results['training'].replace('_', ' ')}"
        return (*where, method, results["data_per_label"], results.get("train_step"), None, None, None)
    shape, inner = results["distilled_data"], results["learner_train"]
    labels = (shape["label_type"], shape["attention_label_type"], shape["seq_length"])
    made_for = results["made_for"]
    method = "distilled" if made_for == results["model"]["name"] else f"distilled for {made_for}"
    return (*where, method, shape["data_per_label"], inner["train_step"], *labels)


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sets distilled for the model first, full data last; None before any number."""
    task, protocol, model, method, *rest = key
    rank = {"distilled": 0, "full data": 2}.get(method, 1)
    return (task, protocol, model, rank, method, *((value is not None, value) for value in rest))


def _line(group: Sequence[Results]) -> Line:
    first = group[0]
    metrics = {}
    for name in first["metrics"]:
        values = [value for results in group for value in results["metrics"][name]["values"]]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        metrics[name] = {"mean": fmean(values), "std": std}
    test = first["splits"]["test"]
    trained = all("training_seconds" in results for results in group)
    return {
        **dict(zip(KEY, _key(first), strict=True)),
        "split": test["source"],
        "rows": test["rows"],
        "seeds": sorted({results["seed"] for results in group}),
        "learners": sum(results["metrics"]["accuracy"]["n"] for results in group),
        "metrics": metrics,
        "outer_steps": fmean(results["outer_steps"] for results in group) if trained else None,
        "minutes": fmean(results["training_seconds"] for results in group) / 60 if trained else None,
    }


def _same_rows(line: Line, other: Line) -> bool:
    return bool((line["split"], line["rows"]) == (other["split"], other["rows"]))


def _cells(line: Line) -> dict[str, str]:
    """The columns of HEADINGS as text, empty for what the line lacks."""
    texts = {name: "" if line[name] is None else str(line[name]) for name in KEY[3:]}
    for name in ("accuracy", "f1"):
        if metric := line["metrics"].get(name):
            spread = "" if metric["std"] is None else f" ± {metric['std']:.4f}"
            texts[name] = f"{metric['mean']:.4f}{spread}"
        else:
            texts[name] = ""
    seeds = len(line["seeds"])
    texts["learners"] = f"{line['learners']}" + (f" ({seeds} seeds)" if seeds > 1 else "")
    texts["of_full"] = "" if line["of_full"] is None else f"{line['of_full']:.1%}"
    texts["over_random"] = "" if line["over_random"] is None else f"{line['over_random']:+.4f}"
    texts["outer_steps"] = "" if line["outer_steps"] is None else f"{line['outer_steps']:,.0f}"
    texts["minutes"] = "" if line["minutes"] is None else f"{line['minutes']:.1f}"
    return texts
