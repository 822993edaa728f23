"""Where a run's parameters, metrics and files are recorded: JSON lines always, MLflow if asked.

MLflow takes two seconds to import and two more to create its database, so only ``tracking=mlflow`` imports
it. Its store is the file ``mlflow.db`` beside the runs, with the artifacts in ``mlartifacts/``.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# Limits of one MLflow call, and the pause between two: a call costs 10 ms and 0.1 ms for each metric.
MAX_PARAMS = 100
MAX_METRICS = 1000
FLUSH_SECONDS = 20.0


class Tracking(StrEnum):
    """Value of ``tracking``: what records a run besides its JSON lines."""

    mlflow = "mlflow"
    none = "none"


class Tracker(Protocol):
    """What the outer loop needs of an experiment tracker."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record the run's configuration; nested mappings become dotted keys. Once a run."""

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Record numbers that belong to outer step ``step``; those that are None are skipped."""

    def log_artifact(self, path: Path) -> None:
        """Record a copy of a file or folder under its name."""

    def close(self, failed: bool = False) -> None:
        """Write what is pending and end the run as finished or failed."""


class JsonLinesTracker:
    """Appends ``{"step": ..., "time": ..., metric: ...}`` to ``metrics.jsonl`` in the run folder.

    ``time`` is in seconds since the epoch. A line is in the file when ``log_metrics`` returns. JSON knows
    neither NaN nor infinity: both are written as null. Parameters and artifacts are in the run folder anyway.
    """

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        # Line buffering: every line reaches the file whole and at once.
        self._file = (run_dir / "metrics.jsonl").open("a", buffering=1, encoding="utf-8")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nothing: ``config.yaml`` of the run folder holds them."""

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Append one line."""
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, "time": round(time.time(), 3), **finite}
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def log_artifact(self, path: Path) -> None:
        """Nothing: it is in the run folder."""

    def close(self, failed: bool = False) -> None:
        """Close the file."""
        self._file.close()


class MlflowTracker:
    """A run in the MLflow store of ``root``, under the experiment of that name, created if need be.

    Metrics are buffered and written with one call every ``FLUSH_SECONDS`` or ``MAX_METRICS``, and at the end.

    Attributes:
        run_id: MLflow's id of the run.

    """

    def __init__(self, root: Path, experiment: str, run_name: str) -> None:
        self._client = _client(ensure_store(root))
        experiment_id = _experiment_id(self._client, root, experiment)
        self.run_id: str = self._client.create_run(experiment_id, run_name=run_name).info.run_id
        self._pending: list[Metric] = []
        self._flushed = time.monotonic()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Write all parameters at once; MLflow cuts values beyond 6,000 characters."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)) for key, value in _flatten(params)]
        for start in range(0, len(entries), MAX_PARAMS):
            self._client.log_batch(self.run_id, params=entries[start : start + MAX_PARAMS])

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Add to the buffer, and write it when it is full or old."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(name, float(value), now, step) for name, value in metrics.items() if value is not None]
        if len(self._pending) >= MAX_METRICS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    def log_artifact(self, path: Path) -> None:
        """Copy a file, or a folder under its name, to the run's artifacts."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
        else:
            self._client.log_artifact(self.run_id, str(path))

    def close(self, failed: bool = False) -> None:
        """Write the buffer and set the run's status, FINISHED or FAILED."""
        self._flush()
        self._client.set_terminated(self.run_id, status="FAILED" if failed else "FINISHED")

    def _flush(self) -> None:
        for start in range(0, len(self._pending), MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=self._pending[start : start + MAX_METRICS])
        self._pending = []
        self._flushed = time.monotonic()


class Trackers:
    """Several trackers as one; of none at all, a tracker that records nothing."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = tuple(trackers)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Pass on to each."""
        for tracker in self.trackers:
            tracker.log_params(params)

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Pass on to each."""
        for tracker in self.trackers:
            tracker.log_metrics(metrics, step)

    def log_artifact(self, path: Path) -> None:
        """Pass on to each."""
        for tracker in self.trackers:
            tracker.log_artifact(path)

    def close(self, failed: bool = False) -> None:
        """Pass on to each."""
        for tracker in self.trackers:
            tracker.close(failed)


def open_tracker(tracking: Tracking, run_dir: Path, root: Path, experiment: str, run_name: str) -> Tracker:
    """Start recording a run.

    Args:
        tracking: ``mlflow`` or ``none``.
        run_dir: the run's folder, where ``metrics.jsonl`` goes; created if need be.
        root: the folder of all runs, where the MLflow store lives; created if need be.
        experiment: MLflow's experiment, shared by runs that are compared.
        run_name: MLflow's name of the run, need not be unique.

    """
    trackers: list[Tracker] = [JsonLinesTracker(run_dir)]
    if tracking is Tracking.mlflow:
        trackers.append(MlflowTracker(root, experiment, run_name))
    return Trackers(trackers)


def ensure_store(root: Path) -> str:
    """Create the MLflow store of ``root`` unless it is there; safe to call from parallel jobs at once.

    Returns:
        Its tracking URI, ``sqlite:///`` and the absolute path of ``root/mlflow.db``.

    """
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    with FileLock(root / "mlflow.db.lock"):
        _client(uri).search_experiments(max_results=1)  # the first access creates and migrates the tables
    return uri


def _client(uri: str) -> MlflowClient:
    """A client of the store, importing MLflow with its telemetry and its INFO messages off."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _experiment_id(client: MlflowClient, root: Path, name: str) -> str:
    """Id of the experiment called ``name``, created unless it, or a parallel job, is there already."""
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(name, artifact_location=(root.resolve() / "mlartifacts").as_uri())
    except MlflowException:
        existing = client.get_experiment_by_name(name)
        if existing is None:
            raise
        return str(existing.experiment_id)


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings with their dotted keys."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
