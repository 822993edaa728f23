"""Names the files of a run folder, locks the folder and writes its log."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# Reports search folders of run folders for files of this name.
RESULTS_FILE = "results.json"


class RunFolder:
    """The directory of a run. Only this class defines the names of its files.

    Attributes:
        path: the directory, ``base.save_dir``.
        checkpoints: the directory of the training state and the intermediate sets, ``train.save_ckpt_dir``.

    """

    def __init__(self, path: str | Path, checkpoints: str | Path | None = None) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints" if checkpoints is None else Path(checkpoints)

    @property
    def config(self) -> Path:
        """Returns the file of the run's configuration."""
        return self.path / "config.yaml"

    @property
    def results(self) -> Path:
        """Returns the file of the run's ``RunResult``."""
        return self.path / RESULTS_FILE

    @property
    def metrics(self) -> Path:
        """Returns the file of the training curve, which has one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """Returns the file of the log."""
        return self.path / "run.log"

    @property
    def distilled(self) -> Path:
        """Returns the folder of the best distilled set."""
        return self.path / "distilled"

    @property
    def hydra(self) -> Path:
        """Returns the folder of Hydra's files, which exists only if the command line started the run."""
        return self.path / ".hydra"

    @property
    def overrides(self) -> Path:
        """Returns the file of the command line's overrides."""
        return self.hydra / "overrides.yaml"

    @property
    def mlflow_id(self) -> Path:
        """Returns the file of the run's id in MLflow."""
        return self.path / "mlflow.json"

    @property
    def checkpoint(self) -> Path:
        """Returns the file of the training state from which an interrupted run resumes."""
        return self.checkpoints / "checkpoint.safetensors"

    @property
    def best(self) -> Path:
        """Returns the folder of the distilled set with the best validation so far."""
        return self.checkpoints / "best"

    @property
    def last(self) -> Path:
        """Returns the folder of the distilled set after the last outer step."""
        return self.checkpoints / "last"

    def artifacts(self) -> list[Path]:
        """Returns the existing files and folders that MLflow copies."""
        return [path for path in (self.hydra, self.best, self.last, self.log, self.results) if path.exists()]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder for the length of a block. A missing folder is created.

        The operating system releases the lock of a dead process, so no stale lock remains.

        Raises:
            ValueError: another process holds the lock. The message names the process's pid and host.

        """
        self.path.mkdir(parents=True, exist_ok=True)
        # The owner's pid has its own file, because acquiring the lock truncates the lock file.
        owner = self.path / "run.holder"
        lock = FileLock(self.path / "run.lock", timeout=0)
        try:
            held = lock.acquire()
        except Timeout as error:
            who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise ValueError(
                f"base.save_dir={self.path} is being written by {who}; wait for it to end, or choose another"
                " base.save_dir"
            ) from error
        with held:
            owner.write_text(f"pid {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            try:
                yield
            finally:
                owner.unlink(missing_ok=True)

    @contextmanager
    def log_file(self, expected: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
        """Copies log messages to the file ``log`` for the length of a block.

        An error that ends the block leaves its traceback in the file.

        Args:
            expected: the types of errors that end a run on purpose and leave no traceback.

        """
        handler = logging.FileHandler(self.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
        package = logging.getLogger("textdistill")
        level = package.level
        package.setLevel(logging.INFO)
        logging.getLogger().addHandler(handler)
        try:
            yield
        except Exception as error:
            if not isinstance(error, expected):
                # The command line prints one line; the traceback goes to the file alone.
                record = {"name": __name__, "levelname": "ERROR", "msg": "the run ended", "exc_info": sys.exc_info()}
                handler.handle(logging.makeLogRecord(record))
            raise
        finally:
            logging.getLogger().removeHandler(handler)
            package.setLevel(level)
            handler.close()
