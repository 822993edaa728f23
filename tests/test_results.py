"""The published results: the tables are a report of the files, and every file is of the experiment its folder names."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from textdistill.commands import report
from textdistill.config import CHANGEABLE, compose
from textdistill.report import CONFIG_FILE, RESULTS_FILE, read_config
from textdistill.tracking import flatten

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"
RUNS = sorted(str(file.parent.relative_to(RESULTS)) for file in RESULTS.rglob(CONFIG_FILE))


def test_tables_are_the_report_of_the_files() -> None:
    _, tables = (DOCS / "results.md").read_text().split("<!-- textdistill report docs/results -->\n\n")
    assert tables == report([RESULTS])


@pytest.mark.parametrize("run", RUNS)
def test_a_run_has_the_settings_of_its_experiment(run: str) -> None:
    experiment, _, seed = run.rpartition("/")
    config = asdict(compose(f"experiment={experiment}", f"base.seed={seed}", "train.batches_per_step=1"))
    expected = {key: str(value) for key, value in flatten(config) if not CHANGEABLE.fullmatch(key)}
    found = {key: str(value) for key, value in flatten(read_config(RESULTS / run)) if not CHANGEABLE.fullmatch(key)}
    assert found == expected


def test_no_result_names_a_place_of_a_machine() -> None:
    files = [*RESULTS.rglob(CONFIG_FILE), *RESULTS.rglob(RESULTS_FILE)]
    assert [file for file in files if '"/' in file.read_text() or ": /" in file.read_text()] == []
