"""Recording a run: JSON lines always, MLflow in a store that parallel jobs and ``mlflow server`` can read."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
from omegaconf import OmegaConf

from tests.support.lines import lines_of
from textdistill.commands.reports import track
from textdistill.config import RunConfig, load_run_config
from textdistill.runs import mlflow
from textdistill.runs.folder import RunFolder
from textdistill.runs.metrics import MetricLine, flatten, read_lines
from textdistill.runs.mlflow import MlflowRun, Status, SweepRun
from textdistill.runs.mlflow_store import Destination, MlflowConfig, ensure_store, open_client
from textdistill.runs.tracker import RunTracker, Tracking, open_tracker


def test_json_lines_go_on_where_they_ended(tmp_path: Path) -> None:
    for step in range(2):
        tracker = RunTracker(RunFolder(tmp_path), None)
        tracker.log_metrics({"loss": 1.0}, step)
        tracker.close(Status.FAILED if step == 0 else Status.FINISHED)
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 1]


def test_rewind_cuts_the_lines_after_the_mark(tmp_path: Path) -> None:
    tracker = RunTracker(RunFolder(tmp_path), None)
    assert tracker.mark() == 0
    tracker.log_metrics({"größe": 1.0}, 1)
    mark = tracker.mark()
    for step in (2, 3):
        tracker.log_metrics({"loss": 1.0}, step)
    tracker.close()
    # Killed while it wrote: what follows the mark may be half a line.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ti')
    again = RunTracker(RunFolder(tmp_path), None)
    again.rewind(mark)
    assert [line["step"] for line in lines_of(tmp_path)] == [1]
    again.log_metrics({"loss": 2.0}, 2)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]
    again.rewind(again.mark())
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]
    again.rewind(10_000)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]
    again.rewind(0)
    assert lines_of(tmp_path) == []
    again.log_metrics({"loss": 3.0}, 1)
    assert [line["loss"] for line in lines_of(tmp_path)] == [3.0]
    again.close()


def test_tracking_none_does_not_import_mlflow(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from textdistill.runs.folder import RunFolder
from textdistill.runs.tracker import Tracking, open_tracker
root = Path(sys.argv[1])
def choose(record):
    raise AssertionError("without MLflow there is nothing to choose")

tracker = open_tracker(Tracking.none, RunFolder(root / "run"), choose, "name")
tracker.log_params({"a": {"b": 1}})
tracker.log_metrics({"loss": 1.0}, 1)
tracker.log_artifact(root / "run")
tracker.close()
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len(lines_of(tmp_path / "run")) == 1


# --- MLflow


class FakeClient:
    """Stands for the MLflow client and remembers the calls; those named in ``errors`` raise."""

    def __init__(self, **errors: Exception) -> None:
        self.errors = errors
        self.calls: list[str] = []
        self.batches: list[dict[str, list[Any]]] = []
        self.status = ""

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.errors:
            raise self.errors[name]

    def log_batch(self, run_id: str, **entries: list[Any]) -> None:
        self._called(next(iter(entries)))
        self.batches.append({kind: list(values) for kind, values in entries.items()})

    def log_artifact(self, run_id: str, path: str) -> None:
        self._called("artifact")

    def set_terminated(self, run_id: str, status: str) -> None:
        self._called("terminated")
        self.status = status


def run_of(client: FakeClient) -> MlflowRun:
    """A run that exists in no store."""
    return MlflowRun(cast(Any, client), "run")


@pytest.fixture
def fake() -> tuple[MlflowRun, FakeClient]:
    client = FakeClient()
    return run_of(client), client


def beside(root: Path, experiment: str) -> Callable[..., Destination]:
    """Chooses the default store of a folder of runs."""
    return lambda record=None: Destination.of(MlflowConfig(), root, experiment, record)


def line(step: int, **metrics: float | None) -> MetricLine:
    return MetricLine(step, 1e9 + step, metrics)


def test_few_calls_a_minute(fake: tuple[MlflowRun, FakeClient], monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute at one step a second makes three calls and loses nothing."""
    run, client = fake
    start = run._flushed
    for second in range(1, 61):
        monkeypatch.setattr(time, "monotonic", lambda now=start + second: now)
        run.log_lines([line(second, loss=float(second), lr=0.1, absent=None)])
    assert [len(batch["metrics"]) for batch in client.batches] == [40, 40, 40]
    run.log_lines([line(61, loss=61.0)])
    assert len(client.batches) == 3
    run.close()
    logged = [metric for batch in client.batches for metric in batch["metrics"] if metric.key == "loss"]
    assert [(metric.step, metric.value) for metric in logged] == [(n, float(n)) for n in range(1, 62)]
    # In milliseconds, and the line's own, whenever it is written.
    assert [metric.timestamp for metric in logged] == [(10**9 + n) * 1000 for n in range(1, 62)]
    assert client.status == "FINISHED"


