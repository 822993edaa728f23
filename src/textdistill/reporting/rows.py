"""Groups runs that differ only in seed and compares each group with its baselines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from textdistill.config import CHANGEABLE
from textdistill.runs.folder import RESULTS_FILE, RunFolder
from textdistill.runs.metrics import flatten
from textdistill.runs.mlflow_store import ARTIFACTS
from textdistill.runs.results import RunResult, Score

# Each of these keys of config.yaml has its own column.
COLUMN_KEYS = {
    "distilled_data.data_per_label",
    "distilled_data.label_type",
    "distilled_data.attention_label_type",
    "distilled_data.seq_length",
    "learner_train.train_step",
}
# These keys of config.yaml never distinguish two rows: names, paths, scoring, and keys that follow other keys.
IGNORED_KEYS = re.compile(rf"base\..*|evaluate\..*|model\.task_name|train\.inner_loop|{CHANGEABLE.pattern}")


class Scope(NamedTuple):
    """Task, protocol and model. Only results of the same scope can be compared."""

    task: str
    protocol: str
    model: str


class Group(NamedTuple):
    """The values that the runs of one row share; these runs differ at most in seed.

    Attributes:
        task: name of the task.
        protocol: ``clean`` or ``paper``.
        model: the encoder that was fine-tuned.
        method: ``distilled``, ``full data``, ``majority class``, or the selection and training of real samples.
        per_class: the number of samples of each class.
        steps: the number of inner steps.
        labels: ``distilled_data.label_type``.
        attention: ``distilled_data.attention_label_type``.
        positions: ``distilled_data.seq_length``.
        settings: the other settings in which the distilled sets of the scope differ, as ``key=value, ...``.

    """

    task: str
    protocol: str
    model: str
    method: str
    per_class: int | None = None
    steps: int | None = None
    labels: str | None = None
    attention: str | None = None
    positions: int | None = None
    settings: str | None = None

    @property
    def scope(self) -> Scope:
        """Returns the task, protocol and model."""
        return Scope(self.task, self.protocol, self.model)


GROUP_FIELDS = Group._fields
FULL_DATA = "full data"
# The row of a classifier that predicts the largest class of the training split for every row.
MAJORITY_CLASS = "majority class"


@dataclass(frozen=True)
class StoredResult:
    """A result and the file that holds it.

    Attributes:
        path: the file that holds the result.
        result: what the file holds.
        settings: the values of ``config.yaml`` in the same folder, by dotted key. Keys that never distinguish two
            rows are left out. The mapping is empty without a ``config.yaml``.

    """

    path: Path
    result: RunResult
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> RunFolder:
        """Returns the folder of the file, which is the run folder if a run wrote the file."""
        return RunFolder(self.path.parent)

    @property
    def scope(self) -> Scope:
        """Returns the task, protocol and model."""
        return Scope(self.result.task, self.result.protocol, self.result.model.name)

    @property
    def validation(self) -> Mapping[str, float]:
        """Returns the validation metrics of the best outer step; empty if the result has none."""
        training = self.result.training
        return {} if training is None or training.validation is None else training.validation

    @property
    def best_step(self) -> int | None:
        """Returns the outer step with the lowest validation loss; None if the run had no validation."""
        return None if self.result.training is None else self.result.training.best_step


@dataclass(frozen=True)
class ReportRow:
    """The results of all seeds of one group.

    Attributes:
        group: the values that the results share.
        split: the source of the test split, in words.
        rows: the number of rows in the test split.
        seeds: the seeds of the results, ascending.
        metrics: the score by metric, over all learners of all seeds.
        results: the stored results; empty for the majority class, which has no learners.
        outer_steps: the mean number of outer steps; None unless every result belongs to a distillation run.
        minutes: the mean training time; None unless every result belongs to a distillation run.
        of_full: the mean accuracy divided by the mean accuracy of full data on the same rows; None without a result of
            full data.
        over_random: the mean accuracy minus the mean accuracy of random real samples. The samples are equally many and
            are trained for equally many inner steps. None without such a baseline.

    """

    group: Group
    split: str
    rows: int
    seeds: list[int]
    metrics: Mapping[str, Score]
    results: list[StoredResult]
    outer_steps: float | None = None
    minutes: float | None = None
    of_full: float | None = None
    over_random: float | None = None

    @property
    def accuracy(self) -> Score:
        """Returns the accuracy over all learners of all seeds."""
        return self.metrics["accuracy"]


def find_results(paths: Iterable[str | Path]) -> list[StoredResult]:
    """Reads the results in files, run folders, and folders of run folders.

    A file that several paths name counts once. MLflow's copies are skipped.

    Raises:
        FileNotFoundError: a path holds no results.
        ValueError: a file was not written by this package.

    """
    stored: dict[Path, StoredResult] = {}
    for path in map(Path, paths):
        files = [path] if path.is_file() else sorted(path.rglob(RESULTS_FILE))
        files = [file for file in files if ARTIFACTS not in file.relative_to(path).parts]
        if not files:
            raise FileNotFoundError(f"{path} holds no {RESULTS_FILE}: name a run folder, or a folder of run folders")
        for file in files:
            result = RunResult.read(file)
            config = flatten(read_config(file.parent))
            settings = {key: value for key, value in config if not IGNORED_KEYS.fullmatch(key)}
            stored[file.resolve()] = StoredResult(file.resolve(), result, settings)
    return list(stored.values())


def read_config(run_dir: Path) -> dict[str, Any]:
    """Reads ``config.yaml`` of a run folder. The result is empty if the file does not exist.

    Raises:
        ValueError: the file is not a configuration.

    """
    file = RunFolder(run_dir).config
    if not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} must be the configuration of a run: {error}; restore it from a copy") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must be the configuration of a run, got no keys; restore it from a copy")
    return {str(key): value for key, value in config.items()}


def varying_settings(results: Iterable[StoredResult]) -> list[str]:
    """Returns the keys of the settings that have several values among the results."""
    values: dict[str, set[str]] = {}
    for stored in results:
        for key, value in stored.settings.items():
            values.setdefault(key, set()).add(str(value))
    return [key for key, distinct in values.items() if len(distinct) > 1]


def report_rows(results: Iterable[StoredResult]) -> list[ReportRow]:
    """Returns one row for each group of results that differ at most in seed.

    Each row is compared with the baselines of its scope. Rows are ordered by scope. Within a scope, sets distilled for
    the scored model come first. Full data comes last, before the majority class where the results state it.
    """
    rows = []
    for _, same_scope in groupby(sorted(results, key=_scope), key=_scope):
        stored = list(same_scope)
        names = [name for name in varying_settings(stored) if name not in COLUMN_KEYS]
        group_of = partial(_group, names=names)
        stored.sort(key=lambda one, group_of=group_of: _order(group_of(one)))  # type: ignore[misc]
        rows += [_row(group, list(members)) for group, members in groupby(stored, key=group_of)]
        rows += _majority_rows(stored)
    by_group = {row.group: row for row in rows}
    return [_compared_with_baselines(row, by_group) for row in rows]


def spelled(value: object) -> str:
    """Returns a setting as ``config.yaml`` spells it, such as null, true, or a string without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def _scope(stored: StoredResult) -> Scope:
    return stored.scope


