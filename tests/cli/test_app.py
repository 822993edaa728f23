"""What a newcomer mistypes, what short options stand for, and what a shell completes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from textdistill.cli import runs, sets
from textdistill.cli.app import Settings
from textdistill.cli.completion import settings
from textdistill.cli.hydra_app import split_flags
from textdistill.cli.main import main
from textdistill.cli.next_commands import after_finetuning
from textdistill.config import known_keys
from textdistill.evaluation.baselines import Baseline, Training
from textdistill.overrides import shell_line
from textdistill.reporting.tables import Format

pytestmark = pytest.mark.usefixtures("process_state")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("reviews.csv", "reviews (1).csv", "a=b.csv"):
        (tmp_path / name).touch()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["destill", "reviews.csv"], "there is no verb 'destill'; did you mean 'distill'?"),
        (["reviews.csv"], "the verb is missing; did you mean 'textdistill distill reviews.csv'?"),
        (["help"], "there is no verb 'help'; did you mean '--help'?"),
        (["--verison"], "did you mean '--version'?"),
        (["distill", "reveiws.csv"], "got 'reveiws.csv'; did you mean 'reviews.csv'"),
        (["distill", "sst-2"], "got 'sst-2'; did you mean 'sst2'?"),
        (["distill", "sst2", "qnli"], "DATA must be one task or any number of files"),
        (["distill", "b=c.csv"], "got 'b=c.csv'"),
        (["distill", "reviews.csv", "--step", "5"], "distill has no option --step; did you mean '--steps'?"),
        (["distill", "reviews.csv", "--max-steps", "5"], "distill has no option --max-steps; did you mean '--steps'?"),
        (["distill", "reviews.csv", "--label-column", "a"], "did you mean '--label'?"),
        (["distill", "reviews.csv", "--seed", "1"], "did you mean 'base.seed=VALUE'?"),
        (["distill", "--data", "reviews.csv"], "write DATA without an option"),
        (["distill", "reviews.csv", "--steps"], "option '--steps' requires an argument"),
        (["distill", "reviews.csv", "--steps", "five"], "invalid value for '--steps'"),
        (["distill", "reviews.csv", "label=a"], "label is an option, not a key; write --label a"),
        (["distill", "reviews.csv", "max_steps=5"], "there is no key 'max_steps'; did you mean 'train.max_steps'?"),
        (["distill", "reviews.csv", "trian.seed=5"], "there is no key 'trian.seed'; did you mean 'base.seed'?"),
        (["distill", "train.max_steps", "5"], "the key train.max_steps needs a value: train.max_steps=VALUE"),
        (["distill", "reviews.csv", "--steps", "5", "train.max_steps=6"], "got the option steps, which stands for it"),
        (["distill", "reviews.csv", "data.path=a"], "got the option DATA, which stands for it, and data.path=a"),
        (["distill", "data.path=reviews (1).csv"], "quote the value: 'data.path=\"reviews (1).csv\"'"),
        (["distill", "--cfg", "jobs"], "the value of --cfg must be one of job, hydra, all, got 'jobs'"),
        (["tune", "reviews.csv", "--trails", "3"], "tune has no option --trails; did you mean '--trials'?"),
        (["baseline", "reviews.csv"], "'reviews.csv' is not one of 'full', 'random', 'k-centers', 'herding'"),
    ],
)
def test_mistyped_line_gets_one_helpful_line(line: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(line)
    assert exit_info.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("textdistill: error: ")
    assert message in error


@pytest.mark.parametrize("name", ["reviews.csv", "reviews (1).csv", "a=b.csv"])
def test_path_that_exists_is_data(name: str) -> None:
    words = Settings.of([name, "base.seed=1"], steps=5)
    assert (words.data, words.overrides) == ([name], ["base.seed=1"])
    assert words.options[-1] == "train.max_steps=5"


def test_flags_of_hydra_are_found_among_the_words() -> None:
    words = ["reviews.csv", "--cfg", "job", "a=1", "--info", "--config-dir=x", "-m"]
    expected = ["--cfg", "job", "--info", "all", "--config-dir", "x", "-m"]
    assert split_flags(words) == (expected, ["reviews.csv", "a=1"])


def test_names_in_the_signatures_are_those_of_the_enums() -> None:
    assert get_args(runs.Kind) == tuple(Baseline)
    assert get_args(runs.Training) == tuple(Training)
    assert get_args(sets.ReportFormat) == tuple(form.name for form in Format)


def test_completion_knows_every_key_and_its_choices() -> None:
    assert settings().keys() - {"experiment"} == known_keys()
    assert settings()["data.protocol"] == ["clean", "paper"]
    assert settings()["tracking"] == ["mlflow", "none"]
    assert "reference" in settings()["experiment"]


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh"])
def test_printed_line_arrives_as_it_is(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    awkward = [
        "a b",
        "it's",
        "=ls",
        "[x]",
        "*?",
        "~",
        "#",
        "$HOME",
        "a=b",
        "back\\slash",
        '"',
        "{a,b}",
        "!x",
        "é",
        "^a",
        "",
    ]
    (predict,) = after_finetuning("my model [1]").values()
    for words in (awkward, predict):
        done = subprocess.run(
            [shell, "-c", f"printf '%s\\0' {shell_line(words)}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.split("\0")[:-1] == list(words)