def test_no_call_exceeds_the_limits_of_mlflow(fake: tuple[MlflowRun, FakeClient]) -> None:
    run, client = fake
    for step in range(2):
        run.log_lines([line(step, **{f"m{index}": 1.0 for index in range(999)})])
    assert [len(batch["metrics"]) for batch in client.batches] == [1000, 998]
    client.batches.clear()
    run.log_params({f"p{index}": index for index in range(250)})
    assert [len(batch["params"]) for batch in client.batches] == [100, 100, 50]


def test_line_that_comes_again_is_not_written_again(fake: tuple[MlflowRun, FakeClient]) -> None:
    run, client = fake
    run.log_lines([line(1, loss=1.0), line(2, loss=0.5)])
    run.flush()
    run.log_lines([line(1, loss=1.0, lr=0.1), line(2, loss=0.5), line(3, loss=0.25)])
    run.flush()
    written = [(metric.key, metric.step) for batch in client.batches for metric in batch["metrics"]]
    assert written == [("loss", 1), ("loss", 2), ("lr", 1), ("loss", 3)]


LOCKED = sqlite3.OperationalError("database is locked\nSQL: INSERT ...")
FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("errors", "reason", "calls"),
    [
        pytest.param(None, r"OperationalError: database is locked\)", [], id="opening"),
        pytest.param({"params": LOCKED}, r"OperationalError: database is locked\)", ["params"], id="params"),
        pytest.param(
            {"metrics": LOCKED}, r"OperationalError: database is locked\)", ["params", "metrics"], id="metrics"
        ),
        pytest.param(
            {"artifact": FULL},
            "OSError: .*No space left on device",
            ["params", "metrics", "metrics", "artifact"],
            id="artifacts",
        ),
        pytest.param(
            {"terminated": LOCKED},
            r"OperationalError: database is locked\)",
            ["params", "metrics", "metrics", "artifact", "metrics", "terminated"],
            id="the end",
        ),
    ],
)
def test_mlflow_that_fails_is_warned_of_once_and_left_alone(
    errors: dict[str, Exception] | None,
    reason: str,
    calls: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = FakeClient(**(errors or {}))

    def open_mlflow() -> MlflowRun:
        if errors is None:
            raise LOCKED
        return run_of(client)

    tracker = RunTracker(RunFolder(tmp_path), open_mlflow)
    tracker.log_params({"a": 1})
    for step in (1, 2):
        tracker.log_metrics({"loss": 1.0}, step)
        tracker.mark()
    tracker.log_artifact(tmp_path / "run.log")
    tracker.log_metrics({"loss": 1.0}, 3)
    tracker.close()
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    expected = rf"MLflow failed \(.*{reason}.*recorded in {tmp_path}/metrics\.jsonl; .*textdistill track {tmp_path} "
    assert re.match(expected, warning.getMessage())
    assert "\n" not in warning.getMessage()
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3]
    assert client.calls == calls


def test_interrupt_is_no_failure_of_mlflow(tmp_path: Path) -> None:
    def open_mlflow() -> MlflowRun:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RunTracker(RunFolder(tmp_path), open_mlflow)


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
    tracker = open_tracker(Tracking.mlflow, RunFolder(run_dir), beside(root, "experiment"), "a run")
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
    assert len(lines_of(run_dir)) == 6
    return run_id_of(run_dir)


