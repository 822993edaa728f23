"""Where a run's parameters, metrics and files are recorded: JSON lines always, MLflow beside them if asked.

The JSON lines are the record and MLflow a copy of it that may fail, or be made later from them. MLflow takes
two seconds to import and two more to create its database, so only ``tracking=mlflow`` imports it. Its store
is the file ``mlflow.db`` beside the runs, with the artifacts in ``mlartifacts/``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock

from textdistill.core.files import replacing

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
# MLflow's copies of what runs wrote, beside them.
ARTIFACTS = "mlartifacts"
RUN_ID_FILE = "mlflow.json"
# Tag of the MLflow run that is the parent of a sweep's; its value is the sweep's name.
SWEEP_TAG = "textdistill.sweep"

# Limits of one MLflow call, and the pause between two: a call costs 10 ms and 0.1 ms for each metric.
MAX_PARAMS = 100
MAX_METRICS = 1000
FLUSH_SECONDS = 20.0
# Another process creates the store's tables within seconds.
STORE_SECONDS = 60.0


class Tracking(StrEnum):
    """Value of ``tracking``: what records a run besides its JSON lines."""

    mlflow = "mlflow"
    none = "none"


class Status(StrEnum):
    """How a run ended, as MLflow calls it; KILLED: stopped by a signal or by what watches it."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


class Tracker(Protocol):
    """What the outer loop needs of an experiment tracker."""

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Record numbers that belong to outer step ``step``; those that are None are skipped."""

    def mark(self) -> int:
        """Make what is recorded so far last; the position in the record, for a run that goes on from here."""

    def rewind(self, mark: int) -> None:
        """Go on from a position of ``mark``, 0 for the start; what was recorded after it comes again."""


class NullTracker:
    """Records nothing: the tracker of a process that does not write."""

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """See ``Tracker``."""

    def mark(self) -> int:
        """See ``Tracker``."""
        return 0

    def rewind(self, mark: int) -> None:
        """See ``Tracker``."""


class JsonLines:
    """``metrics.jsonl`` of a run folder: ``{"step": ..., "time": ..., metric: ...}`` a line.

    ``time`` is in seconds since the epoch. A line is in the file when ``append`` returns. JSON knows neither
    NaN nor infinity: both are written as null.

    Args:
        run_dir: the run's folder; created.

    """

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / METRICS_FILE
        # Line buffering: every line reaches the file whole and at once.
        self._file = self.path.open("a", buffering=1, encoding="utf-8")

    def append(self, metrics: Mapping[str, float | None], step: int) -> dict[str, Any]:
        """Append one line, and return it."""
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, "time": round(time.time(), 3), **finite}
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        return line

    def size(self) -> int:
        """Bytes of the file, all of them on the disk."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> None:
        """Leave the first ``size`` bytes."""
        self._file.truncate(min(size, self.size()))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``."""
    with (run_dir / METRICS_FILE).open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                yield json.loads(text)
            except ValueError as error:
                raise ValueError(f"{file.name}, line {number} must be JSON ({error}); remove the line") from error


class MlflowRun:
    """A run in the MLflow store of ``root``, under the experiment of that name, created if need be.

    Metrics are buffered and written with one call every ``FLUSH_SECONDS`` or ``MAX_METRICS``, and at the end.
    Nothing is written twice: a metric that has its value for a step, or a parameter that is there, is skipped.

    Args:
        root: the folder of all runs.
        experiment: name of the experiment.
        run_name: name of the run, need not be unique.
        run_dir: keeps the run's id in ``mlflow.json``; a run folder that has one goes on with that run.
        sweep: name of the sweep whose ``SweepRun`` becomes the parent, if the store has it; empty for none.

    Attributes:
        run_id: MLflow's id of the run.

    """

    def __init__(self, root: Path, experiment: str, run_name: str, run_dir: Path, sweep: str = "") -> None:
        self._client = _client(ensure_store(root))
        self._logged: set[tuple[str, int]] = set()
        self._params: set[str] = set()
        self._pending: list[Metric] = []
        self._flushed = time.monotonic()
        known = self._known_run(run_dir / RUN_ID_FILE)
        if known is None:
            experiment_id = _experiment_id(self._client, root, experiment)
            parent = _sweep_run_id(self._client, sweep) if sweep else None
            # As MLflow itself marks a nested run.
            tags = {"mlflow.parentRunId": parent} if parent else {}
            known = str(self._client.create_run(experiment_id, run_name=run_name, tags=tags).info.run_id)
            with replacing(run_dir / RUN_ID_FILE) as partial:
                partial.write_text(json.dumps({"run_id": known}) + "\n", encoding="utf-8")
        self.run_id = known

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Write all parameters, nested mappings as dotted keys; MLflow cuts values beyond 6,000 characters."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)) for key, value in flatten(params) if key not in self._params]
        for start in range(0, len(entries), MAX_PARAMS):
            self._client.log_batch(self.run_id, params=entries[start : start + MAX_PARAMS])

    def log_lines(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines of ``metrics.jsonl`` to the buffer, and write it when it is full or old."""
        from mlflow.entities import Metric

        for line in lines:
            step, now = line["step"], int(line["time"] * 1000)
            for name, value in line.items():
                if name in ("step", "time") or value is None or (name, step) in self._logged:
                    continue
                self._logged.add((name, step))
                self._pending.append(Metric(name, value, now, step))
        if len(self._pending) >= MAX_METRICS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def log_artifact(self, path: Path) -> None:
        """Copy a file, or a folder under its name, to the run's artifacts."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
        else:
            self._client.log_artifact(self.run_id, str(path))

    def flush(self) -> None:
        """Write the buffer."""
        for start in range(0, len(self._pending), MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=self._pending[start : start + MAX_METRICS])
        self._pending = []
        self._flushed = time.monotonic()

    def close(self, status: Status = Status.FINISHED) -> None:
        """Write the buffer and set the run's status."""
        self.flush()
        self._client.set_terminated(self.run_id, status=str(status))

    def _known_run(self, path: Path) -> str | None:
        """The run of an earlier process, with what it has logged, unless there is none in the store."""
        from mlflow.exceptions import MlflowException

        try:
            run_id = str(json.loads(path.read_bytes())["run_id"])
            run = self._client.get_run(run_id)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} must hold an id of MLflow ({error!r}); remove it for a new run") from error
        except MlflowException as error:
            # A store that cannot be read now may well hold the run.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        self._params = set(run.data.params)
        for name in run.data.metrics:
            self._logged |= {(name, metric.step) for metric in self._client.get_metric_history(run_id, name)}
        self._client.update_run(run_id, status="RUNNING")
        return run_id


