"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from textdistill.core.files import replacing


def test_replacing(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("old")
    # Left by a process that died, or laid out to have another file written.
    (tmp_path / ".state.part").symlink_to(tmp_path / "other")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("when", ["writing", "fsync", "replace"])
def test_replacing_that_fails_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = tmp_path / "state"
    path.write_text("old")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with replacing(path) as part:
            part.write_text("new")
            if when == "writing":
                full()
            monkeypatch.setattr(os, when, full)

    with pytest.raises(OSError, match="No space left"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
