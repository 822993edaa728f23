"""Where MLflow records runs: which store is chosen, how it is made, and what a store that fails costs and says."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from tests.support.fixtures import WithStore
from textdistill.commands.reports import track
from textdistill.config import RunConfig, compose, save_run_config
from textdistill.runs.folder import RunFolder
from textdistill.runs.mlflow import MlflowRun, Status, SweepRun
from textdistill.runs.mlflow_store import (
    Destination,
    MlflowConfig,
    MlflowRecord,
    ensure_store,
    open_client,
    public_uri,
    reason,
    sqlite_path,
    sqlite_uri,
)
from textdistill.runs.tracker import RunTracker, Tracking, open_tracker

SILENT_SECONDS = 45.0


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    # The command line does the same.
    monkeypatch.setattr(logging.getLogger("urllib3"), "level", logging.ERROR)


def choice(root: Path, experiment: str, **keys: str) -> Callable[..., Destination]:
    return lambda record=None: Destination.of(MlflowConfig(**keys), root, experiment, record)


def run_id_of(folder: Path) -> str:
    run_id: str = json.loads((folder / "mlflow.json").read_text())["run_id"]
    return run_id


def warning_of(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return record.getMessage()


# --- Which store


@pytest.mark.parametrize(
    ("key", "variable", "recorded", "chosen"),
    [
        (None, None, None, "sqlite:///{root}/mlflow.db"),
        (None, None, "http://recorded", "http://recorded"),
        (None, "http://variable", "http://recorded", "http://variable"),
        ("http://key", "http://variable", "http://recorded", "http://key"),
        ("sqlite:///{root}/of key.db", "http://variable", None, "sqlite:///{root}/of key.db"),
        (None, "", None, "sqlite:///{root}/mlflow.db"),
        (None, "databricks://profile", None, "databricks://profile"),
    ],
)
def test_key_precedes_variable_precedes_record_precedes_default(
    key: str | None,
    variable: str | None,
    recorded: str | None,
    chosen: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    config = MlflowConfig(None if key is None else key.format(root=tmp_path))
    record = None if recorded is None else MlflowRecord("1", recorded, "an experiment")
    found = Destination.of(config, tmp_path, "default", record)
    assert found.tracking_uri == chosen.format(root=tmp_path)
    assert found.is_default is (chosen.endswith("mlflow.db"))


def test_experiment_is_chosen_like_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = MlflowRecord("1", None, "recorded")
    assert choice(tmp_path, "default")().experiment_name == "default"
    assert choice(tmp_path, "default")(record).experiment_name == "recorded"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "variable")
    assert choice(tmp_path, "default")(record).experiment_name == "variable"
    assert choice(tmp_path, "default", experiment_name="key")(record).experiment_name == "key"


def test_relative_file_is_fixed_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = Destination.of(MlflowConfig("sqlite:///runs.db"), tmp_path / "save", "e")
    assert found.tracking_uri == f"sqlite:///{tmp_path}/runs.db"


def test_run_its_sweep_and_track_go_to_the_store_of_the_environment(
    with_store: WithStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A later process without the variables goes on there, and nothing reaches the default store."""
    elsewhere = with_store(tmp_path / "elsewhere")
    root, run_dir = tmp_path / "save", tmp_path / "save" / "run"
    with monkeypatch.context() as set_only_here:
        set_only_here.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}/mlflow.db")
        set_only_here.setenv("MLFLOW_EXPERIMENT_NAME", "of the team")
        sweep = SweepRun(choice(root, "default"), "s", ["a=1,2"])
        with caplog.at_level(logging.INFO):
            tracker = open_tracker(Tracking.mlflow, RunFolder(run_dir), choice(root, "default"), "run", "s")
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.close(Status.FAILED)
        sweep.close(Status.FINISHED)
    run_id = run_id_of(run_dir)
    expected = f"MLflow: sqlite:///{elsewhere}/mlflow.db, experiment of the team, run {run_id}"
    assert [record.getMessage() for record in caplog.records] == [expected]
    config = RunConfig()
    config.base.save_dir_root, config.base.save_dir, config.base.experiment_name = str(root), str(run_dir), "default"
    save_run_config(config, run_dir / "config.yaml")
    assert track(run_dir) == run_id
    client = open_client(f"sqlite:///{elsewhere}/mlflow.db")
    run = client.get_run(run_id)
    assert client.get_experiment(run.info.experiment_id).name == "of the team"
    assert run.data.params["base.experiment_name"] == "default"
    assert client.get_run(run.data.tags["mlflow.parentRunId"]).info.run_name == "sweep.s"
    assert not (root / "mlflow.db").exists()


