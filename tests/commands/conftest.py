"""One finished run that the tests of all commands read, and a quick configuration for new runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import toy
from tests.support.runs import (
    SETTINGS,
    Compose,
)
from textdistill.commands.distill import distill
from textdistill.config import RunConfig, compose


@pytest.fixture
def composed(tiny_bert: Path, toy_data: Path, tmp_path: Path) -> Compose:
    """A quick configuration with the run folder ``tmp_path / "run"``."""

    def composed(*more: str) -> RunConfig:
        return compose(*toy.overrides(tiny_bert, toy_data, tmp_path, f"base.save_dir={tmp_path}/run", *more))

    return composed


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture(scope="session")
def finished(tiny_bert: Path, toy_data: Path, root: Path) -> dict[str, Any]:
    """The results of one distillation whose run folder is ``root / "run"``."""
    config = compose(*toy.overrides(tiny_bert, toy_data, root, f"base.save_dir={root}/run", *SETTINGS))
    return distill(config).to_dict()


@pytest.fixture(scope="session")
def distilled_dir(finished: dict[str, Any], root: Path) -> Path:
    return root / "run" / "distilled"