def _group(stored: StoredResult, names: Sequence[str] = ()) -> Group:
    """Returns the group of a result. ``names`` are the settings without a column that distinguish groups."""
    result, shape = stored.result, stored.result.shape
    if shape is None:
        baseline = result.baseline
        if baseline is None or baseline.baseline == "full":
            return Group(*stored.scope, FULL_DATA)
        training = str(baseline.training).replace("_", " ")
        method = f"{baseline.baseline}, {training}"
        return Group(*stored.scope, method, baseline.data_per_label, baseline.train_step)
    settings = ", ".join(f"{name}={spelled(stored.settings[name])}" for name in names if name in stored.settings)
    return Group(
        *stored.scope,
        method="distilled" if shape.made_for == result.model.name else f"distilled for {shape.made_for}",
        per_class=shape.distilled_data["data_per_label"],
        steps=shape.learner_train["train_step"],
        labels=shape.distilled_data["label_type"],
        attention=shape.distilled_data["attention_label_type"],
        positions=shape.distilled_data["seq_length"],
        settings=settings or None,
    )


def _order(group: Group) -> tuple[object, ...]:
    """Returns a sort key: sets distilled for the scored model first, full data last, and None before any number."""
    rank = {"distilled": 0, FULL_DATA: 2}.get(group.method, 1)
    return (*group.scope, rank, group.method, *((value is not None, value) for value in group[4:]))


def _row(group: Group, stored: list[StoredResult]) -> ReportRow:
    results = [one.result for one in stored]
    test = results[0].splits["test"]
    trainings = [result.training for result in results if result.training is not None]
    trained = len(trainings) == len(results)
    return ReportRow(
        group,
        split=test.source,
        rows=test.rows,
        seeds=sorted({result.seed for result in results}),
        metrics={
            name: Score.of([value for result in results for value in result.metrics[name].values])
            for name in results[0].metrics
            if all(name in result.metrics for result in results)
        },
        results=stored,
        outer_steps=fmean(training.outer_steps for training in trainings) if trained else None,
        minutes=fmean(training.training_seconds for training in trainings) / 60 if trained else None,
    )


def _majority_rows(stored: Sequence[StoredResult]) -> list[ReportRow]:
    """Returns a row of the majority class for each test split of a scope. It is the mean over the seeds."""
    by_split: dict[tuple[str, int], dict[int, Mapping[str, float]]] = {}
    for one in stored:
        if (classes := one.result.classes) is not None:
            test = one.result.splits["test"]
            by_split.setdefault((test.source, test.rows), {})[one.result.seed] = classes.majority.metrics
    rows = []
    for (split, count), by_seed in by_split.items():
        # The same score for every seed is one score. It has no deviation.
        scores = (
            list(by_seed.values()) if len({tuple(m.items()) for m in by_seed.values()}) > 1 else [*by_seed.values()][:1]
        )
        names = [name for name in scores[0] if all(name in metrics for metrics in scores)]
        metrics = {name: Score.of([metrics[name] for metrics in scores]) for name in names}
        rows.append(ReportRow(Group(*stored[0].scope, MAJORITY_CLASS), split, count, sorted(by_seed), metrics, []))
    return rows


def _compared_with_baselines(row: ReportRow, by_group: Mapping[Group, ReportRow]) -> ReportRow:
    group, mean = row.group, row.accuracy.mean
    full = by_group.get(Group(*group.scope, FULL_DATA))
    random = by_group.get(Group(*group.scope, "random, inner loop", group.per_class, group.steps))
    return replace(
        row,
        of_full=mean / full.accuracy.mean if full and _same_rows(row, full) else None,
        over_random=mean - random.accuracy.mean if random and _same_rows(row, random) else None,
    )


def _same_rows(row: ReportRow, other: ReportRow) -> bool:
    return (row.split, row.rows) == (other.split, other.rows)
