"""A run folder has one writer; the lock of a dead process is released."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.support.forkserver import FRESH
from textdistill.runs.folder import RunFolder


def test_second_writer_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    holder = rf"is being written by pid {os.getpid()} on {socket.gethostname()}; wait for it"
    with RunFolder(tmp_path / "run").lock():
        with pytest.raises(ValueError, match=holder), RunFolder(tmp_path / "run").lock():
            pass
        with RunFolder(tmp_path / "other").lock():
            pass
    with RunFolder(tmp_path / "run").lock():
        pass


def die_writing(folder: Path) -> None:
    with RunFolder(folder).lock():
        os.kill(os.getpid(), signal.SIGKILL)


def test_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    process = FRESH.Process(target=die_writing, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert "pid" in (tmp_path / "run.holder").read_text()
    with RunFolder(tmp_path).lock():
        assert f"pid {os.getpid()} " in (tmp_path / "run.holder").read_text()


def test_error_inside_releases_the_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="inside"), RunFolder(tmp_path).lock():
        raise RuntimeError("inside")
    with RunFolder(tmp_path).lock():
        pass
