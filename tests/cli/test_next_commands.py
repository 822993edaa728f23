"""The commands that are printed after a verb: pasted into sh and zsh, they arrive as they are meant."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from textdistill.arguments import to_options, to_overrides
from textdistill.cli.next_commands import after_baseline, after_finetuning, after_run, after_study
from textdistill.cli.terminal import print_next
from textdistill.config import BaseConfig
from textdistill.overrides import key_of, parse
from textdistill.runs.folder import RunFolder

SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed"))
    for shell in ("sh", "bash", "zsh")
]
# What shells read as more than letters.
NAMES = [
    "plain", "a blank", "it's", '"quoted"', "[ab]", "a*?", "$HOME", "`id`", "été", "~", "=ls", "a=b", "a;b & c|d", "!x",
    "#x", "{a,b}", "back\\slash", "<in>", "(1)", "-dash",
]  # fmt: skip


def pasted(
    shell: str, steps: Mapping[str, list[str]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> list[list[str]]:
    """The words that each printed command has in a shell: a stand-in on the path writes them down."""
    stand_in = folder / "bin" / "textdistill"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text('#!/bin/sh\nprintf "%s\\0" textdistill "$@"\n')
    stand_in.chmod(0o755)
    print_next(steps)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    # From standard input, as a paste arrives; an echo ends the words of each command.
    script = "".join(f"{line}\nprintf '\\n\\0'\n" for line in lines)
    environment = os.environ | {"PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    done = subprocess.run([shell], input=script, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return [words.split("\0")[:-1] for words in done.stdout.split("\n\0")[:-1]]


def overrides_of(name: str) -> list[str]:
    """The overrides of a run in a folder of a name, on a file of that name."""
    Path(name).mkdir()
    data = f"./{name}/{name}.csv"
    Path(data).touch()
    return to_overrides(data, text=[name, "b"], label=name, model=f"./{name}", steps=5, output=f"./{name}/run")


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_arrive_as_they_are_meant(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    steps: dict[str, list[str]] = {}
    for name in NAMES:
        overrides, folder = overrides_of(name), RunFolder(Path(f"./{name}/run"))
        folder.hydra.mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(overrides), folder.overrides)
        found = after_run(folder.path) | after_study(overrides) | after_finetuning(f"./{name}/model")
        found |= after_baseline(BaseConfig(save_dir=f"./{name}/run"))
        steps |= {f"{purpose}, {name}": words for purpose, words in found.items()}
    assert len(steps) == len(NAMES) * 7
    assert not any(words[2].startswith(("-", "~")) for words in steps.values())
    assert pasted(shell, steps, tmp_path, capsys) == list(steps.values())


@pytest.mark.parametrize("name", NAMES)
def test_short_options_stand_for_the_same_settings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [*overrides_of(name), "base.seed=3", "distilled_data.lr_init=0.1,0.2"]
    words, given = to_options(overrides), list[str]()
    data = None if words[0].startswith("--") or "=" in words[0].partition("/")[0] else words.pop(0)
    options: dict[str, str | int] = {}
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            value = words.pop(0)
            options[word[2:]] = int(value) if word == "--steps" else value
        else:
            given.append(word)
    again = to_overrides(data, **options, given=given) + given  # type: ignore[arg-type]
    assert {key_of(o): parse(o).value() for o in again} == {key_of(o): parse(o).value() for o in overrides}
