"""Implements ``evaluate``, ``baseline`` and ``verify``, which score saved sets and baselines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from textdistill.commands.context import RunContext, set_shape
from textdistill.config import RunConfig
from textdistill.core.precision import Precision
from textdistill.core.processes import Processes
from textdistill.data.task import BATCH_ROWS
from textdistill.distilled.adapt import adapt_to
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.inspection import find_anomalies
from textdistill.evaluation.baselines import (
    Baseline,
    Training,
    full_data_learners,
    inner_loop_learners,
    ordinary_learners,
)
from textdistill.evaluation.coresets import Coreset, choose_coresets
from textdistill.evaluation.scoring import score
from textdistill.overrides import quoted
from textdistill.runs.results import BaselineSettings, RunResult, SetSource

# The cards of sets that were made before these metrics existed do not state them.
NOT_ALWAYS_STATED = ("macro_f1", "balanced_accuracy", "mcc")


def set_overrides(distilled: DistilledDataset) -> list[str]:
    """Returns the overrides that restore the data, the model and the conditions of the stated score of a set."""
    card = distilled.metadata

    def stated(*keys: str) -> Any:
        value: Any = card.provenance
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    made_for = {"model.model_name": card.model.name}
    # A set in the reference implementation's format does not state its task.
    if card.task != "unknown":
        made_for["data.task_name"] = card.task
    made_for |= {f"data.{key}": value for key, value in card.data.items() if key != "fingerprint"}
    # The seed decides the rows of a split that is cut from another split, and the learners of the stated score.
    made_for |= {"data.path": stated("config", "data", "path"), "base.seed": stated("seed")}
    made_for["evaluate.n_eval_model"] = stated("scores", "accuracy", "n")
    made_for["evaluate.bf16"] = stated("config", "evaluate", "bf16")
    return [f"{key}={quoted(value)}" for key, value in made_for.items() if value is not None]


def evaluate(source: str | PathLike[str] | DistilledDataset, config: RunConfig, data: object = None) -> RunResult:
    """Scores a set and writes ``results.json`` to the run folder; ``api.evaluate`` documents it.

    Args:
        source: the set, or its folder or hub id.
        config: the configuration of the data, the model and the score.
        data: data in memory, as ``read_memory`` takes them; None to read what ``config.data`` names.

    """
    distilled = source if isinstance(source, DistilledDataset) else DistilledDataset.from_pretrained(str(source))
    name = "in memory" if isinstance(source, DistilledDataset) else str(source)
    context = RunContext(config, Processes(), data)
    distilled = adapt_to(distilled, context.learner)
    context.check(distilled)
    distilled.to(context.learner.device)
    started = time.monotonic()
    scores = context.score(distilled)
    seconds = time.monotonic() - started
    shape, origin = set_shape(distilled), SetSource(name, distilled.revision)
    result = context.result(scores, seconds, shape=shape, source=origin)
    context.write(result)
    return result


def baseline(kind: str, config: RunConfig, training: Training = Training.inner_loop, data: object = None) -> RunResult:
    """Scores a baseline and writes ``results.json`` to the run folder; ``api.baseline`` documents it."""
    if kind not in list(Baseline):
        raise ValueError(f"unknown baseline {kind!r}; known baselines: {', '.join(Baseline)}")
    kind = Baseline(kind)
    processes = Processes()
    context = RunContext(config, processes, data)
    config = context.config
    data, seed, train = config.data, config.base.seed, context.splits["train"]
    precision = Precision.of(bf16=config.train.bf16)
    started = time.monotonic()
    count = config.evaluate.n_eval_model
    settings = BaselineSettings(str(kind))
    if kind is Baseline.full:
        count = 1
        trained = full_data_learners(
            context.learner, context.splits, data.train_batch_size or BATCH_ROWS, data.valid_batch_size, seed,
            processes, precision,
        )  # fmt: skip
    else:
        shape, inner = config.distilled_data, config.learner_train
        rows = choose_coresets(Coreset(kind), context.learner, train, shape.data_per_label, data.valid_batch_size, seed)
        settings = replace(settings, training=str(training), data_per_label=shape.data_per_label)
        if training is Training.ordinary:
            trained = ordinary_learners(context.learner, train, rows, seed, precision)
        else:
            trained, lr = inner_loop_learners(
                context.learner, context.splits, rows, inner, data.valid_batch_size, seed, processes
            )
            settings = replace(settings, lr=lr, train_step=inner.train_step)
    scores = score(
        trained, context.learner, context.splits["test"], context.task.metric_names, count, data.test_batch_size,
        processes, config.evaluate.precision, description=f"evaluate {kind}",
    )  # fmt: skip
    result = context.result(scores, time.monotonic() - started, baseline=settings)
    context.write(result)
    return result


@dataclass(frozen=True)
class Spread:
    """A mean and a sample standard deviation over n learners. ``std`` is None where it is unknown."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class VerifiedMetric:
    """A metric that the card of a set states, compared with a new measurement.

    Attributes:
        stated: the score that the card states.
        measured: the score that fresh learners reach.
        within: whether the two means differ by at most the stated standard deviation.

    """

    stated: Spread
    measured: Spread
    within: bool


@dataclass(frozen=True)
class Verification:
    """The result of ``verify``.

    Attributes:
        metrics: the verified metrics by name.
        same_data: whether the card names the same data.
        same_model: whether the card names the same encoder.
        anomalies: one sentence for each unusual property of the tensors.

    """

    metrics: Mapping[str, VerifiedMetric]
    same_data: bool
    same_model: bool
    anomalies: list[str]

    @property
    def verified(self) -> bool:
        """Returns whether every measured mean is within the stated standard deviation."""
        return all(metric.within for metric in self.metrics.values())


def verify(distilled_dir: str | PathLike[str], config: RunConfig, data: object = None) -> Verification:
    """Measures the stated score of a set again and looks for anomalies; ``api.verify`` documents it."""
    distilled = DistilledDataset.from_pretrained(str(distilled_dir))
    stated = distilled.metadata.provenance.get("scores")
    if not isinstance(stated, dict):
        raise ValueError(
            f"{distilled_dir}: the card must state a score to be verified, but states none; use a finished run's set"
        )
    context = RunContext(config, Processes(), data)
    context.check(distilled)
    distilled.to(context.learner.device)
    metrics = {}
    for name, measured in context.score(distilled).metrics.items():
        if name in NOT_ALWAYS_STATED and name not in stated:
            continue
        try:
            mean, std, n = (stated[name][key] for key in ("mean", "std", "n"))
            # Without a stated deviation, the means may differ by rounding only.
            within = abs(measured.mean - mean) <= (std or 0.0) + 1e-6
        except (KeyError, TypeError) as error:
            raise ValueError(f"{distilled_dir}: the card must state mean, std and n of {name} ({error!r})") from error
        measured_spread = Spread(measured.mean, measured.std, measured.n)
        metrics[name] = VerifiedMetric(Spread(mean, std, n), measured_spread, within)
    return Verification(
        metrics,
        same_data=distilled.metadata.data.get("fingerprint") == context.task.fingerprint,
        same_model=distilled.metadata.model.revision == context.learner.revision,
        anomalies=find_anomalies(distilled),
    )