def run_id_of(run_dir: Path) -> str:
    run_id: str = json.loads((run_dir / "mlflow.json").read_text())["run_id"]
    return run_id


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
    # What JSON does not know is in no line, and lines are all that MLflow gets.
    assert run.data.metrics.keys() == {"train.loss", "lr/0"}

    assert {entry.path for entry in client.list_artifacts(finished_run)} == {"distilled", "run.log"}
    assert [entry.path for entry in client.list_artifacts(finished_run, "distilled")] == ["distilled/config.json"]
    # The server itself reads them too, as a browser asks.
    with urllib.request.urlopen(f"{server}/get-artifact?path=run.log&run_uuid={finished_run}") as response:
        assert response.read() == b"hello"
    assert list((root / "mlartifacts").rglob("run.log")) == [
        root / "mlartifacts" / finished_run / "artifacts" / "run.log"
    ]


@pytest.mark.parametrize("status", Status)
def test_status_at_the_end(root: Path, status: Status, tmp_path: Path) -> None:
    run = MlflowRun.open(beside(root, "status"), "run", RunFolder(tmp_path))
    assert run.client.get_run(run.run_id).info.status == "RUNNING"
    run.log_lines([line(1, loss=1.0)])
    run.close(status)
    found = run.client.get_run(run.run_id)
    assert found.info.status == status
    assert found.data.metrics == {"loss": 1.0}


def test_store_is_created_once_and_kept(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(root)
    assert ensure_store(Path()) == ensure_store(root) == f"sqlite:///{root.resolve()}/mlflow.db"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (MlflowRun.open(beside(root, "kept"), name, RunFolder(tmp_path / name)) for name in ("a", "b"))
    assert first.run_id != second.run_id
    (experiment,) = [e for e in first.client.search_experiments() if e.name == "kept"]
    assert len(first.client.search_runs([experiment.experiment_id])) == 2
    assert not (root / "mlruns").exists()
    first.close()
    second.close()


# --- A run that goes on, or is completed from its files


def history(root: Path, run_id: str) -> dict[str, list[tuple[int, float, int]]]:
    """Every value of every metric: step, value, time in milliseconds."""
    client = open_client(ensure_store(root))
    return {
        name: sorted(
            (metric.step, metric.value, metric.timestamp) for metric in client.get_metric_history(run_id, name)
        )
        for name in client.get_run(run_id).data.metrics
    }


def history_by_lines(run_dir: Path) -> dict[str, list[tuple[int, float, int]]]:
    """What it has to be, from the lines."""
    found: dict[str, list[tuple[int, float, int]]] = {}
    for metrics in lines_of(run_dir):
        step, seconds = metrics.pop("step"), metrics.pop("time")
        for name, value in metrics.items():
            if value is not None:
                found.setdefault(name, []).append((step, value, int(seconds * 1000)))
    return found


def open_run(root: Path, run_dir: Path) -> RunTracker:
    return open_tracker(Tracking.mlflow, RunFolder(run_dir), beside(root, "going on"), "run")


def test_run_goes_on_as_the_same_mlflow_run(root: Path, tmp_path: Path) -> None:
    """What MLflow got after the checkpoint stays there and is not written twice; what it missed comes."""
    tracker = open_run(root, tmp_path)
    run_id = run_id_of(tmp_path)
    tracker.log_params({"a": 1})
    tracker.log_metrics({"loss": 1.0}, 1)
    mark = tracker.mark()
    tracker.log_metrics({"loss": 0.5}, 2)
    tracker.close(Status.FAILED)
    before = history(root, run_id)
    assert [step for step, *_ in before["loss"]] == [1, 2]

    again = open_run(root, tmp_path)
    assert run_id_of(tmp_path) == run_id
    assert again._mlflow is not None
    assert again._mlflow.client.get_run(run_id).info.status == "RUNNING"
    # A parameter that MLflow has may differ, and would be refused.
    again.log_params({"a": 2, "b": 3})
    again.rewind(mark)
    time.sleep(0.002)
    for step in (2, 3):
        again.log_metrics({"loss": 1 / step}, step)
    again.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3]
    after = history(root, run_id)
    assert after["loss"][:2] == before["loss"]
    assert after["loss"][2:] == history_by_lines(tmp_path)["loss"][2:]
    run = again._mlflow.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1", "b": "3"}


