"""The published results: the tables are a report of the files, and every file is of the experiment its folder names."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from textdistill.commands.reports import report
from textdistill.config import RunConfig, compose, load_run_config
from textdistill.distilled.spec import LabelType

CONFIG_FILE, RESULTS_FILE = "config.yaml", "results.json"
DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results"
SWEEP = DOCS / "trials" / "sweep"
RUNS = sorted(str(file.parent.relative_to(RESULTS)) for file in RESULTS.rglob(CONFIG_FILE))


def test_tables_are_the_report_of_the_files() -> None:
    _, tables = (DOCS / "results.md").read_text().split("<!-- textdistill report docs/results -->\n\n")
    assert tables == report([RESULTS])


def grid() -> dict[str, list[str]]:
    """The overrides of each job that the sweep in reproducing.md starts, by the folder of its result."""
    text = (DOCS / "reproducing.md").read_text().replace("\\\n", "")
    (line,) = (line for line in text.splitlines() if "distill -m experiment=grid" in line)
    overrides = [word.split("=") for word in line.split()[3:] if not word.startswith("data.path=")]
    jobs = product(*([f"{key}={value}" for value in values.split(",")] for key, values in overrides))
    return {"grid/" + "_".join(override.split("=")[1] for override in job[1:]): list(job) for job in jobs}


def test_the_sweep_gives_every_result_of_the_grid_and_no_other() -> None:
    assert {f"{cell}/42" for cell in grid()} == {run for run in RUNS if run.startswith("grid/")}


def settings(config: RunConfig) -> dict[str, Any]:
    """All settings that have an effect, but folders, the names of runs, and whether a run resumes."""
    groups = asdict(config)
    # What is given in steps is not given in epochs.
    for steps, epochs in (("max_steps", "epoch"), ("val_steps", "val_interval")):
        if groups["train"][steps] is not None:
            del groups["train"][epochs]
    del groups["base"], groups["tracking"]
    for key in ("path", "datasets_path", "preprocessed_datasets_path"):
        del groups["data"][key]
    for key in ("save_ckpt_dir", "resume"):
        del groups["train"][key]
    return groups


@pytest.mark.parametrize("run", RUNS)
def test_a_run_has_the_settings_of_its_experiment(run: str) -> None:
    experiment, _, seed = run.rpartition("/")
    overrides = grid()[experiment] if experiment.startswith("grid/") else [f"experiment={experiment}"]
    # The runs state train.batches_per_step. Its default, null, means one batch for each process.
    expected = compose(*overrides, f"base.seed={seed}", "train.batches_per_step=1")
    config = load_run_config(RESULTS / run)
    assert config.fixed() == expected.fixed()
    assert settings(config) == settings(expected)


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