def test_other_store_gets_a_run_of_its_own(with_store: WithStore, tmp_path: Path) -> None:
    first, second = with_store(tmp_path / "first"), with_store(tmp_path / "second")
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    runs = [
        MlflowRun.open(choice(root, "e", **keys), "run", folder)
        for root, keys in (
            (first, {}),
            (first, {"tracking_uri": f"sqlite:///{second}/mlflow.db"}),
            (first, {"tracking_uri": f"sqlite:///{second}/mlflow.db"}),
            (first, {"tracking_uri": f"sqlite:///{second}/mlflow.db", "experiment_name": "another"}),
        )
    ]
    ids = [run.run_id for run in runs]
    assert ids[1] == ids[2]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("name", ["a b", "a%20b", "100%", "a?b", "a#b", "?#%25", "é(1)&=+;:@~"])
def test_every_path_is_itself(name: str, with_store: WithStore, tmp_path: Path) -> None:
    """The run and its artifacts are in the folder, and MLflow makes no other folder."""
    root = with_store(tmp_path / name)
    assert sqlite_path(sqlite_uri(root / "mlflow.db")) == root / "mlflow.db"
    (root / "run").mkdir()
    (root / "run" / "note.txt").write_text("hello")
    run = MlflowRun.open(choice(root, "e"), "run", RunFolder(root / "run"))
    run.log_artifact(root / "run" / "note.txt")
    run.close()
    with sqlite3.connect(root / "mlflow.db") as database:
        assert database.execute("SELECT run_uuid FROM runs").fetchall() == [(run.run_id,)]
    assert [path.read_text() for path in (root / "mlartifacts").rglob("note.txt")] == ["hello"]
    assert list(tmp_path.iterdir()) == [root]
    again = MlflowRun.open(choice(root, "e"), "run", RunFolder(root / "run"))
    assert again.run_id == run.run_id


# --- Passwords


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("http://me:geheim@host:5000/path", "http://host:5000/path"),
        ("https://me:ge/h?e#i@m@host", "https://host"),
        ("https://token@host/", "https://host/"),
        ("postgresql://me:geheim@host/db?sslmode=require", "postgresql://host/db"),
        ("postgresql://host/db?password=geheim", "postgresql://host/db"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////a@b/mlflow.db?mode=rw", "sqlite:////a@b/mlflow.db?mode=rw"),
        ("databricks", "databricks"),
        ("", ""),
    ],
)
def test_public_uri_has_no_secret(uri: str, public: str) -> None:
    assert public_uri(uri) == public
    if uri != public:
        with pytest.raises(ValueError, match=r"mlflow\.tracking_uri must hold no user, password or query") as error:
            MlflowConfig(uri).check()
        assert "geheim" not in str(error.value)
    else:
        MlflowConfig(uri or None).check()


def test_secret_in_a_key_is_refused_before_anything_is_written() -> None:
    with pytest.raises(ValueError, match="set the environment variable MLFLOW_TRACKING_URI"):
        compose("mlflow.tracking_uri=http://me:geheim@host").check()


def test_secret_of_the_environment_reaches_the_server_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    headers = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers.append(self.headers["Authorization"])
            self.send_error(400)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:geheim@127.0.0.1:{port}")
        tracker = open_tracker(Tracking.mlflow, RunFolder(tmp_path / "run"), choice(tmp_path, "e"), "run")
        tracker.close()
        server.shutdown()
    assert set(headers) == {"Basic " + b64encode(b"me:geheim").decode()}
    assert "MLflow failed" in warning_of(caplog)
    assert "geheim" not in caplog.text
    assert json.loads((tmp_path / "run" / "mlflow.json").read_text()) == {
        "run_id": None,
        "tracking_uri": f"http://127.0.0.1:{port}",
        "experiment_name": "e",
    }


