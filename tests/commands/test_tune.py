"""The search for settings: what it tries, what it stops, how it goes on, and what it reports."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tests.support import toy
from tests.support.fixtures import WithStore
from tests.support.forkserver import FRESH
from textdistill.cli.main import main
from textdistill.commands import tune as tuning
from textdistill.commands.context import RunContext
from textdistill.commands.tune import StudyResult, search_space, tune
from textdistill.config import compose, load_run_config
from textdistill.distilled.dataset import DistilledDataset
from textdistill.training.outer_step import OuterStep

TRIALS = 8

# Its root, and what tune returned.
Study = tuple[Path, StudyResult]


def settings(model: Path, data: Path, root: Path, *more: str) -> list[str]:
    """15 outer steps with two searched rates, of which only ``lr_init`` has a default within the search."""
    return toy.overrides(
        model, data, root,
        "distilled_data.label_type=unrestricted", "train.max_steps=15", "train.val_steps=5",
        "train.checkpoint_interval=2", "train.n_eval_model=2",
        "train.lr_inputs_embeds=tag(log,interval(0.001,1))", "distilled_data.lr_init=interval(0.02,1)",
        *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(
    separable_bert: Path, toy_data: Path, with_store: WithStore, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """A study that was never interrupted, with MLflow."""
    root = with_store(tmp_path_factory.mktemp("study"))
    with pytest.MonkeyPatch.context() as patch:
        scored: list[str] = []
        score = RunContext.score

        def spy(self: RunContext, distilled: DistilledDataset) -> Any:
            scored.append(self.config.base.save_dir)
            return score(self, distilled)

        patch.setattr(RunContext, "score", spy)
        found = tune(settings(separable_bert, toy_data, root, "tracking=mlflow"), TRIALS, "rates")
    assert scored == [str(found.run_dir)], "the test split is read once, for the best trial"
    return root, found


def test_better_than_the_defaults(study: Study) -> None:
    root, found = study
    first, *others = found.trials
    assert [trial.number for trial in found.trials] == list(range(TRIALS))
    # Null, the default of the other rate, is not in the search, and stays.
    assert first.overrides == ["distilled_data.lr_init=0.1"]
    assert all(len(trial.overrides) == 2 for trial in others)
    assert found.best.validation < first.validation
    assert found.best.validation == min(trial.validation for trial in found.trials if trial.state == "complete")
    assert found.result.training.validation["loss"] == found.best.validation
    # The run writes down what its defaults came to.
    again = [*found.overrides, "train.batches_per_step=1", "data.train_batch_size=32"]
    assert compose(*again).fixed() == load_run_config(found.run_dir).fixed()
    assert [path.parent for path in root.glob("rates/*/results.json")] == [found.run_dir]


def test_what_is_worse_than_the_median_is_stopped(study: Study) -> None:
    root, found = study
    stopped = [trial.number for trial in found.trials if trial.state == "pruned"]
    assert stopped
    for trial in found.trials:
        folder = root / "rates" / f"trial_{trial.number}"
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        validated = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
        pruned = trial.number in stopped
        assert (max(validated) < 15) == pruned
        assert trial.validation == (validated[max(validated)] if pruned else min(validated.values()))
        assert not (folder / "run.holder").exists()


def test_trials_are_runs_of_one_sweep(study: Study, separable_bert: Path) -> None:
    from mlflow import MlflowClient

    root, found = study
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name(f"toy.{separable_bert.name}")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop("sweep.rates")
    assert parent.info.status == "FINISHED"
    assert parent.data.params["distilled_data.lr_init"] == "interval(0.02,1)"
    assert len(runs) == TRIALS
    for trial in found.trials:
        run = runs[f"rates.trial_{trial.number}"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == ("KILLED" if trial.state == "pruned" else "FINISHED")


def test_same_command_again(
    study: Study, separable_bert: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is nothing left to try; what it prints last is the command of the best run."""
    root, found = study
    given = settings(separable_bert, toy_data, root, "tracking=mlflow")
    main(["tune", "--trials", str(TRIALS), *given, "--study", "rates"])
    out = capsys.readouterr().out
    assert out.count("\ntrial ") == TRIALS - 1
    loss = found.trials[0].validation
    assert out.startswith(f"trial   0 complete {loss:.4f}   distilled_data.lr_init=0.1\n")
    assert f"\nbest: trial {found.best.number}\ntoy, {separable_bert}, protocol clean, 60 rows (test)" in out
    command = out.splitlines()[-1].strip()
    short = f"textdistill distill {toy_data} --text text --label label --model {separable_bert} "
    assert command.startswith(short)
    assert command.endswith(" ".join(found.best.overrides))
    results = json.loads(Path(found.run_dir, "results.json").read_text())
    assert results["metrics"] == found.result.to_dict()["metrics"]


def die_in_the_second_trial(given: list[str]) -> None:
    step, calls = OuterStep.__call__, iter(range(15 + 8))

    def dying(*arguments: Any) -> Any:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments)

    OuterStep.__call__ = dying  # type: ignore[method-assign]
    tune(given, 3)


