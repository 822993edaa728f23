"""Chooses the MLflow store of a run and opens it.

The store is a tracking server, a database, or by default the SQLite file ``mlflow.db`` beside the runs. The artifacts
of a SQLite file are in ``mlartifacts/`` beside it. Importing MLflow takes two seconds and creating a SQLite file takes
two more, so ``tracking=none`` does neither.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from textdistill.core.files import replacing, sync
from textdistill.runs.folder import RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

# This file beside the runs is the default store.
STORE_FILE = "mlflow.db"
# This folder beside a SQLite file holds MLflow's copies of run files.
ARTIFACTS = "mlartifacts"
# Creating the tables of a SQLite file takes seconds. Other processes wait at most this long for the tables.
STORE_SECONDS = 60.0
# A SQLite file is made in a folder whose name begins like this.
PARTIAL = ".mlflow."

TRACKING_URI = "MLFLOW_TRACKING_URI"
EXPERIMENT_NAME = "MLFLOW_EXPERIMENT_NAME"
# MLflow itself waits two minutes for an answer and tries eight times. A run must not stand still that long.
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


@dataclass
class MlflowConfig:
    """The group ``mlflow.*``. None selects the environment variable of MLflow, and without one the default."""

    tracking_uri: str | None = None
    experiment_name: str | None = None

    def check(self) -> None:
        """Raises ValueError for a tracking URI with a secret, which would be written to files and logs."""
        if self.tracking_uri is not None and public_uri(self.tracking_uri) != self.tracking_uri:
            raise ValueError(
                "mlflow.tracking_uri must hold no user, password or query, because it is written to files; set the"
                f" environment variable {TRACKING_URI} to the whole URI instead"
            )


@dataclass(frozen=True)
class Destination:
    """The place where MLflow records a run.

    Attributes:
        tracking_uri: the URI of the store, without user and password.
        experiment_name: the name of the experiment, shared by runs that are compared.
        is_default: whether the store is the default one, which may move with the runs.

    """

    tracking_uri: str
    experiment_name: str
    is_default: bool = False

    @classmethod
    def of(
        cls, config: MlflowConfig, root: Path, experiment_name: str, recorded: MlflowRecord | None = None
    ) -> Destination:
        """Chooses the destination of a run. A key precedes the environment, and the environment precedes the default.

        Args:
            config: the keys ``mlflow.*``.
            root: the folder of all runs, which holds the default store.
            experiment_name: the default name of the experiment.
            recorded: the place where an earlier process began the run, which precedes the default.

        """
        uri = config.tracking_uri or public_uri(os.environ.get(TRACKING_URI, ""))
        name = config.experiment_name or os.environ.get(EXPERIMENT_NAME)
        if recorded is not None:
            uri, name = uri or (recorded.tracking_uri or ""), name or recorded.experiment_name
        path = sqlite_path(uri) if uri else root.resolve() / STORE_FILE
        return cls(uri if path is None else sqlite_uri(path), name or experiment_name, is_default=not uri)

    def command(self, command: str) -> str:
        """Returns a shell command of MLflow that works on the store."""
        return f"{TRACKING_URI}={shlex.quote(self.tracking_uri)} {command}"

    def __str__(self) -> str:
        """Names the destination in the log."""
        return f"{self.tracking_uri}, experiment {self.experiment_name}"


@dataclass(frozen=True)
class MlflowRecord:
    """The content of ``mlflow.json`` in a run folder.

    Attributes:
        run_id: MLflow's id of the run; None until MLflow has created the run.
        tracking_uri: the URI of the store; None for the default store.
        experiment_name: the name of the experiment; None in the files of earlier versions.

    """

    run_id: str | None
    tracking_uri: str | None = None
    experiment_name: str | None = None

    @classmethod
    def of(cls, destination: Destination, run_id: str | None = None) -> MlflowRecord:
        """Returns the record of a run at a destination."""
        uri = None if destination.is_default else destination.tracking_uri
        return cls(run_id, uri, destination.experiment_name)

    def fits(self, destination: Destination) -> bool:
        """Returns whether the run is at a destination. A record of an earlier version names none and always fits."""
        own = MlflowRecord.of(destination, self.run_id)
        return self.experiment_name is None or self == own

    @classmethod
    def read(cls, folder: RunFolder) -> MlflowRecord | None:
        """Reads the record of a run folder. Returns None if the folder has none.

        Raises:
            ValueError: the file holds something else.

        """
        path = folder.mlflow_id
        try:
            content = json.loads(path.read_bytes())
            values = [content["run_id"], content.get("tracking_uri"), content.get("experiment_name")]
            if not all(value is None or isinstance(value, str) for value in values):
                raise TypeError("its values must be strings")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} must hold an id of MLflow ({error!r}); remove the file for a new run") from error
        return cls(*values)

    def write(self, folder: RunFolder) -> None:
        """Replaces the record of a run folder."""
        with replacing(folder.mlflow_id) as partial:
            partial.write_text(json.dumps(vars(self)) + "\n", encoding="utf-8")


def public_uri(uri: str) -> str:
    """Returns a URI without user, password, query and fragment. A URI without a host is returned as it is."""
    scheme, mark, rest = uri.partition("://")
    if not mark or rest.startswith("/"):
        return uri
    # A password may hold any character, so the host begins after the last "@".
    return scheme + mark + re.split("[?#]", rest.rpartition("@")[2])[0]


def ensure_store(root: Path) -> str:
    """Creates the default store of ``root`` unless the store exists. Parallel jobs may call this function at once.

    Returns:
        The tracking URI of the absolute path of ``root/mlflow.db``.

    """
    path = root.resolve() / STORE_FILE
    _ensure_sqlite(path)
    return sqlite_uri(path)


def open_client(uri: str) -> MlflowClient:
    """Opens a client of a store, with time limits of seconds and without telemetry and INFO messages.

    Args:
        uri: the tracking URI. The user and the password of the same URI in ``MLFLOW_TRACKING_URI`` are used.

    Raises:
        ValueError: the SQLite file was left half made.

    """
    try:
        return _connect(uri)
    except Exception as error:
        path = sqlite_path(uri)
        if path is not None and _holds_no_run(path):
            raise ValueError(
                f"{path} must be a whole MLflow store, but a process that made it was killed; remove it, it holds no"
                " run"
            ) from error
        raise


def _connect(uri: str) -> MlflowClient:
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    stated = os.environ.get(TRACKING_URI, "")
    return MlflowClient(tracking_uri=stated if public_uri(stated) == uri else uri)


def open_store(destination: Destination) -> MlflowClient:
    """Opens the store of a destination. A missing SQLite file is created."""
    path = sqlite_path(destination.tracking_uri)
    if path is not None:
        _ensure_sqlite(path)
    return open_client(destination.tracking_uri)


def experiment_id(client: MlflowClient, destination: Destination) -> str:
    """Returns the id of the destination's experiment. Creates a missing experiment.

    Raises:
        ValueError: the experiment was deleted, or the store was moved away from the experiment's artifacts.

    """
    from mlflow.exceptions import MlflowException

    name = destination.experiment_name
    path = sqlite_path(destination.tracking_uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None if path is None else (path.parent / ARTIFACTS).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            # Another process may have created the experiment meanwhile.
            experiment = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        restore = destination.command(f"mlflow experiments restore --experiment-id {experiment.experiment_id}")
        raise ValueError(
            f"MLflow's experiment {name} must not be deleted; restore it with {restore}, or set mlflow.experiment_name"
            f" (or {EXPERIMENT_NAME}) to another name"
        )
    check_location(destination, experiment.artifact_location)
    return str(experiment.experiment_id)


def check_location(destination: Destination, location: str) -> None:
    """Raises ValueError if artifacts would be written where a moved SQLite file was before.

    Args:
        destination: the place where MLflow records the run.
        location: the URI of the artifacts of an experiment or of a run.

    """
    path, uri = sqlite_path(destination.tracking_uri), urlsplit(location)
    if path is None or uri.scheme != "file":
        return
    old = Path(unquote(uri.path))
    # An artifact location of another form was chosen by the user.
    old = next((folder for folder in (old, *old.parents) if folder.name == ARTIFACTS), path.parent / ARTIFACTS)
    new = path.parent / ARTIFACTS
    if old != new and not (old.exists() and new.exists() and old.samefile(new)):
        raise ValueError(
            f"{path} was moved: experiment {destination.experiment_name} keeps its artifacts in {old}; move"
            f" {path.parent} back to {old.parent}, or set mlflow.experiment_name (or {EXPERIMENT_NAME}) to another name"
        )


def reason(error: Exception) -> str:
    """Describes an error of MLflow in one line, without user and password."""
    text = re.sub(r"//[^/\s]*@", "//", str(error).strip().partition("\n")[0])
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def sqlite_uri(path: Path) -> str:
    """Returns the tracking URI of a SQLite file, in which every character of the path is itself."""
    from sqlalchemy import make_url

    uri = f"sqlite:///{path}"
    if make_url(uri).database == str(path):
        return uri
    # MLflow creates the folder of an escaped path unless the URI names the driver.
    return "sqlite+pysqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """Returns the absolute path of the SQLite file of a tracking URI; None for another store."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy import make_url

    database = make_url(uri).database
    return None if not database or database.startswith((":memory:", "file:")) else Path(database).resolve()


def _ensure_sqlite(path: Path) -> None:
    """Creates a SQLite store under another name and renames it, so that a killed process leaves none half made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock"), timeout=STORE_SECONDS):
        # An empty file is what opening a missing store leaves.
        if path.exists() and path.stat().st_size > 0:
            return
        # The lock proves that no process works in these folders.
        for stray in path.parent.glob(f"{PARTIAL}*"):
            shutil.rmtree(stray)
        with TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as folder:
            partial = Path(folder) / path.name
            # The first access creates and migrates the tables.
            _connect(sqlite_uri(partial)).search_experiments(max_results=1)
            sync([partial])
            partial.replace(path)
        sync([path.parent])


def _holds_no_run(path: Path) -> bool:
    """Returns whether a SQLite file holds no run of MLflow. Returns False for a file that cannot be read."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=0)) as database:
        # A store that another process is writing must not be judged.
        database.execute("BEGIN IMMEDIATE")
        tables = database.execute("SELECT name FROM sqlite_master WHERE name = 'runs'").fetchall()
        return not tables or database.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    return False
