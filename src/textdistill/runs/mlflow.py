"""Records runs and sweeps in MLflow.

The store is the file ``mlflow.db`` beside the runs. The artifacts are in ``mlartifacts/``. No other module imports the
package ``mlflow``. Importing MLflow takes two seconds and creating its database takes two more, so ``tracking=none``
does neither.
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

# This folder beside the runs holds MLflow's copies of run files.
ARTIFACTS = "mlartifacts"
# This tag marks the MLflow run that is the parent of a sweep's runs. The tag's value is the sweep's name.
SWEEP_TAG = "textdistill.sweep"

# A call of MLflow costs 10 ms and 0.1 ms for each metric. A call accepts at most this many entries.
MAX_PARAMS = 100
MAX_METRICS = 1000
# Metrics wait at most this long before they are written.
FLUSH_SECONDS = 20.0
# Creating the tables of the store takes seconds. Other processes wait at most this long for the tables.
STORE_SECONDS = 60.0


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
    def open(cls, root: Path, experiment: str, run_name: str, folder: RunFolder, sweep: str = "") -> MlflowRun:
        """Opens the MLflow run of a run folder. Creates the run if the folder or the store does not have it.

        Args:
            root: the folder of all runs, which holds the store.
            experiment: the name of the experiment. A missing experiment is created.
            run_name: the name of the run, which need not be unique.
            folder: the run folder, which keeps the id of the run in ``mlflow.json``.
            sweep: the name of the sweep; empty for none. The sweep's MLflow run becomes the parent if the store has it.

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
    def _known(cls, client: MlflowClient, path: Path) -> MlflowRun | None:
        """Opens the run whose id is in a file. Returns None if the file or the run does not exist."""
        from mlflow.exceptions import MlflowException

        try:
            run_id = str(json.loads(path.read_bytes())["run_id"])
            stored = client.get_run(run_id)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} must hold an id of MLflow ({error!r}); remove the file for a new run") from error
        except MlflowException as error:
            # Only this code proves that the store lacks the run. Other errors, such as a locked database, do not.
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
    """The MLflow run of a sweep, which is the parent of the jobs' runs.

    The process that starts the jobs creates the sweep's run before the first job. A failure of MLflow is logged as one
    warning. The jobs' runs then have no parent.

    Args:
        root: the folder of all runs.
        experiment: the name of the experiment. A missing experiment is created.
        sweep: the sweep's name, unique in ``root``, of letters, digits, ``.``, ``-`` and ``_``. The run of an earlier
            sweep with the same name is continued.
        overrides: the sweep's overrides, ``key=value``, which become the run's parameters.

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
    """Creates the MLflow store of ``root`` unless the store exists. Parallel jobs may call this function at once.

    Returns:
        The tracking URI: ``sqlite:///`` and the absolute path of ``root/mlflow.db``.

    """
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    with FileLock(root / "mlflow.db.lock", timeout=STORE_SECONDS):
        # The first access creates and migrates the tables.
        open_client(uri).search_experiments(max_results=1)
    return uri


def open_client(uri: str) -> MlflowClient:
    """Opens a client of a store. Turns off MLflow's telemetry and its INFO messages before the import."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _sweep_run_id(client: MlflowClient, sweep: str) -> str | None:
    """Returns the id of a sweep's own run; None if the store does not have the run."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, filter_string=f"tags.`{SWEEP_TAG}` = '{sweep}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _experiment_id(client: MlflowClient, root: Path, name: str) -> str:
    """Returns the id of the experiment called ``name``. Creates the experiment unless it exists."""
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(name, artifact_location=(root.resolve() / ARTIFACTS).as_uri())
    except MlflowException:
        existing = client.get_experiment_by_name(name)
        if existing is None:
            raise
        return str(existing.experiment_id)
