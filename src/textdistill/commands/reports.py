"""Implements ``report`` and ``track``, which read the files of runs that ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from textdistill.config import load_run_config
from textdistill.core.processes import Processes
from textdistill.reporting.page import page
from textdistill.reporting.rows import find_results, report_rows
from textdistill.reporting.tables import Format, comma_separated, latex, markdown
from textdistill.runs.metrics import read_lines
from textdistill.runs.mlflow import MlflowRun, Status
from textdistill.runs.mlflow_store import reason


def report(paths: Sequence[str | Path], form: Format = Format.markdown) -> str:
    """Reports the results in files, run folders, and folders of run folders, as one HTML page or as tables.

    Raises:
        FileNotFoundError: a path holds no results.
        ValueError: a file was not written by this package.

    """
    results = find_results(paths)
    if form is Format.html:
        return page(results, Processes().device)
    tables = {Format.markdown: markdown, Format.csv: comma_separated, Format.latex: latex}
    return tables[form](report_rows(results))


def track(run_dir: str | Path) -> str:
    """Completes the MLflow run of a run folder from its files. Creates a missing MLflow run.

    Returns:
        The run's id in MLflow.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: another process is still writing the run.
        OSError: MLflow failed.

    """
    config = load_run_config(Path(run_dir))
    base, folder = config.base, config.run_folder
    with folder.lock():
        try:
            mlflow = MlflowRun.open(config.destination, base.run_name, folder, base.sweep)
            mlflow.log_params(asdict(config))
            mlflow.log_lines(read_lines(folder.metrics))
            for path in folder.artifacts():
                mlflow.log_artifact(path)
            mlflow.close(Status.FINISHED if folder.results.exists() else Status.FAILED)
        except (ValueError, FileNotFoundError):
            raise
        # MLflow, its database and the disk raise errors of many types.
        except Exception as error:
            raise OSError(f"MLflow failed ({reason(error)}); remove the cause and try again") from error
    return mlflow.run_id
