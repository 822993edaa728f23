"""Reads a run folder for a page: its distilled set, learning curves, cost and configuration."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
import yaml

from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.inspection import find_anomalies
from textdistill.distilled.spec import DistilledDataConfig, LearnerTrainConfig, SetMetadata
from textdistill.reporting.charts import Chart, Series, line_chart
from textdistill.reporting.rows import StoredResult, read_config
from textdistill.reporting.sample_view import Limits, SampleView, sample_names, view_samples
from textdistill.runs.folder import RunFolder
from textdistill.runs.metrics import MetricLine, flatten, read_lines
from textdistill.runs.results import RunResult

# The chart draws at most this many learned rates, evenly selected from the inner steps.
MAX_RATES = 6
# The table of learning curves shows the metrics whose names begin so.
RECORDED = ("train_loss", "validation_", "lr.", "step_seconds")


@dataclass(frozen=True)
class Curves:
    """The values of the metrics for each recorded outer step; None where a metric has no value."""

    metrics: list[str]
    values: dict[int, list[float | None]]


@dataclass(frozen=True)
class RunDetail:
    """A run and its distilled set.

    Attributes:
        name: the page's name for the run folder.
        result: the content of ``results.json``.
        metadata: the task, model and data of the set.
        shape: the settings of the set.
        inner: the settings of the inner loop.
        samples: the name of each sample.
        labels: the learned labels, (N, C).
        biggest_label: the greatest absolute value of ``labels``, above 0.
        lr: the learning rate of each inner step.
        lr_scales: the least and the greatest learned multiple of ``lr`` among the parameters; None if none is learned.
        bytes: the size of the set's folder.
        anomalies: a sentence for each unusual property of the set.
        view: the attention and the nearest tokens of the first samples.
        charts: a chart for each recorded group of learning curves.
        curves: the numbers of the learning curves.
        step_seconds: the median time of an outer step; None if it was not recorded.
        configuration: the key and value of each setting, by group of ``config.yaml``.
        command: the command line; None if Python started the run.

    """

    name: str
    result: RunResult
    metadata: SetMetadata
    shape: DistilledDataConfig
    inner: LearnerTrainConfig
    samples: list[str]
    labels: list[list[float]]
    biggest_label: float
    lr: list[float]
    lr_scales: tuple[float, float] | None
    bytes: int
    anomalies: list[str]
    view: SampleView
    charts: list[Chart]
    curves: Curves
    step_seconds: float | None
    configuration: dict[str, list[tuple[str, object]]]
    command: str | None


def read_detail(stored: StoredResult, name: str, limits: Limits, device: torch.device | str) -> RunDetail:
    """Reads the run folder of a result, which must hold a distilled set.

    Args:
        stored: the result.
        name: the page's name for the run.
        limits: the limits of attention maps and tokens.
        device: where the model computes attention.

    """
    folder = stored.folder
    distilled = DistilledDataset.from_pretrained(folder.distilled)
    lines = list(read_lines(folder.metrics)) if folder.metrics.is_file() else []
    seconds = [value for line in lines if (value := line.values.get("step_seconds")) is not None]
    config, scales = read_config(folder.path), distilled.lr_scales
    return RunDetail(
        name=name,
        result=stored.result,
        metadata=distilled.metadata,
        shape=distilled.config,
        inner=distilled.inner_config,
        samples=sample_names(distilled),
        labels=distilled.labels.tolist(),
        biggest_label=distilled.labels.abs().max().clamp_min(1e-9).item(),
        lr=distilled.lr.tolist(),
        lr_scales=None if scales is None else (scales.min().item(), scales.max().item()),
        bytes=sum(file.stat().st_size for file in folder.distilled.iterdir()),
        anomalies=find_anomalies(distilled),
        view=view_samples(distilled, stored.settings, stored.result.seed, limits, device),
        charts=_charts(lines, stored.best_step),
        curves=_curves(lines),
        step_seconds=median(seconds) if seconds else None,
        configuration={key: list(flatten(value)) for key, value in config.items() if isinstance(value, dict)},
        command=_command(folder),
    )


def _charts(lines: Sequence[MetricLine], best_step: int | None) -> list[Chart]:
    """Draws the recorded losses, other validation metrics, learned rates and times of a step."""

    def series(name: str, key: str) -> Series:
        recorded = [(line, value) for line in lines if (value := line.values.get(key)) is not None]
        spread = [line.values.get(f"{key}_std") for line, _ in recorded]
        return Series(name, [(line.step, value) for line, value in recorded], spread)

    names = _recorded(lines)
    validation = [name for name in names if name.startswith("validation_") and not name.endswith("_std")]
    validation = [name for name in validation if name != "validation_loss"]
    rates = [name for name in names if name.startswith("lr.")]
    if len(rates) > MAX_RATES:
        rates = [rates[round(i * (len(rates) - 1) / (MAX_RATES - 1))] for i in range(MAX_RATES)]
    losses = [series("outer loss", "train_loss"), series("validation loss", "validation_loss")]
    charts = [
        line_chart("Loss", losses, best_step),
        line_chart("Validation", [series(name.removeprefix("validation_"), name) for name in validation], best_step),
        line_chart("Learned rate", [series(f"inner step {name[3:]}", name) for name in rates], best_step),
        line_chart("Seconds an outer step", [series("mean since the last point", "step_seconds")], best_step),
    ]
    return [chart for chart in charts if chart is not None]


def _curves(lines: Sequence[MetricLine]) -> Curves:
    by_step: dict[int, dict[str, float | None]] = {}
    for line in lines:
        by_step.setdefault(line.step, {}).update(line.values)
    names = [name for name in _recorded(lines) if name.startswith(RECORDED)]
    return Curves(names, {step: [values.get(name) for name in names] for step, values in sorted(by_step.items())})


def _recorded(lines: Sequence[MetricLine]) -> list[str]:
    """Returns the names of the metrics, in the order of their first record."""
    return list(dict.fromkeys(name for line in lines for name in line.values))


def _command(folder: RunFolder) -> str | None:
    if not folder.overrides.is_file():
        return None
    try:
        overrides = yaml.safe_load(folder.overrides.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        reason = f"must be a list of overrides: {error}; restore it from a copy"
        raise ValueError(f"{folder.overrides} {reason}") from error
    return shlex.join(["textdistill", "distill", *map(str, overrides or [])])
