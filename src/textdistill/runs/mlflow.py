"""Runs and sweeps in MLflow. This is the only module that imports the package ``mlflow``, and only when it is used.

The store is the file ``mlflow.db`` beside the runs; the artifacts are in ``mlartifacts/``. Importing MLflow takes
two seconds and creating its database takes two more, so ``tracking=none`` does neither.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from textdistill.core.files import replacing
from textdistill.runs.folder import RunFolder
from textdistill.runs.metrics import MetricLine, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

# The folder, beside the runs, with MLflow's copies of their files.
ARTIFACTS = "mlartifacts"
# This tag marks the MLflow run that is the parent of a sweep's runs; its value is the sweep's name.
SWEEP_TAG = "textdistill.sweep"

# A call of MLflow costs 10 ms and 0.1 ms for each metric, and accepts at most so many entries.
MAX_PARAMS = 100
MAX_METRICS = 1000
# Metrics wait at most so long before they are written.
FLUSH_SECONDS = 20.0
# Creating the tables of the store takes seconds; another process waits at most so long for them.
STORE_SECONDS = 60.0


class Status(StrEnum):
    """MLflow's words for how a run ended; KILLED means stopped by a signal or by a callback."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


class MlflowRun:
    """A run in the MLflow store.

    Metrics are buffered. They are written every ``FLUSH_SECONDS``, when ``MAX_METRICS`` wait, and at the end.
    Nothing is written twice: parameters, and metrics of a step, that the store has are skipped.

    Args:
        client: of the store.
        run_id: MLflow's id of the run.

    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self._logged: set[tuple[str, int]] = set()
        self._params: set[str] = set()
        self._pending: list[Metric] = []
        self._flushed = time.monotonic()

    @classmethod
    def open(cls, root: Path, experiment: str, run_name: str, folder: RunFolder, sweep: str = "") -> MlflowRun:
        """Opens the run of a run folder; creates it where the folder or the store has none.

        Args:
            root: the folder of all runs, with the store.
            experiment: name of the experiment; created if need be.
            run_name: name of the run; need not be unique.
            folder: keeps the id of the run in ``mlflow.json``.
            sweep: name of the sweep whose ``SweepRun`` becomes the parent, if the store has it; empty for none.

        """
        client = open_client(ensure_store(root))
        run = cls._known(client, folder.mlflow_id)
        if run is not None:
            return run
        experiment_id = _experiment_id(client, root, experiment)
        parent = _sweep_run_id(client, sweep) if sweep else None
        # MLflow itself marks a nested run with this tag.
        tags = {"mlflow.parentRunId": parent} if parent else {}
        run_id = str(client.create_run(experiment_id, run_name=run_name, tags=tags).info.run_id)
        with replacing(folder.mlflow_id) as partial:
            partial.write_text(json.dumps({"run_id": run_id}) + "\n", encoding="utf-8")
        return cls(client, run_id)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Writes parameters, nested mappings as dotted keys; MLflow cuts values beyond 6,000 characters."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)) for key, value in flatten(params) if key not in self._params]
        for start in range(0, len(entries), MAX_PARAMS):
            self.client.log_batch(self.run_id, params=entries[start : start + MAX_PARAMS])

    def log_lines(self, lines: Iterable[MetricLine]) -> None:
        """Adds lines of ``metrics.jsonl`` to the buffer, and writes the buffer when it is full or old."""
        from mlflow.entities import Metric

        for line in lines:
            for name, value in line.values.items():
                if value is None or (name, line.step) in self._logged:
                    continue
                self._logged.add((name, line.step))
                self._pending.append(Metric(name, value, int(line.time * 1000), line.step))
        if len(self._pending) >= MAX_METRICS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def log_artifact(self, path: Path) -> None:
        """Copies a file, or a folder under its name, to the run's artifacts."""
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
        else:
            self.client.log_artifact(self.run_id, str(path))

    def flush(self) -> None:
        """Writes the buffer."""
        for start in range(0, len(self._pending), MAX_METRICS):
            self.client.log_batch(self.run_id, metrics=self._pending[start : start + MAX_METRICS])
        self._pending = []
        self._flushed = time.monotonic()

    def close(self, status: Status = Status.FINISHED) -> None:
        """Writes the buffer and sets the run's status."""
        self.flush()
        self.client.set_terminated(self.run_id, status=str(status))

    @classmethod
    def _known(cls, client: MlflowClient, path: Path) -> MlflowRun | None:
        """Opens the run whose id is in a file; None where the file or the store does not have it."""
        from mlflow.exceptions import MlflowException

        try:
            run_id = str(json.loads(path.read_bytes())["run_id"])
            stored = client.get_run(run_id)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} must hold an id of MLflow ({error!r}); remove it for a new run") from error
        except MlflowException as error:
            # Only this code proves that the store lacks the run; a locked database, say, does not.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        run = cls(client, run_id)
        run._params = set(stored.data.params)
        for name in stored.data.metrics:
            run._logged |= {(name, metric.step) for metric in client.get_metric_history(run_id, name)}
        client.update_run(run_id, status="RUNNING")
        return run