class SweepRun:
    """The MLflow run of a sweep, parent of its jobs' runs: made by the one process that starts the jobs, before them.

    Where MLflow fails, that is one warning, and the jobs' runs have no parent.

    Args:
        root: the folder of all runs.
        experiment: name of the experiment, created if need be.
        sweep: the sweep's name, no other sweep's in ``root``; letters, digits, ``.``, ``-`` and ``_``. One that has a
            run already goes on with it.
        overrides: of the sweep, ``key=value``; the run's parameters.

    """

    def __init__(self, root: Path, experiment: str, sweep: str, overrides: Iterable[str]) -> None:
        self._run: tuple[MlflowClient, str] | None = None
        try:
            client = _client(ensure_store(root))
            run_id = _sweep_run_id(client, sweep)
            if run_id is None:
                experiment_id = _experiment_id(client, root, experiment)
                run = client.create_run(experiment_id, run_name=f"sweep.{sweep}", tags={SWEEP_TAG: sweep})
                run_id = str(run.info.run_id)
                # Of two for one key the last one counts.
                for key, value in dict(override.lstrip("+~").partition("=")[::2] for override in overrides).items():
                    client.log_param(run_id, key, value)
            else:
                client.update_run(run_id, status="RUNNING")
            self._run = client, run_id
        except Exception as error:
            self._warn(error)

    def close(self, status: Status) -> None:
        """Set the run's status."""
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


