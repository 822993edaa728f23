"""Recording a run: JSON lines always, MLflow in a store that parallel jobs and ``mlflow server`` can read."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from textdistill import tracking
from textdistill.tracking import JsonLinesTracker, MlflowTracker, Tracking, ensure_store, open_tracker

# --- JSON lines


def read_lines(run_dir: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_json_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    tracker = JsonLinesTracker(tmp_path / "new" / "run")
    before = time.time()
    tracker.log_metrics({"train.loss": 0.5, "absent": None}, step=3)
    (line,) = read_lines(tmp_path / "new" / "run")
    assert before - 1e-3 <= line.pop("time") <= time.time() + 1e-3
    assert line == {"step": 3, "train.loss": 0.5}
    tracker.log_metrics({"train.loss": 0.25}, step=4)
    assert [line["step"] for line in read_lines(tmp_path / "new" / "run")] == [3, 4]
    tracker.close()


def test_json_lines_hold_valid_json_only(tmp_path: Path) -> None:
    tracker = JsonLinesTracker(tmp_path)
    tracker.log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "Zürich": 1}, step=0)
    (line,) = read_lines(tmp_path)
    assert {**line, "time": 0} == {"step": 0, "time": 0, "a": None, "b": None, "c": None, "Zürich": 1.0}
    tracker.close()


def test_json_lines_go_on_where_they_ended(tmp_path: Path) -> None:
    for step in range(2):
        tracker = JsonLinesTracker(tmp_path)
        tracker.log_metrics({"loss": 1.0}, step)
        tracker.close(failed=step == 0)
    assert [line["step"] for line in read_lines(tmp_path)] == [0, 1]


def test_tracking_none_does_not_import_mlflow(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from textdistill.tracking import Tracking, open_tracker
root = Path(sys.argv[1])
tracker = open_tracker(Tracking.none, root / "run", root, "experiment", "name")
tracker.log_params({"a": {"b": 1}})
tracker.log_metrics({"loss": 1.0}, 1)
tracker.log_artifact(root / "run")
tracker.close()
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len(read_lines(tmp_path / "run")) == 1


# --- MLflow


class FakeClient:
    """Stands for the MLflow client and remembers the calls."""

    def __init__(self) -> None:
        self.batches: list[dict[str, list[Any]]] = []
        self.status = ""

    def log_batch(self, run_id: str, **entries: list[Any]) -> None:
        self.batches.append({kind: list(values) for kind, values in entries.items()})

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status = status


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> tuple[MlflowTracker, FakeClient]:
    """A tracker of a run that exists in no store."""
    client = FakeClient()
    tracker = object.__new__(MlflowTracker)
    tracker._client = client
    tracker.run_id = "run"
    tracker._pending = []
    tracker._flushed = time.monotonic()
    return tracker, client


def test_few_calls_a_minute(fake: tuple[MlflowTracker, FakeClient], monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute at one step a second makes three calls and loses nothing."""
    tracker, client = fake
    start = tracker._flushed
    for second in range(1, 61):
        monkeypatch.setattr(time, "monotonic", lambda now=start + second: now)
        tracker.log_metrics({"loss": float(second), "lr": 0.1, "absent": None}, step=second)
    assert [len(batch["metrics"]) for batch in client.batches] == [40, 40, 40]
    tracker.log_metrics({"loss": 61.0}, step=61)
    assert len(client.batches) == 3
    tracker.close()
    logged = [metric for batch in client.batches for metric in batch["metrics"] if metric.key == "loss"]
    assert [(metric.step, metric.value) for metric in logged] == [(n, float(n)) for n in range(1, 62)]
    assert client.status == "FINISHED"


