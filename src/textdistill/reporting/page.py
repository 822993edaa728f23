"""One HTML page about runs and baselines, whole in itself: their files, and what only the model can say, as a template.

Everything that comes from a file is a value of the template, which escapes it, or JSON, which the page's script writes
as text.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from textdistill.core.processes import Processes
from textdistill.distilled.adapt import check_fits
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.inspection import find_anomalies, nearest_tokens, own_attention
from textdistill.method.learner import Learner, ModelConfig
from textdistill.method.losses import attention_divergence
from textdistill.reporting.charts import Chart, Series, line_chart
from textdistill.reporting.rows import (
    COLUMNS,
    HEADINGS,
    KEY,
    RESULTS_FILE,
    Results,
    cells,
    read_config,
    spelled,
    spread,
    summarise,
    varying,
    where,
)
from textdistill.runs.folder import RunFolder
from textdistill.runs.metrics import flatten, read_lines

logger = logging.getLogger(__name__)

# Of all attention maps on the page, a byte each before base64, and of all nearest tokens.
MAP_CELLS = 2_000_000
TOKENS = 30_000
# Nearest tokens of a position, and strongest attention labels of a head.
NEAREST = 3
STRONGEST = 5
# Learned rates with a line of their own.
RATES = 6
# Columns that say what a result is of.
SHAPE = ("method", "per_class", "steps", "labels", "attention", "positions")

Run = tuple[Path, Results]


def page(found: Mapping[Path, Results]) -> str:
    """The page about results, by their files, as ``find_results`` finds them.

    For each task, protocol and model it tells one run in detail: of those that left a distilled set beside their
    results, the one with the lowest validation loss.
    """
    return render(contents(found))


def contents(found: Mapping[Path, Results]) -> dict[str, Any]:
    """What the page shows, before it is formatted: a group for each task, protocol and model."""
    names = _names(found)
    groups = []
    for place, own in groupby(summarise(found.values()), key=lambda line: tuple(line[name] for name in KEY[:3])):
        lines = list(own)
        runs = [(file, results) for file, results in found.items() if where(results) == place]
        distilled = [(file, results) for file, results in runs if "distilled_data" in results]
        whole = [(file, results) for file, results in distilled if (file.parent / "distilled").is_dir()]
        chosen = min(whole or distilled, key=_validation_loss, default=None)
        if chosen and not whole and len(distilled) > 1 and "validation" not in chosen[1]:
            chosen = None
        groups.append(
            {
                **dict(zip(KEY[:3], place, strict=True)),
                "lines": lines,
                "headline": next((line for line in lines if chosen and chosen[1] in line["runs"]), None),
                "compared": _compared(runs, names),
                "sweep": _sweep(results for _, results in distilled),
                "told": chosen if whole else None,
            }
        )
    pages = sum(group["told"] is not None for group in groups)
    for group in groups:
        told = group.pop("told")
        group["detail"] = told and _detail(told[0].parent, told[1], pages) | {"name": names[told[0]]}
    return {"groups": groups}


def render(content: Mapping[str, Any]) -> str:
    """The page as HTML; of what is in it, the script alone may run, and nothing may be fetched."""
    templates = files("textdistill.reporting") / "templates"
    style, script = ((templates / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(
        loader=PackageLoader("textdistill.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"size": _size, "duration": _duration, "cells": cells}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values = {"style": Markup(style), "script": Markup(script), "script_sha256": digest}
    return environment.get_template("page.html").render(content, **values).strip() + "\n"


def _names(found: Iterable[Path]) -> dict[Path, str]:
    """The folders of results as far as they differ; a file of another name is named too."""
    places = {file: file.parent if file.name == RESULTS_FILE else file for file in found}
    common = Path(os.path.commonpath(places.values()))
    return {file: place.name if place == common else str(place.relative_to(common)) for file, place in places.items()}


def _validation_loss(run: Run) -> float:
    validation = run[1].get("validation")
    return validation["loss"] if validation else float("inf")


def _compared(runs: Sequence[Run], names: Mapping[Path, str]) -> dict[str, Any]:
    """A row for each of the results, a value to sort by and a text for each column that says something.

    Returns:
        ``columns`` by name, those of them that hold ``numbers``, and ``rows``.

    """
    keys = [key for key in varying(results for _, results in runs) if key not in COLUMNS]
    described = [*(HEADINGS[name] for name in SHAPE), *keys, "seed"]

    def cell(value: Any, text: str | None = None) -> dict[str, Any]:
        return {"value": value, "text": "" if value is None else text or str(value)}

    rows = []
    for file, results in runs:
        (line,) = summarise([results])
        metrics, loss = results["metrics"], results.get("validation", {}).get("loss")
        what = [*(line[name] for name in SHAPE), *(results["settings"].get(key) for key in keys), results["seed"]]
        rows.append(
            {
                "run": cell(names[file]),
                **{name: cell(value) for name, value in zip(described, what, strict=True)},
                "accuracy": cell(metrics["accuracy"]["mean"], spread(metrics["accuracy"])),
                "F1": cell(metrics["f1"]["mean"], spread(metrics["f1"])) if "f1" in metrics else cell(None),
                "validation loss": cell(loss, loss and f"{loss:.4f}"),
                "best step": cell(results.get("best_step")),
                "minutes": cell(line["minutes"], cells(line)["minutes"]),
            }
        )
    texts = {name: {row[name]["text"] for row in rows} for name in rows[0]}
    # What is the same for all tells nothing of any.
    columns = [name for name in texts if len(texts[name]) > 1 or (name not in described and texts[name] != {""})]
    numbers = [name for name in columns if any(isinstance(row[name]["value"], int | float) for row in rows)]
    return {"columns": columns, "numbers": numbers, "rows": rows}


def _sweep(distilled: Iterable[Results]) -> dict[str, Any] | None:
    """Keys and values of runs that differ in two keys or more, the seed among them; None where they do not."""
    seeded = [{**r, "settings": {**r["settings"], "base.seed": r["seed"]}} for r in distilled if r["settings"]]
    keys = varying(seeded)
    if len(keys) < 2:
        return None
    runs = []
    for results in seeded:
        metrics = {f"validation {name}": value for name, value in results.get("validation", {}).items()}
        metrics = {name: value for name, value in metrics.items() if not name.endswith("_std")}
        metrics |= {f"reported {name}": score["mean"] for name, score in results["metrics"].items()}
        runs.append({"settings": {key: spelled(results["settings"].get(key)) for key in keys}, "metrics": metrics})
    metric_names = list(dict.fromkeys(name for run in runs for name in run["metrics"]))
    return {"keys": keys, "metrics": metric_names, "runs": runs}


def _detail(run_dir: Path, results: Results, pages: int) -> dict[str, Any]:
    """What a run folder tells of its run; ``pages`` runs share the page."""
    distilled = DistilledDataset.from_pretrained(run_dir / "distilled")
    metrics = RunFolder(run_dir).metrics
    lines = [{"step": line.step, **line.values} for line in read_lines(metrics)] if metrics.is_file() else []
    steps = [seconds for line in lines if (seconds := line.get("step_seconds")) is not None]
    config = read_config(run_dir)
    return {
        "results": results,
        "card": distilled.metadata,
        "shape": asdict(distilled.config),
        "inner": asdict(distilled.inner_config),
        "config": config,
        "groups": {key: list(flatten(value)) for key, value in config.items() if isinstance(value, dict)},
        "labels": distilled.labels.tolist(),
        "biggest_label": distilled.labels.abs().max().clamp_min(1e-9).item(),
        "samples": _sample_names(distilled),
        "lr": distilled.lr.tolist(),
        "lr_scales": None if (scales := distilled.lr_scales) is None else [scales.min().item(), scales.max().item()],
        "bytes": sum(file.stat().st_size for file in (run_dir / "distilled").iterdir()),
        "step_seconds": median(steps) if steps else None,
        "charts": _charts(lines, results.get("best_step")),
        "curves": _curves(lines),
        "unusual": find_anomalies(distilled),
        "inside": _inside(distilled, results, config, pages),
        "command": _command(run_dir),
    }


def _sample_names(distilled: DistilledDataset) -> list[str]:
    classes = distilled.metadata.class_names
    return [f"{i}: {classes[i % len(classes)]}" for i in range(len(distilled))]


def _charts(lines: Sequence[Mapping[str, Any]], best_step: int | None) -> list[Chart]:
    """Losses, other validation metrics, learned rates, and the time of a step, as far as they were recorded."""

    def series(name: str, key: str) -> Series:
        rows = [line for line in lines if line.get(key) is not None]
        bands = [line.get(f"{key}_std") for line in rows]
        return Series(name, [(line["step"], line[key]) for line in rows], bands)

    recorded = list(dict.fromkeys(name for line in lines for name in line))
    validation = [
        name for name in recorded
        if name.startswith("validation_") and not name.endswith("_std") and name != "validation_loss"
    ]  # fmt: skip
    rates = [name for name in recorded if name.startswith("lr.")]
    if len(rates) > RATES:
        rates = [rates[round(i * (len(rates) - 1) / (RATES - 1))] for i in range(RATES)]
    losses = [series("outer loss", "train_loss"), series("validation loss", "validation_loss")]
    drawn = [
        line_chart("Loss", losses, best_step),
        line_chart("Validation", [series(name.removeprefix("validation_"), name) for name in validation], best_step),
        line_chart("Learned rate", [series(f"inner step {name[3:]}", name) for name in rates], best_step),
        line_chart("Seconds an outer step", [series("mean since the last point", "step_seconds")], best_step),
    ]
    return [chart for chart in drawn if chart is not None]


def _curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of the charts: a row for each step with a record."""
    by_step: dict[int, dict[str, Any]] = {}
    for line in lines:
        by_step.setdefault(line["step"], {}).update(line)
    recorded = dict.fromkeys(name for line in lines for name in line)
    wanted = ("train_loss", "validation_", "lr.", "step_seconds")
    names = [name for name in recorded if name.startswith(wanted)]
    rows = [{"step": step, **{name: line.get(name) for name in names}} for step, line in sorted(by_step.items())]
    return {"columns": ["step", *names], "rows": rows}


