"""Records runs and sweeps in MLflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from textdistill.runs.folder import RunFolder
from textdistill.runs.metrics import MetricLine, flatten
from textdistill.runs.mlflow_store import (
    Destination,
    MlflowRecord,
    check_location,
    experiment_id,
    open_store,
    reason,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

# This tag marks the MLflow run that is the parent of a sweep's runs. The tag's value is the sweep's name.
SWEEP_TAG = "textdistill.sweep"

# A call of MLflow costs 10 ms and 0.1 ms for each metric. A call accepts at most this many entries.
MAX_PARAMS = 100
MAX_METRICS = 1000
# Metrics wait at most this long before they are written.
FLUSH_SECONDS = 20.0


class Status(StrEnum):
    """MLflow's words for the end of a run. KILLED means that a signal or a callback stopped the run."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


class MlflowRun:
    """A run in the MLflow store.

    Metrics are buffered. They are written every ``FLUSH_SECONDS``, when ``MAX_METRICS`` wait, and at the end.
    Nothing is written twice. Parameters and metrics that the store already has are skipped.

    Args:
        client: the client of the store.
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
    def open(
        cls, choose: Callable[[MlflowRecord | None], Destination], run_name: str, folder: RunFolder, sweep: str = ""
    ) -> MlflowRun:
        """Opens the MLflow run of a run folder. Creates the run if the folder or the store does not have it.

        The folder notes the destination before the store is opened, so that a run whose store failed is completed
        there.

        Args:
            choose: returns the store and the experiment; receives what the folder notes of them. A missing experiment
                is created.
            run_name: the name of the run, which need not be unique.
            folder: the run folder, which keeps the id of the run in ``mlflow.json``.
            sweep: the name of the sweep; empty for none. The sweep's MLflow run becomes the parent if the store has it.

        Raises:
            ValueError: the experiment or the run was deleted, or the store was moved or left half made.

        """
        record = MlflowRecord.read(folder)
        destination = choose(record)
        if record is None or record.run_id is None:
            MlflowRecord.of(destination).write(folder)
        client = open_store(destination)
        run = None if record is None else cls._known(client, destination, record)
        if run is None:
            parent = _sweep_run_id(client, sweep) if sweep else None
            # MLflow itself marks a nested run with this tag.
            tags = {"mlflow.parentRunId": parent} if parent else {}
            created = client.create_run(experiment_id(client, destination), run_name=run_name, tags=tags)
            run = cls(client, str(created.info.run_id))
            MlflowRecord.of(destination, run.run_id).write(folder)
        logger.info("MLflow: %s, run %s", destination, run.run_id)
        return run

    def log_params(self, params: Mapping[str, object]) -> None:
        """Writes parameters. Nested mappings become dotted keys. MLflow cuts values beyond 6,000 characters."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)) for key, value in flatten(params) if key not in self._params]
        for start in range(0, len(entries), MAX_PARAMS):
            self.client.log_batch(self.run_id, params=entries[start : start + MAX_PARAMS])

    def log_lines(self, lines: Iterable[MetricLine]) -> None:
        """Adds lines of ``metrics.jsonl`` to the buffer. Writes the buffer if it is full or old."""
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
        """Copies a file or a folder to the run's artifacts under the same name."""
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
    def _known(cls, client: MlflowClient, destination: Destination, record: MlflowRecord) -> MlflowRun | None:
        """Opens the run of a record. Returns None if the run is elsewhere or does not exist."""
        from mlflow.exceptions import MlflowException

        run_id = record.run_id
        if run_id is None or not record.fits(destination):
            return None
        try:
            stored = client.get_run(run_id)
        except MlflowException as error:
            # Only this code proves that the store lacks the run. Other errors, such as a locked database, do not.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if stored.info.lifecycle_stage == "deleted":
            raise ValueError(
                f"MLflow's run {run_id} must not be deleted; restore it with"
                f" {destination.command(f'mlflow runs restore --run-id {run_id}')}, or remove mlflow.json for a new run"
            )
        check_location(destination, stored.info.artifact_uri)
        run = cls(client, run_id)
        run._params = set(stored.data.params)
        for name in stored.data.metrics:
            run._logged |= {(name, metric.step) for metric in client.get_metric_history(run_id, name)}
        client.update_run(run_id, status="RUNNING")
        return run


class SweepRun:
    """The MLflow run of a sweep, which is the parent of the jobs' runs.

    The process that starts the jobs creates the sweep's run before the first job. A failure of MLflow is logged as one
    warning. The jobs' runs then have no parent.

    Args:
        choose: returns the store and the experiment. A missing experiment is created.
        sweep: the sweep's name, unique in the store, of letters, digits, ``.``, ``-`` and ``_``. The run of an earlier
            sweep with the same name is continued.
        overrides: the sweep's overrides, ``key=value``, which become the run's parameters.

    """

    def __init__(self, choose: Callable[[], Destination], sweep: str, overrides: Iterable[str]) -> None:
        self._run: tuple[MlflowClient, str] | None = None
        try:
            destination = choose()
            client = open_store(destination)
            run_id = _sweep_run_id(client, sweep)
            if run_id is None:
                experiment = experiment_id(client, destination)
                run = client.create_run(experiment, run_name=f"sweep.{sweep}", tags={SWEEP_TAG: sweep})
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
        logger.warning("MLflow failed (%s) in the sweep's own run; its jobs go on", reason(error))


def _sweep_run_id(client: MlflowClient, sweep: str) -> str | None:
    """Returns the id of a sweep's own run; None if the store does not have the run."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, filter_string=f"tags.`{SWEEP_TAG}` = '{sweep}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None
