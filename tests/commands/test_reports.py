"""Completes MLflow runs, after failures of MLflow and of the run."""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.support.fixtures import WithStore
from tests.support.runs import (
    Compose,
    lines_of,
    our_warnings,
    strict_json,
)
from textdistill.commands.distill import distill, resume
from textdistill.commands.reports import track
from textdistill.runs import mlflow_store
from textdistill.training.interrupts import Interrupted
from textdistill.training.outer_step import OuterStep

# --- MLflow that fails, and runs that it sees in pieces


TRACKED = ["tracking=mlflow", "train.log_interval=1", "base.experiment_name=e", "train.checkpoint_interval=2"]


def in_mlflow(root: Path, run_dir: Path) -> tuple[Any, dict[tuple[str, int], tuple[float, int]]]:
    """The run of a folder, and its metrics: value and time in milliseconds by key and step, each once."""
    client = mlflow_store.open_client(mlflow_store.ensure_store(root))
    run = client.get_run(strict_json((run_dir / "mlflow.json").read_text())["run_id"])
    values = [metric for name in run.data.metrics for metric in client.get_metric_history(run.info.run_id, name)]
    found = {(metric.key, metric.step): (metric.value, metric.timestamp) for metric in values}
    assert len(found) == len(values), "a step has two values"
    return run, found


def in_lines(run_dir: Path) -> dict[tuple[str, int], tuple[float, int]]:
    return {
        (name, line["step"]): (value, int(line["time"] * 1000))
        for line in lines_of(run_dir)
        for name, value in line.items()
        if name not in ("step", "time")
    }


def artifacts_of(root: Path, run: Any) -> set[str]:
    client = mlflow_store.open_client(mlflow_store.ensure_store(root))
    return {file.path for file in client.list_artifacts(run.info.run_id)}


def test_run_that_mlflow_failed_in_is_completed(
    composed: Compose,
    with_store: WithStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    with_store(tmp_path)
    log_batch, calls = MlflowClient.log_batch, []

    def locked(self: MlflowClient, *args: Any, **entries: Any) -> None:
        if "metrics" in entries and len(calls) == 2:
            raise sqlite3.OperationalError("database is locked")
        calls.append(entries)
        log_batch(self, *args, **entries)

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", locked)
        result = distill(composed(*TRACKED, "train.max_steps=4"), {"overrides.yaml": "x"})
    (warning,) = our_warnings(caplog)
    assert f"OperationalError: database is locked); the run goes on and is recorded in {run_dir}/" in warning
    assert f"textdistill track {run_dir} completes" in warning
    assert (run_dir / "results.json").exists()
    run, found = in_mlflow(tmp_path, run_dir)
    assert run.info.status == "RUNNING"
    assert 0 < len(found) < len(in_lines(run_dir))

    assert track(run_dir) == run.info.run_id
    run, found = in_mlflow(tmp_path, run_dir)
    assert found == in_lines(run_dir)
    assert found["avg.loss", 4][0] == result.metrics["loss"].mean
    assert run.info.status == "FINISHED"
    assert run.data.params["train.max_steps"] == "4"
    assert artifacts_of(tmp_path, run) == {".hydra", "best", "last", "run.log", "results.json"}


def test_mlflow_run_of_a_run_that_died_goes_on(
    composed: Compose, with_store: WithStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the lines of a step beyond the last checkpoint, which come again and are not written twice."""
    with_store(tmp_path)
    step, calls = OuterStep.__call__, iter(range(1, 100))

    def dying(*args: Any) -> Any:
        if next(calls) == 4:
            raise RuntimeError("died")
        return step(*args)

    monkeypatch.setattr(OuterStep, "__call__", dying)
    run_dir = tmp_path / "run"
    with pytest.raises(RuntimeError, match="died"):
        distill(composed(*TRACKED, "train.max_steps=5", "train.val_steps=3"))
    run, before = in_mlflow(tmp_path, run_dir)
    assert run.info.status == "FAILED"
    assert before == in_lines(run_dir)
    assert {step for key, step in before if key == "train_loss"} == {1, 2, 3}
    assert {step for key, step in before if key == "validation_loss"} == {0, 3}
    resume(run_dir)
    again, after = in_mlflow(tmp_path, run_dir)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert {key: value for key, value in after.items() if key in before} == before
    lines = in_lines(run_dir)
    assert after.keys() == lines.keys()
    for (name, step_of), (value, _) in after.items():
        assert name.endswith("_seconds") or value == lines[name, step_of][0]
    client = mlflow_store.open_client(mlflow_store.ensure_store(tmp_path))
    assert len(client.search_runs([again.info.experiment_id])) == 1


def test_mlflow_run_of_an_interrupted_run_is_killed(
    composed: Compose, with_store: WithStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_store(tmp_path)
    step = OuterStep.__call__

    def interrupted(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(OuterStep, "__call__", interrupted)
    with pytest.raises(Interrupted):
        distill(composed(*TRACKED, "train.max_steps=5"))
    run, _ = in_mlflow(tmp_path, tmp_path / "run")
    assert run.info.status == "KILLED"