def test_reason_hides_a_password() -> None:
    assert reason(OSError("API request to http://me:geheim@host/api failed\nmore")) == (
        "OSError: API request to http://host/api failed"
    )
    assert reason(ValueError("plain")) == "plain"


# --- Servers that do not answer


@pytest.fixture(params=["accepts and never answers", "refuses"])
def dead_server(request: pytest.FixtureRequest) -> Iterator[str]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param != "refuses":
            server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_server_that_does_not_answer_costs_seconds(
    dead_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_server)
    open_client(dead_server)  # the import
    began = time.monotonic()
    run_dir = tmp_path / "run it"
    tracker = open_tracker(Tracking.mlflow, RunFolder(run_dir), choice(tmp_path, "e"), "run")
    for step in range(1000):
        tracker.log_metrics({"loss": 1.0}, step)
    tracker.close()
    # 11 s on an idle machine: two requests of 5 s.
    assert time.monotonic() - began < SILENT_SECONDS
    warning = warning_of(caplog)
    assert dead_server in warning
    assert f"afterwards, textdistill track '{run_dir}' completes the MLflow run" in warning


def test_limits_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    open_client("http://127.0.0.1:1")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"


# --- Stores that were moved, deleted or left half made


@pytest.mark.parametrize("how", ["moved", "copied"])
@pytest.mark.parametrize("had", ["the run", "another run"])
def test_store_elsewhere_says_so_and_writes_nothing_into_the_old_place(
    how: str, had: str, with_store: WithStore, tmp_path: Path
) -> None:
    old, new = with_store(tmp_path / "old"), tmp_path / "new"
    (old / "run").mkdir()
    (old / "run" / "run.log").write_text("hello")
    run = MlflowRun.open(choice(old, "e"), "run", RunFolder(old / "run"))
    run.log_artifact(old / "run" / "run.log")
    run.close()
    (shutil.move if how == "moved" else shutil.copytree)(old, new)
    before = sorted(tmp_path.rglob("*"))
    folder = RunFolder(new / ("run" if had == "the run" else "second"))
    folder.path.mkdir(exist_ok=True)
    with pytest.raises(
        ValueError,
        match=f"{new}/mlflow.db was moved: experiment e keeps .* in {old}/mlartifacts; move {new} back to {old}, or",
    ):
        MlflowRun.open(choice(new, "e"), "run", folder)
    assert {path for path in tmp_path.rglob("*") if path not in before} <= {folder.path, folder.mlflow_id}
    # The remedies.
    if how == "moved":
        new.rename(old)
        assert MlflowRun.open(choice(old, "e"), "run", RunFolder(old / "run")).run_id == run.run_id
        old.rename(new)
    again = MlflowRun.open(choice(new, "e", experiment_name="e2"), "run", folder)
    again.log_artifact(new / "run" / "run.log")
    assert len(list((new / "mlartifacts").rglob("run.log"))) == 2


def test_other_name_of_the_same_folder_is_no_move(with_store: WithStore, tmp_path: Path) -> None:
    root = with_store(tmp_path / "real")
    (tmp_path / "link").symlink_to(root)
    (root / "mlartifacts").mkdir()
    (root / "run").mkdir()
    client = open_client(ensure_store(root))
    client.create_experiment("e", artifact_location=(tmp_path / "link" / "mlartifacts").as_uri())
    MlflowRun.open(choice(root, "e"), "run", RunFolder(root / "run")).close()


def test_location_that_the_user_chose_is_no_move(with_store: WithStore, tmp_path: Path) -> None:
    root = with_store(tmp_path / "root")
    (root / "run").mkdir()
    open_client(ensure_store(root)).create_experiment("e", artifact_location=(tmp_path / "chosen").as_uri())
    MlflowRun.open(choice(root, "e"), "run", RunFolder(root / "run")).close()