def _inside(distilled: DistilledDataset, results: Results, config: Mapping[str, Any], pages: int) -> dict[str, Any]:
    """Attention labels beside the learner's own attention, and nearest tokens, of as many samples as the page takes.

    Returns:
        ``shown`` (sample names), ``learner`` (whether the model could be loaded), ``maps``: by name the bytes of
        (shown, Y, H, rows, L), each 255 times the square root of a probability, as base64; ``rows``: which of the
        supervised rows they are; ``divergence``: KL(label || own) by name and head, and its mean; ``tokens``, and
        ``cosine``, the median similarity of the nearest; the ``strongest`` attention labels of each head, and
        ``weighted``, whether they end with the learned weight of their row.

    """
    learner = _load(distilled, config)
    labels, length = distilled.attention_labels, distilled.config.seq_length
    shown, thinned = len(distilled), 1
    if labels is not None:
        cells_of_sample = labels[0].numel() * (1 if learner is None else 3)
        thinned = -(-cells_of_sample * pages // MAP_CELLS)
        shown = min(shown, max(1, MAP_CELLS // pages * thinned // cells_of_sample))
    shown = min(shown, max(1, TOKENS // pages // (length * NEAREST)))
    inside: dict[str, Any] = {
        "shown": _sample_names(distilled)[:shown],
        "length": length,
        "learner": learner is not None,
        "tokens": None,
        "maps": None,
    }
    own: dict[str, Tensor] = {}
    if learner is not None:
        nearest = nearest_tokens(distilled, learner, min(NEAREST, len(learner.tokenizer)), length)[:shown]
        inside["tokens"] = [
            [[[token, round(cosine, 3)] for token, cosine in at] for at in sample] for sample in nearest
        ]
        inside["cosine"] = median(at[0].cosine for sample in nearest for at in sample)
        if labels is not None:
            before, after = own_attention(distilled, learner, results["seed"], shown)
            own = {"before": before, "after": after}
    if labels is None:
        return inside
    labels = labels.detach()[:shown]
    divergence = {name: attention_divergence(rows, labels).mean(-1) for name, rows in own.items()}
    maps = {"label": labels, **{name: rows.exp() for name, rows in own.items()}}
    weights = distilled.attention_weights
    weight = {} if weights is None else {"weight": weights.detach()[:shown, ..., None].expand_as(labels)}
    _, layers, heads, rows, _ = labels.shape
    return inside | {
        "layers": layers,
        "heads": heads,
        "rows": list(range(0, rows, thinned)),
        "maps": {name: _packed(tensor[:, :, :, ::thinned]) for name, tensor in maps.items()},
        "divergence": {name: _rounded(values) for name, values in divergence.items()},
        "mean_divergence": {name: values.mean().item() for name, values in divergence.items()},
        "strongest": _strongest(maps | weight),
        "weighted": weights is not None,
    }


def _load(distilled: DistilledDataset, config: Mapping[str, Any]) -> Learner | None:
    """The run's learner, with the set on its device; None where its model cannot be loaded, or is another now."""
    card, given = distilled.metadata, config.get("model", {})
    kinds = {key: given[key] for key in ("use_pretrained_model", "disable_dropout") if key in given}
    try:
        learner = Learner(ModelConfig(card.task, card.model.name, **kinds), card.class_names)
        check_fits(distilled, learner)
    except (OSError, ValueError) as error:
        logger.warning("no nearest tokens and attention: %s cannot be loaded (%s)", card.model.name, error)
        return None
    learner.to(Processes().device)
    distilled.to(learner.device)
    return learner


def _packed(probabilities: Tensor) -> str:
    levels = (probabilities.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)
    return base64.b64encode(levels.cpu().contiguous().numpy().tobytes()).decode()


def _rounded(values: Tensor) -> Any:
    """Nested lists with three digits: JSON as long as it has to be."""
    if values.dim() > 1:
        return [_rounded(value) for value in values]
    return [round(value, 3) for value in values.tolist()]


def _strongest(maps: Mapping[str, Tensor]) -> Any:
    """For each sample, layer and head its strongest labels: row, position, and what each of ``maps`` has there."""
    labels = maps["label"].flatten(-2)
    places = labels.topk(min(STRONGEST, labels.size(-1)), dim=-1).indices
    values = torch.stack([tensor.flatten(-2).gather(-1, places) for tensor in maps.values()], dim=-1)
    length = maps["label"].size(-1)
    rows_and_positions = torch.stack([places // length, places % length], dim=-1)
    return _joined(rows_and_positions.tolist(), _rounded(values))


def _joined(places: Any, values: Any) -> Any:
    if isinstance(places[0], list):
        return [_joined(p, v) for p, v in zip(places, values, strict=True)]
    return [*places, *values]


def _command(run_dir: Path) -> str | None:
    """The command line of a run, None for one that was started from Python."""
    file = run_dir / ".hydra" / "overrides.yaml"
    if not file.is_file():
        return None
    try:
        overrides = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} must be a list of overrides: {error}; restore it from a copy") from error
    return shlex.join(["textdistill", "distill", *map(str, overrides or [])])


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