def test_lines_that_mlflow_missed_come_with_the_next_rewind(root: Path, tmp_path: Path) -> None:
    tracker = RunTracker(RunFolder(tmp_path), None)
    for step in (1, 2):
        tracker.log_metrics({"loss": 1.0, "validation_loss": None if step == 1 else 2.0}, step)
    mark = tracker.mark()
    tracker.close()
    again = open_run(root, tmp_path)
    again.rewind(mark)
    again.close()
    assert history(root, run_id_of(tmp_path)) == history_by_lines(tmp_path)
    assert len(history_by_lines(tmp_path)) == 2


def test_run_that_the_store_does_not_know_is_made_anew(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow.json").write_text(json.dumps({"run_id": "0" * 32}))
    open_run(root, tmp_path).close()
    assert run_id_of(tmp_path) != "0" * 32
    assert history(root, run_id_of(tmp_path)) == {}


def test_store_that_cannot_be_read_is_no_reason_for_a_second_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    first = MlflowRun.open(beside(root, "going on"), "run", RunFolder(tmp_path))
    first.close()

    def locked(*_: Any) -> None:
        raise MlflowException("database is locked")

    monkeypatch.setattr(MlflowClient, "get_run", locked)
    with pytest.raises(MlflowException, match="database is locked"):
        MlflowRun.open(beside(root, "going on"), "run", RunFolder(tmp_path))
    assert run_id_of(tmp_path) == first.run_id


@pytest.fixture
def run_folder(root: Path, tmp_path: Path) -> Path:
    """The folder of a finished run that MLflow has not seen."""
    run_dir = tmp_path / "run"
    config = RunConfig()
    config.base.save_dir_root, config.base.save_dir = str(root), str(run_dir)
    config.base.experiment_name, config.base.run_name = "completed", "its name"
    config.train.save_ckpt_dir = str(run_dir / "checkpoints")
    tracker = RunTracker(RunFolder(run_dir), None)
    for step in range(1, 4):
        tracker.log_metrics({"train_loss": 1 / step, "validation_loss": 2.0 if step == 3 else None}, step)
    tracker.log_metrics({"avg.loss": 0.25, "broken": math.nan}, 3)
    tracker.close()
    OmegaConf.save(OmegaConf.structured(config), run_dir / "config.yaml")
    for name in (".hydra/config.yaml", "checkpoints/best/config.json", "checkpoints/last/config.json", "run.log"):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text(name)
    (run_dir / "results.json").write_text("{}")
    return run_dir


def everything(root: Path, run_id: str, folder: Path) -> dict[str, Any]:
    """All that MLflow has of a run."""
    client = open_client(ensure_store(root))
    run = client.get_run(run_id)
    artifacts = Path(client.download_artifacts(run_id, "", str(folder)))
    files = {str(path.relative_to(artifacts)): path.read_text() for path in artifacts.rglob("*") if path.is_file()}
    shutil.rmtree(folder)
    info = (run.info.run_name, run.info.status, client.get_experiment(run.info.experiment_id).name)
    return {"info": info, "params": run.data.params, "metrics": history(root, run_id), "files": files}


@pytest.mark.parametrize("had", ["nothing", "a part"])
def test_track_completes_a_run_from_its_files(had: str, root: Path, run_folder: Path, tmp_path: Path) -> None:
    if had == "a part":
        part = MlflowRun.open(beside(root, "completed"), "its name", RunFolder(run_folder))
        part.log_params({"train": {"n_eval_model": load_run_config(run_folder).train.n_eval_model}})
        part.log_lines(list(read_lines(run_folder / "metrics.jsonl"))[:1])
        part.flush()
    run_id = track(run_folder)
    assert run_id == run_id_of(run_folder)
    assert had == "nothing" or run_id == part.run_id
    (tmp_path / "files").mkdir()
    found = everything(root, run_id, tmp_path / "files")
    assert found["info"] == ("its name", "FINISHED", "completed")
    assert found["metrics"] == history_by_lines(run_folder)
    assert found["metrics"].keys() == {"train_loss", "validation_loss", "avg.loss"}
    config = asdict(load_run_config(run_folder))
    assert found["params"] == {key: str(value) for key, value in flatten(config)}
    assert found["files"] == {
        ".hydra/config.yaml": ".hydra/config.yaml",
        "best/config.json": "checkpoints/best/config.json",
        "last/config.json": "checkpoints/last/config.json",
        "run.log": "run.log",
        "results.json": "{}",
    }
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    assert track(run_folder) == run_id
    (tmp_path / "files").mkdir()
    assert everything(root, run_id, tmp_path / "files") == found
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before


def test_track_of_a_run_without_results_says_failed(root: Path, run_folder: Path) -> None:
    (run_folder / "results.json").unlink()
    run_id = track(run_folder)
    assert open_client(ensure_store(root)).get_run(run_id).info.status == "FAILED"


# --- Sweeps


def test_run_of_a_sweep_has_its_run_as_parent(root: Path, tmp_path: Path) -> None:
    """So has one that is completed later; runs of no sweep, or of one that the store does not know, have none."""
    sweep = SweepRun(beside(root, "sweeps"), "a-sweep", ["a=1", "+b=[1,2]", "a=1,2"])
    parents = {}
    for name, of in {"job": "a-sweep", "plain": "", "stray": "another"}.items():
        (tmp_path / name).mkdir()
        run = MlflowRun.open(beside(root, "sweeps"), name, RunFolder(tmp_path / name), of)
        run.close()
        parents[name] = run.client.get_run(run.run_id).data.tags.get("mlflow.parentRunId")
    assert parents["plain"] is parents["stray"] is None
    found = run.client.get_run(parents["job"])
    assert (found.info.run_name, found.info.status) == ("sweep.a-sweep", "RUNNING")
    assert found.data.params == {"a": "1,2", "b": "[1,2]"}
    sweep.close(Status.FAILED)
    assert run.client.get_run(parents["job"]).info.status == "FAILED"
    again = SweepRun(beside(root, "sweeps"), "a-sweep", ["a=3"])
    assert run.client.get_run(parents["job"]).info.status == "RUNNING"
    again.close(Status.FINISHED)
    found = run.client.get_run(parents["job"])
    assert (found.info.status, found.data.params["a"]) == ("FINISHED", "1,2")


def test_sweep_whose_own_run_fails_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def locked(_: Path) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(mlflow, "open_store", locked)
    SweepRun(beside(root, "sweeps"), "locked", []).close(Status.FINISHED)
    (record,) = caplog.records
    assert record.getMessage() == (
        "MLflow failed (OperationalError: database is locked) in the sweep's own run; its jobs go on"
    )


def test_track_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must be a run folder with a config\.yaml"):
        track(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- Parallel jobs


JOB = """
import logging, sys, time
from pathlib import Path
from textdistill.runs.folder import RunFolder
from textdistill.runs.mlflow_store import Destination, MlflowConfig, open_client
from textdistill.runs.tracker import Tracking, open_tracker
root, name = Path(sys.argv[1]), sys.argv[2]
logging.basicConfig(level=logging.INFO, stream=sys.stderr)  # as Hydra sets it
open_client("sqlite://")  # the import, done before the start signal
(root / name).mkdir()
while not (root / "go").exists():
    time.sleep(0.001)
choose = lambda record: Destination.of(MlflowConfig(), root, "parallel", record)
tracker = open_tracker(Tracking.mlflow, RunFolder(root / name), choose, name)
tracker.log_metrics({"loss": 1.0}, 1)
tracker.close()
from mlflow.telemetry.utils import is_telemetry_disabled
assert is_telemetry_disabled()
"""


def test_two_jobs_start_at_once_on_a_fresh_root(tmp_path: Path) -> None:
    """Both create the store and the experiment; nothing is lost, and neither says a word."""
    names = ["first", "second"]
    # Bare, since MLflow turns its telemetry off by itself under pytest and in CI.
    environment = {key: os.environ[key] for key in ("PATH", "HOME", "PYTHONPATH") if key in os.environ}
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
    assert [len(error.splitlines()) for error in errors] == [1, 1], errors
    assert all("MLflow: sqlite:///" in error for error in errors)

    client = open_client(ensure_store(tmp_path))
    (experiment,) = [e for e in client.search_experiments() if e.name == "parallel"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == names
    assert [run.data.metrics for run in runs] == [{"loss": 1.0}] * 2