def test_no_call_exceeds_the_limits_of_mlflow(fake: tuple[MlflowTracker, FakeClient]) -> None:
    tracker, client = fake
    for step in range(2):
        tracker.log_metrics({f"m{index}": 1.0 for index in range(999)}, step)
    assert [len(batch["metrics"]) for batch in client.batches] == [1000, 998]
    client.batches.clear()
    tracker.log_params({f"p{index}": index for index in range(250)})
    assert [len(batch["params"]) for batch in client.batches] == [100, 100, 50]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with a store; the space in its name must not matter."""
    root = tmp_path_factory.mktemp("all runs")
    ensure_store(root)
    return root


PARAMS = {
    "data": {"task_name": "sst2", "text_columns": ["a", "b"]},
    "train": {"lr": {"lr_labels": None, "fp16": False}},
    "many": {str(index): index for index in range(150)},
    "long": "x" * 10_000,
}


@pytest.fixture(scope="module")
def finished_run(root: Path) -> str:
    """A run with everything, recorded through ``open_tracker``; its id."""
    run_dir = root / "experiment" / "run"
    tracker = open_tracker(Tracking.mlflow, run_dir, root, "experiment", "a run")
    (run_dir / "distilled").mkdir()
    (run_dir / "distilled" / "config.json").write_text("{}")
    (run_dir / "run.log").write_text("hello")
    tracker.log_params(PARAMS)
    for step in range(5):
        tracker.log_metrics({"train.loss": 1.0 / (step + 1), "lr/0": None if step % 2 else 0.1}, step)
    tracker.log_metrics({"broken": math.nan}, 5)
    tracker.log_artifact(run_dir / "distilled")
    tracker.log_artifact(run_dir / "run.log")
    tracker.close()
    assert len(read_lines(run_dir)) == 6
    (mlflow_tracker,) = [part for part in tracker.trackers if isinstance(part, MlflowTracker)]
    return mlflow_tracker.run_id


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[str]:
    """``mlflow server`` on the store, as the README starts it; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", ensure_store(root)]
    command += ["--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    log = root / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=root,
            stdout=output,
            stderr=output,
            # Without its workers for judging language models: a fifth of the processes, half of the start.
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300  # 10 s on an idle machine
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_server_shows_the_run(root: Path, finished_run: str, server: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("experiment")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == finished_run
    assert run.info.run_name == "a run"
    assert run.info.status == "FINISHED"

    params = run.data.params
    assert params["data.task_name"] == "sst2"
    assert params["data.text_columns"] == "['a', 'b']"
    assert params["train.lr.lr_labels"] == "None"
    assert params["train.lr.fp16"] == "False"
    assert params["many.149"] == "149"
    assert params["long"].startswith("xxx")
    assert len(params) == 4 + 150 + 1

    history = client.get_metric_history(finished_run, "train.loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1 / (step + 1)) for step in range(5)]
    assert [metric.step for metric in client.get_metric_history(finished_run, "lr/0")] == [0, 2, 4]
    assert math.isnan(run.data.metrics["broken"])

    assert {entry.path for entry in client.list_artifacts(finished_run)} == {"distilled", "run.log"}
    assert [entry.path for entry in client.list_artifacts(finished_run, "distilled")] == ["distilled/config.json"]
    # The server itself reads them too, as a browser asks.
    with urllib.request.urlopen(f"{server}/get-artifact?path=run.log&run_uuid={finished_run}") as response:
        assert response.read() == b"hello"
    assert list((root / "mlartifacts").rglob("run.log")) == [
        root / "mlartifacts" / finished_run / "artifacts" / "run.log"
    ]


@pytest.mark.parametrize(("failed", "status"), [(False, "FINISHED"), (True, "FAILED")])
def test_status_at_the_end(root: Path, failed: bool, status: str) -> None:
    tracker = MlflowTracker(root, "status", "run")
    assert tracker._client.get_run(tracker.run_id).info.status == "RUNNING"
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.close(failed)
    run = tracker._client.get_run(tracker.run_id)
    assert run.info.status == status
    assert run.data.metrics == {"loss": 1.0}


def test_store_is_created_once_and_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert ensure_store(Path()) == ensure_store(root) == f"sqlite:///{root.resolve()}/mlflow.db"
    first, second = MlflowTracker(root, "kept", "a"), MlflowTracker(root, "kept", "b")
    assert first.run_id != second.run_id
    (experiment,) = [e for e in first._client.search_experiments() if e.name == "kept"]
    assert len(first._client.search_runs([experiment.experiment_id])) == 2
    assert not (root / "mlruns").exists()
    first.close()
    second.close()


JOB = """
import logging, sys, time
from pathlib import Path
import textdistill.tracking as tracking
root, name = Path(sys.argv[1]), sys.argv[2]
logging.basicConfig(level=logging.INFO, stream=sys.stderr)  # as Hydra sets it
tracking._client("sqlite://")  # the import, done before the start signal
(root / name).mkdir()
while not (root / "go").exists():
    time.sleep(0.001)
tracker = tracking.open_tracker(tracking.Tracking.mlflow, root / name, root, "parallel", name)
tracker.log_metrics({"loss": 1.0}, 1)
tracker.close()
from mlflow.telemetry.utils import is_telemetry_disabled
assert is_telemetry_disabled()
"""


def test_two_jobs_start_at_once_on_a_fresh_root(tmp_path: Path) -> None:
    """Both create the store and the experiment; nothing is lost, and neither says a word."""
    names = ["first", "second"]
    # Bare, since MLflow turns its telemetry off by itself under pytest and in CI.
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, str(tmp_path), name],
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        for name in names
    ]
    deadline = time.monotonic() + 300
    while not all((tmp_path / name).exists() for name in names) and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    errors = [job.communicate(timeout=300)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    assert errors == ["", ""]

    client = tracking._client(ensure_store(tmp_path))
    (experiment,) = [e for e in client.search_experiments() if e.name == "parallel"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == names
    assert [run.data.metrics for run in runs] == [{"loss": 1.0}] * 2
