"""The published results: the tables are a report of the files, and every file is of the experiment its folder names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from textdistill.commands.verbs import report
from textdistill.config import compose, load_run_config
from textdistill.distilled.spec import LabelType
from textdistill.reporting.rows import CONFIG_FILE, RESULTS_FILE

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results"
SWEEP = DOCS / "trials" / "sweep"
RUNS = sorted(str(file.parent.relative_to(RESULTS)) for file in RESULTS.rglob(CONFIG_FILE))


def test_tables_are_the_report_of_the_files() -> None:
    _, tables = (DOCS / "results.md").read_text().split("<!-- textdistill report docs/results -->\n\n")
    assert tables == report([RESULTS])


@pytest.mark.parametrize("run", RUNS)
def test_a_run_has_the_settings_of_its_experiment(run: str) -> None:
    experiment, _, seed = run.rpartition("/")
    expected = compose(f"experiment={experiment}", f"base.seed={seed}", "train.batches_per_step=1")
    assert load_run_config(RESULTS / run).fixed() == expected.fixed()


def table(heading: str) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the one table of a section."""
    section = (DOCS / "results.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    head, _, *rows = (line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|"))
    return head, rows


def test_table_of_what_attention_labels_do_is_that_of_the_files() -> None:
    (_, *tasks), rows = table("What attention labels do")
    assert [labels for labels, *_ in rows] == list(LabelType)
    for labels, *cells in rows:
        for task, cell in zip(tasks, cells, strict=True):
            none, cls = (
                json.loads((RESULTS / "grid" / f"{task}_{labels}_{kind}" / "42" / RESULTS_FILE).read_text())
                for kind in ("none", "cls")
            )
            assert cell == f"{100 * (cls['metrics']['accuracy']['mean'] - none['metrics']['accuracy']['mean']):.1f}"


def test_table_of_the_sweep_is_that_of_the_files() -> None:
    (_, _, *tasks), rows = table("Defaults and the README's sweep")
    assert len(rows) == 7
    for lr_init, rate, *cells in rows:
        for task, cell in zip(tasks, cells, strict=True):
            default = RESULTS / "grid" / f"{task}_unrestricted_cls" / "42"
            run = SWEEP / task / f"init_{lr_init}.rate_{rate}" if rate.startswith("0.") else default
            validation = json.loads((run / RESULTS_FILE).read_text())["validation"]
            assert cell == f"{validation['accuracy']:.3f} (loss {validation['loss']:.3f})"


def test_no_result_names_a_place_of_a_machine() -> None:
    files = [*RESULTS.rglob(CONFIG_FILE), *RESULTS.rglob(RESULTS_FILE), *SWEEP.parent.rglob(RESULTS_FILE)]
    assert [file for file in files if '"/' in file.read_text() or ": /" in file.read_text()] == []
