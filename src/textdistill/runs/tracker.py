"""Records a run in its folder and, with ``tracking=mlflow``, in MLflow."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path

from textdistill.runs.folder import RunFolder
from textdistill.runs.metrics import JsonLines, read_lines
from textdistill.runs.mlflow import MlflowRun, Status
from textdistill.runs.mlflow_store import Destination, MlflowRecord, reason

logger = logging.getLogger(__name__)


class Tracking(StrEnum):
    """The value of ``tracking``, which names the tracker that records a run besides ``metrics.jsonl``."""

    mlflow = "mlflow"
    none = "none"


class RunTracker:
    """Records a run: ``metrics.jsonl`` always, and MLflow until it fails.

    The first failure of MLflow is logged as one warning. The run then makes no further call to MLflow.
    ``textdistill track`` completes the MLflow run from ``metrics.jsonl``.

    Args:
        folder: the run's folder.
        open_mlflow: the function that opens the run in MLflow; None for ``metrics.jsonl`` only.

    """

    def __init__(self, folder: RunFolder, open_mlflow: Callable[[], MlflowRun] | None) -> None:
        self._folder = folder
        self._lines = JsonLines(folder.metrics)
        self._mlflow: MlflowRun | None = None
        if open_mlflow is not None:
            self._guard(lambda: setattr(self, "_mlflow", open_mlflow()))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Records the run's configuration in MLflow. The file ``config.yaml`` in the run folder also holds it."""
        self._beside(lambda mlflow: mlflow.log_params(params))

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Records the metrics of outer step ``step``. Values that are None are skipped."""
        line = self._lines.append(metrics, step)
        self._beside(lambda mlflow: mlflow.log_lines([line]))

    def log_artifact(self, path: Path) -> None:
        """Copies a file or folder of the run folder to MLflow under the same name."""
        self._beside(lambda mlflow: mlflow.log_artifact(path))

    def mark(self) -> int:
        """Writes the record to the disk and returns the position of its end."""
        self._beside(lambda mlflow: mlflow.flush())
        return self._lines.size()

    def rewind(self, mark: int) -> None:
        """Drops the record after a position that ``mark`` returned. MLflow gets the earlier lines that it lacks."""
        self._lines.cut(mark)
        self._beside(lambda mlflow: mlflow.log_lines(read_lines(self._folder.metrics)))

    def close(self, status: Status = Status.FINISHED) -> None:
        """Writes the pending metrics and ends the run."""
        self._lines.close()
        self._beside(lambda mlflow: mlflow.close(status))

    def _beside(self, work: Callable[[MlflowRun], None]) -> None:
        if (mlflow := self._mlflow) is not None:
            self._guard(lambda: work(mlflow))

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        # MLflow, its database, the network and the disk raise errors of many types. None of them may end the run.
        except Exception as error:
            self._mlflow = None
            logger.warning(
                "MLflow failed (%s); the run goes on and is recorded in %s; afterwards, textdistill track %s"
                " completes the MLflow run",
                reason(error), self._lines.path, shlex.quote(str(self._folder.path)),
            )  # fmt: skip
            logger.debug("traceback", exc_info=error)


def open_tracker(
    tracking: Tracking,
    folder: RunFolder,
    choose: Callable[[MlflowRecord | None], Destination],
    run_name: str,
    sweep: str = "",
) -> RunTracker:
    """Starts to record a run, or continues the record of an earlier process.

    Args:
        tracking: ``mlflow`` or ``none``.
        folder: the run's folder. A missing folder is created.
        choose: returns the place where MLflow records the run; receives what the folder notes of it.
        run_name: the name of the run in MLflow, which need not be unique.
        sweep: the name of the sweep that the run belongs to; empty for none.

    """
    if tracking is Tracking.none:
        return RunTracker(folder, None)
    return RunTracker(folder, lambda: MlflowRun.open(choose, run_name, folder, sweep))