def test_study_goes_on_after_a_kill(study: Study, separable_bert: Path, toy_data: Path, tmp_path: Path) -> None:
    """From the checkpoint of the trial that was running, with the same trials and losses as without the kill."""
    given = settings(separable_bert, toy_data, tmp_path)
    killed = FRESH.Process(target=die_in_the_second_trial, args=(given,))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    folder = tmp_path / f"toy.{separable_bert.name}"
    assert sorted(os.listdir(folder)) == ["run.holder", "run.lock", "trial_0", "trial_1"]
    found = tune(given, 3)
    assert found.study == folder.name
    assert found.trials == study[1].trials[:3]
    assert "going on from step 8/15" in (folder / "trial_1" / "run.log").read_text()
    with pytest.raises(
        ValueError, match=r"differ in train\.max_steps \(was 15, now 16\); restore these settings, or choose"
    ):
        tune([*given, "train.max_steps=16"], 3)


def test_trials_that_diverge_or_cannot_be_made_count(
    separable_bert: Path,
    toy_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def diverging(*_: Any) -> None:
        raise FloatingPointError("outer_loss nan")

    monkeypatch.setattr(tuning, "train", diverging)
    given = settings(separable_bert, toy_data, tmp_path, "distilled_data.attention_label_type=cls")
    given += ["distilled_data.attention_loss_lambda=0,-1"]
    with pytest.raises(FloatingPointError, match=r"study s must complete, got none of 4; lower the"):
        tune(given, 4, "s")
    # Its default, not in the search, is the only one that is allowed.
    (record,) = [record.getMessage() for record in caplog.records if "diverged" in record.getMessage()]
    assert record == "trial 0 diverged: outer_loss nan"
    assert sum("cannot run: distilled_data.attention_loss_lambda" in text for text in caplog.messages) == 3
    assert not list(tmp_path.rglob("results.json"))


def test_trial_that_fails_for_a_reason_outside_it_is_made_again(
    separable_bert: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = []

    def full(config: Any, *_: Any) -> None:
        numbers.append(config.base.run_name)
        raise OSError("No space left on device")

    monkeypatch.setattr(tuning, "train", full)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            tune(settings(separable_bert, toy_data, tmp_path), 4, "s")
    assert numbers == ["s.trial_0", "s.trial_0"]


# --- The search space


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        ("soft,hard", CategoricalDistribution(["hard", "soft"])),
        ("0.1,true,null", CategoricalDistribution(["0.1", "True", "null"])),
        ("shuffle(b,a)", CategoricalDistribution(["a", "b"])),
        ("[a],[b,'c d']", CategoricalDistribution(["[a]", "[b,'c d']"])),
        ("range(1,5)", IntDistribution(1, 4)),
        ("range(8,1,-3)", IntDistribution(2, 8, step=3)),
        ("range(0.5,2,0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
        ("interval(0,1)", FloatDistribution(0, 1)),
        ("tag(log,interval(0.001,0.1))", FloatDistribution(0.001, 0.1, log=True)),
        ("tag(int,interval(1,8))", IntDistribution(1, 8)),
        ("tag(int,log,interval(1,8))", IntDistribution(1, 8, log=True)),
    ],
)
def test_search_space_is_a_sweep_of_hydra(value: str, asked: BaseDistribution) -> None:
    fixed, space = search_space(["a=1", f"b.c={value}", "d=[1,2]", "a=2"])
    assert fixed == ["a=2", "d=[1,2]"]
    assert space == {"b.c": asked}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["train.max_steps=1"], "tune needs at least one key with several values"),
        (["train.lr_lr=("], r"the override train\.lr_lr=\( cannot be read; quote the value: "),
        (["train.lr_lr=tag(log,interval(0,1))"], r"=tag\(log,interval\(0,1\)\) must be a search that Optuna can make"),
        (["train.lr_lr=range(3,3)"], r"train\.lr_lr=range\(3,3\) must be a search that Optuna can make"),
        (["train.lr_lr=glob(*)"], r"train\.lr_lr=glob\(\*\) must be a search that Optuna can make"),
        (["train.nonsense=1,2"], r"there is no key 'train\.nonsense'"),
        (["train.epoch=interval(1,3)"], "train.epoch"),
        (["distilled_data.label_type=soft,sharp"], "Invalid value 'sharp'"),
        (["train.epoch=1,2", "data.protocol=paper"], "data.protocol must be clean for tune, got paper"),
        (["train.epoch=1,2", "train.skip_train=true"], "train.skip_train must be false for tune"),
        (["train.select_by=loss,mcc"], "train.select_by must have one value for tune"),
        (["train.epoch=1,2", "base.save_dir=x"], "base.save_dir must be left out of tune"),
        (["train.epoch=1,2", "train.val_steps=0"], "train.val_steps must be at least 1, got 0"),
        (["train.epoch=1,2", "--trials", "0"], "--trials must be at least 1, got 0"),
        (["train.epoch=1,2", "--study", "a/b"], r"--study must be letters, digits, '\.', '-' and '_', got 'a/b'"),
    ],
)
def test_bad_search(
    given: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before there is a study."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(["tune", *given])
    assert exit_info.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_without_optuna(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "textdistill.commands.tune")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit) as exit_info:
        main(["tune", "train.epoch=1,2"])
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert err == "textdistill: error: tune needs Optuna; install the extra: pip install 'textdistill[tune]'\n"