def _sweep_run_id(client: MlflowClient, sweep: str) -> str | None:
    """Id of a sweep's own run."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, filter_string=f"tags.`{SWEEP_TAG}` = '{sweep}'", max_results=1)
    return str(found[0].info.run_id) if found else None


class RunTracker:
    """Records a run: JSON lines always, and MLflow for as long as it works.

    MLflow's first failure is one warning and the last that the run asks of it; ``textdistill track`` completes
    the MLflow run from the JSON lines.

    Args:
        run_dir: the run's folder.
        open_mlflow: None for JSON lines only.

    """

    def __init__(self, run_dir: Path, open_mlflow: Callable[[], MlflowRun] | None) -> None:
        self._run_dir = run_dir
        self._lines = JsonLines(run_dir)
        self._mlflow: MlflowRun | None = None
        if open_mlflow is not None:
            self._guard(lambda: setattr(self, "_mlflow", open_mlflow()))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record the run's configuration; ``config.yaml`` of the run folder holds it in any case."""
        self._beside(lambda mlflow: mlflow.log_params(params))

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Record numbers that belong to outer step ``step``; those that are None are skipped."""
        line = self._lines.append(metrics, step)
        self._beside(lambda mlflow: mlflow.log_lines([line]))

    def log_artifact(self, path: Path) -> None:
        """Record a copy of a file or folder of the run folder under its name."""
        self._beside(lambda mlflow: mlflow.log_artifact(path))

    def mark(self) -> int:
        """Make what is recorded so far last; the position in the record, for a run that goes on from here."""
        self._beside(lambda mlflow: mlflow.flush())
        return self._lines.size()

    def rewind(self, mark: int) -> None:
        """Go on from a position of ``mark``, 0 for the start; MLflow gets what it has missed until there."""
        self._lines.cut(mark)
        self._beside(lambda mlflow: mlflow.log_lines(read_lines(self._run_dir)))

    def close(self, status: Status = Status.FINISHED) -> None:
        """Write what is pending and end the run."""
        self._lines.close()
        self._beside(lambda mlflow: mlflow.close(status))

    def _beside(self, work: Callable[[MlflowRun], None]) -> None:
        if (mlflow := self._mlflow) is not None:
            self._guard(lambda: work(mlflow))

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        # Of MLflow's own, of its database's, of the network's or of the disk's: none is worth the run.
        except Exception as error:
            self._mlflow = None
            reason = str(error).strip().partition("\n")[0]
            logger.warning(
                "MLflow failed (%s: %s); the run goes on and is recorded in %s; afterwards, textdistill track %s"
                " completes the MLflow run",
                type(error).__name__, reason, self._lines.path, self._run_dir,
            )  # fmt: skip
            logger.debug("traceback", exc_info=error)


def open_tracker(
    tracking: Tracking, run_dir: Path, root: Path, experiment: str, run_name: str, sweep: str = ""
) -> RunTracker:
    """Start recording a run, or go on.

    Args:
        tracking: ``mlflow`` or ``none``.
        run_dir: the run's folder, where ``metrics.jsonl`` goes; created if need be.
        root: the folder of all runs, where the MLflow store lives; created if need be.
        experiment: MLflow's experiment, shared by runs that are compared.
        run_name: MLflow's name of the run, need not be unique.
        sweep: name of the sweep that the run belongs to; empty for none.

    """
    if tracking is Tracking.none:
        return RunTracker(run_dir, None)
    return RunTracker(run_dir, lambda: MlflowRun(root, experiment, run_name, run_dir, sweep))


def ensure_store(root: Path) -> str:
    """Create the MLflow store of ``root`` unless it is there; safe to call from parallel jobs at once.

    Returns:
        Its tracking URI, ``sqlite:///`` and the absolute path of ``root/mlflow.db``.

    """
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    with FileLock(root / "mlflow.db.lock", timeout=STORE_SECONDS):
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
        return client.create_experiment(name, artifact_location=(root.resolve() / ARTIFACTS).as_uri())
    except MlflowException:
        existing = client.get_experiment_by_name(name)
        if existing is None:
            raise
        return str(existing.experiment_id)


def flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings with their dotted keys."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