def test_deleted_experiment_and_run_are_named_with_the_remedy(with_store: WithStore, tmp_path: Path) -> None:
    root = with_store(tmp_path / "all runs")
    (root / "run").mkdir()
    folder = RunFolder(root / "run")
    run = MlflowRun.open(choice(root, "e"), "run", folder)
    experiment = run.client.get_run(run.run_id).info.experiment_id
    command = f"MLFLOW_TRACKING_URI='sqlite:///{root}/mlflow.db' mlflow"
    run.client.delete_run(run.run_id)
    with pytest.raises(ValueError, match=f"{command} runs restore --run-id {run.run_id}, or remove"):
        MlflowRun.open(choice(root, "e"), "run", folder)
    folder.mlflow_id.unlink()
    run.client.delete_experiment(experiment)
    expected = f"{command} experiments restore --experiment-id {experiment}, or set mlflow.experiment_name"
    with pytest.raises(ValueError, match=expected):
        MlflowRun.open(choice(root, "e"), "run", folder)
    MlflowRun.open(choice(root, "e", experiment_name="e2"), "run", folder).close()
    run.client.restore_experiment(experiment)
    MlflowRun.open(choice(root, "e"), "run", folder).close()


HALVES = {
    "first table only": "CREATE TABLE experiments (experiment_id INTEGER); CREATE TABLE runs (run_uuid TEXT)",
    "migration missing": "UPDATE alembic_version SET version_num = '89d4b8295536'",
    "no version": "DELETE FROM alembic_version; DROP TABLE tags",
}


@pytest.mark.parametrize("half", HALVES)
def test_half_made_store_is_named_with_the_remedy(half: str, with_store: WithStore, tmp_path: Path) -> None:
    path = with_store(tmp_path / half) / "mlflow.db"
    if half == "first table only":
        path.unlink()
    with sqlite3.connect(path) as database:
        database.executescript(HALVES[half])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"{path} must be a whole MLflow store, but .* remove it, it holds no run"):
        open_client(sqlite_uri(path))
    assert len(path.read_bytes()) >= len(before) // 2


def test_store_with_runs_is_never_called_half_made(with_store: WithStore, tmp_path: Path) -> None:
    root = with_store(tmp_path / "root")
    (root / "run").mkdir()
    MlflowRun.open(choice(root, "e"), "run", RunFolder(root / "run")).close()
    copy = tmp_path / "copy.db"
    shutil.copy(root / "mlflow.db", copy)
    with sqlite3.connect(copy) as database:
        database.execute("UPDATE alembic_version SET version_num = '89d4b8295536'")
    # MLflow's own words: a store of an earlier version has this version too.
    with pytest.raises(MlflowException, match="out-of-date database schema"):
        open_client(sqlite_uri(copy))


MAKE = """
import sys
from pathlib import Path
import mlflow
from textdistill.runs.mlflow_store import ensure_store
print("go", flush=True)
ensure_store(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_while_it_makes_the_store(tmp_path: Path) -> None:
    """A later process makes the store, and no folder of the killed ones is left."""
    kills = int(os.environ.get("TEXTDISTILL_KILLS", "20"))
    command = [sys.executable, "-c", MAKE, str(tmp_path)]
    for kill in range(kills):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            deadline = time.monotonic() + 300
            while not list(tmp_path.glob(".mlflow.*")) and not (tmp_path / "mlflow.db").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(3 * kill / kills)
            process.kill()
        if (tmp_path / "mlflow.db").exists():
            open_client(ensure_store(tmp_path)).search_experiments()
            (tmp_path / "mlflow.db").unlink()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    open_client(ensure_store(tmp_path)).search_experiments()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_empty_file_is_no_store(tmp_path: Path) -> None:
    """Opening a missing SQLite file leaves an empty one."""
    (tmp_path / "mlflow.db").touch()
    open_client(ensure_store(tmp_path)).search_experiments()


def test_damaged_record_is_no_reason_to_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mlflow.json").write_text('{"run_id": 7}')
    tracker: RunTracker = open_tracker(Tracking.mlflow, RunFolder(tmp_path), choice(tmp_path, "e"), "run")
    tracker.close()
    assert "must hold an id of MLflow" in warning_of(caplog)