class SweepRun:
    """The MLflow run of a sweep, parent of the runs of its jobs. The process that starts the jobs creates it first.

    A failure of MLflow is logged as one warning; the jobs' runs then have no parent.

    Args:
        root: the folder of all runs.
        experiment: name of the experiment; created if need be.
        sweep: the sweep's name, unique in ``root``; letters, digits, ``.``, ``-`` and ``_``. The run of an earlier
            sweep with this name is continued.
        overrides: of the sweep, ``key=value``; recorded as the run's parameters.

    """

    def __init__(self, root: Path, experiment: str, sweep: str, overrides: Iterable[str]) -> None:
        self._run: tuple[MlflowClient, str] | None = None
        try:
            client = open_client(ensure_store(root))
            run_id = _sweep_run_id(client, sweep)
            if run_id is None:
                experiment_id = _experiment_id(client, root, experiment)
                run = client.create_run(experiment_id, run_name=f"sweep.{sweep}", tags={SWEEP_TAG: sweep})
                run_id = str(run.info.run_id)
                # Of two overrides for one key, Hydra uses the last.
                for key, value in dict(override.lstrip("+~").partition("=")[::2] for override in overrides).items():
                    client.log_param(run_id, key, value)
            else:
                client.update_run(run_id, status="RUNNING")
            self._run = client, run_id
        except Exception as error:
            self._warn(error)

    def close(self, status: Status) -> None:
        """Sets the run's status."""
        try:
            if self._run is not None:
                client, run_id = self._run
                client.set_terminated(run_id, status=str(status))
        except Exception as error:
            self._warn(error)

    @staticmethod
    def _warn(error: Exception) -> None:
        reason = str(error).strip().partition("\n")[0]
        logger.warning("MLflow failed (%s: %s) in the sweep's own run; its jobs go on", type(error).__name__, reason)


def ensure_store(root: Path) -> str:
    """Creates the MLflow store of ``root`` unless it exists; parallel jobs may call this at once.

    Returns:
        The tracking URI: ``sqlite:///`` and the absolute path of ``root/mlflow.db``.

    """
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    with FileLock(root / "mlflow.db.lock", timeout=STORE_SECONDS):
        open_client(uri).search_experiments(max_results=1)  # the first access creates and migrates the tables
    return uri


def open_client(uri: str) -> MlflowClient:
    """Opens a client of a store; imports MLflow without its telemetry and without its INFO messages."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _sweep_run_id(client: MlflowClient, sweep: str) -> str | None:
    """Id of a sweep's own run; None where the store has none."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, filter_string=f"tags.`{SWEEP_TAG}` = '{sweep}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _experiment_id(client: MlflowClient, root: Path, name: str) -> str:
    """Id of the experiment called ``name``; created unless this or a parallel job has created it."""
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(name, artifact_location=(root.resolve() / ARTIFACTS).as_uri())
    except MlflowException:
        existing = client.get_experiment_by_name(name)
        if existing is None:
            raise
        return str(existing.experiment_id)
