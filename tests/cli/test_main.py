"""The command line: one run of every verb, sweeps, help, and what bad input leads to."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import transformers
import yaml
from hydra.core.utils import run_job

import textdistill
from tests.support import toy
from tests.support.fixtures import SaveModel, WithStore
from tests.support.models import tiny_bert_config
from tests.support.words import toy_rows
from textdistill import config
from textdistill.cli import hydra_app
from textdistill.cli.app import verb_names
from textdistill.cli.main import main
from textdistill.commands import distill as commands
from textdistill.distilled import storage
from textdistill.distilled.dataset import DistilledDataset
from textdistill.runs.mlflow_store import Destination, MlflowConfig
from textdistill.runs.results import ModelId, RunResult, SplitSize, TrainingSummary
from textdistill.training.outer_step import OuterStep
from textdistill.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("process_state")

SCRIPT = Path(sys.executable).with_name("textdistill")
SWEEP_OF_THE_REFERENCE = [
    "-m",
    "data.task_name=sst2",
    "distilled_data.label_type=unrestricted",
    "distilled_data.attention_label_type=cls",
    "distilled_data.lr_init=0.01,0.1",
    "train.lr_inputs_embeds=0.1,0.01,0.001",
]


@pytest.fixture
def settings(tiny_bert: Path, toy_data: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Quick overrides; the run folder is ``tmp_path / "run"``."""

    def settings(*more: str) -> list[str]:
        return toy.overrides(tiny_bert, toy_data, tmp_path / "save", f"base.save_dir={tmp_path}/run", *more)

    return settings


@pytest.fixture(scope="module")
def distilled_dir(tiny_bert: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    commands.distill(config.compose(*toy.overrides(tiny_bert, toy_data, root, f"base.save_dir={root}/run")))
    return root / "run" / "distilled"


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


# --- Every verb, once


def test_distill_in_a_process_of_its_own(settings: Callable[..., list[str]], tmp_path: Path) -> None:
    """Without tracking, MLflow is never imported."""
    code = "import sys; from textdistill.cli.main import main; main(sys.argv[1:]); assert 'mlflow' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, "distill", *settings()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        *(".hydra", "config.yaml", "metrics.jsonl", "run.log", "checkpoints", "distilled", "results.json", "run.lock")
    }
    assert sorted(os.listdir(run / ".hydra")) == ["config.yaml", "hydra.yaml", "overrides.yaml"]
    assert "train.max_steps=2" in yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())
    assert yaml.safe_load((run / ".hydra" / "config.yaml").read_text())["train"]["max_steps"] == 2
    assert yaml.safe_load((run / ".hydra" / "hydra.yaml").read_text())["hydra"]["job"]["name"] == "run"
    accuracy = results_of(run)["metrics"]["accuracy"]
    score = f"{accuracy['mean']:.4f} ± {accuracy['std']:.4f} (n=2 learners); majority class "
    assert re.search(rf"^  accuracy +{re.escape(score)}0\.\d{{4}}$", done.stdout, re.MULTILINE)
    assert f"results: {run}/results.json" in done.stdout
    assert "step 2/2 validation" in (run / "run.log").read_text()
    assert "Traceback" not in done.stderr


def test_evaluate(distilled_dir: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Task, columns, model and protocol are the set's; only the data have to be found."""
    given = [f"data.path={toy_data}", "evaluate.n_eval_model=2", f"base.save_dir={tmp_path}/run"]
    main(["evaluate", str(distilled_dir), *given])
    assert results_of(tmp_path / "run")["metrics"] == results_of(distilled_dir.parent)["metrics"]
    assert "(n=2 learners)" in capsys.readouterr().out


def test_finetune(distilled_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["finetune", str(distilled_dir), "--output", str(tmp_path / "model"), "--seed", "1"])
    assert f"the model is in {tmp_path}/model" in capsys.readouterr().out
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}


def test_show(distilled_dir: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lr = DistilledDataset.from_pretrained(distilled_dir).lr.item()
    main(["show", str(distilled_dir)])
    out = capsys.readouterr().out
    assert out.startswith(f"toy, made for {tiny_bert} (sha256:")
    assert "inputs_embeds      (3, 8, 16)                      1.5 KiB" in out
    assert f"learning rates: {lr:.4g}, from " in out
    # Unrestricted labels after a few steps: still near those that they start from.
    (labels,) = re.findall(r"^sample 2\n  labels: a (-?0\.\d+), b (-?0\.\d+), c ([01]\.\d+)$", out, re.MULTILINE)
    assert [round(float(value)) for value in labels] == [0, 0, 1]
    assert re.search(r"^  attention: layer \d head \d row 0 -> key \d ", out, re.MULTILINE)
    assert "\n  nearest tokens: " in out


@pytest.mark.parametrize(
    ("kind", "training"), [("full", None), ("random", None), ("k-centers", "inner_loop"), ("herding", "ordinary")]
)
def test_baseline(
    kind: str,
    training: str | None,
    settings: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["baseline", kind, *(["--training", training] if training else []), *settings()])
    results = results_of(tmp_path / "run")
    assert results["baseline"] == kind
    assert results.get("training") == (None if kind == "full" else training or "inner_loop")
    assert f"(n={1 if kind == 'full' else 2} learners)" in capsys.readouterr().out


def test_resume_after_an_interrupt(
    settings: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And by distill, which starts a run where there is none."""
    step, signals = OuterStep.__call__, iter([signal.SIGINT, signal.SIGTERM])

    def interrupted(*args: Any) -> Any:
        for signum in signals:
            signal.raise_signal(signum)
            break
        return step(*args)

    monkeypatch.setattr(OuterStep, "__call__", interrupted)
    run, arguments = tmp_path / "run", ["distill", *settings("train.resume=true", "train.max_steps=3")]
    for reached, status in ((1, 130), (2, 143)):
        code, err = fail(arguments, capsys, tmp_path)
        assert code == status
        place = f"at step {reached}/3; the state is in {run}/checkpoints/checkpoint.safetensors"
        assert err.strip().splitlines()[-1] == f"textdistill: interrupted {place}"
        assert (run / "checkpoints" / "last").is_dir()
    hydra_files = {path: path.read_bytes() for path in (run / ".hydra").iterdir()}
    main(["resume", str(run)])
    assert f"results: {run}/results.json" in capsys.readouterr().out
    assert results_of(run)["outer_steps"] == 3
    assert {path: path.read_bytes() for path in (run / ".hydra").iterdir()} == hydra_files


def test_folder_of_a_run_is_refused(
    settings: Callable[..., list[str]], distilled_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before Hydra writes to it, too."""
    run = Path(shutil.copytree(distilled_dir.parent, tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, err = fail(["distill", *settings()], capsys, tmp_path)
    assert code == 2
    assert f"base.save_dir={run} holds a run; set train.resume=true to go on with it" in one_error(err)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_verify(distilled_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The card says how the score was measured; nothing else need be given."""
    main(["verify", str(distilled_dir)])
    out = capsys.readouterr().out
    accuracy = results_of(distilled_dir.parent)["metrics"]["accuracy"]
    score = f"{accuracy['mean']:.4f} ± {accuracy['std']:.4f} (n=2 learners)"
    assert f"  accuracy          stated   {score}\n                    measured {score}: within\n" in out
    assert out.endswith(f"unusual: nothing\nverified: {distilled_dir}\n")
    assert "note:" not in out
    assert not list(tmp_path.rglob("results.json"))


def test_verify_of_a_set_that_states_too_much(
    distilled_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(distilled_dir, tmp_path / "set"))
    card = json.loads((folder / "config.json").read_text())
    del card["config_sha256"]
    accuracy = card["provenance"]["scores"]["accuracy"]
    accuracy["mean"] += accuracy["std"] + 0.01
    (folder / "config.json").write_bytes(storage.sealed(card))
    with pytest.raises(SystemExit) as exit_info:
        main(["verify", str(folder)])
    out, err = capsys.readouterr()
    assert exit_info.value.code == 2
    assert one_error(err) == f"textdistill: error: {folder}: the measured score is outside the stated spread"
    assert re.findall(r"measured .*: (\w+)$", out, re.MULTILINE).count("outside") == 1
    assert re.search(r"^  accuracy .*\n +measured .*: outside$", out, re.MULTILINE)
    assert f"stated   {accuracy['mean']:.4f}" in out
    assert "verified:" not in out


@pytest.mark.parametrize("name", ["distilled.safetensors", "config.json"])
def test_verify_of_a_damaged_set(
    name: str, distilled_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(distilled_dir, tmp_path / "set"))
    content = bytearray((folder / name).read_bytes())
    content[-10] ^= 1
    (folder / name).write_bytes(content)
    code, err = fail(["verify", str(folder)], capsys, tmp_path)
    assert code == 2
    assert f"{folder}/{name}" in one_error(err)


def test_track(distilled_dir: Path, with_store: WithStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(distilled_dir.parent, tmp_path / "run"))
    config_file = run / "config.yaml"
    tree = yaml.safe_load(config_file.read_text())
    tree["base"]["save_dir_root"] = str(with_store(tmp_path / "save"))
    config_file.write_text(yaml.safe_dump(tree))
    main(["track", str(run)])
    run_id = json.loads((run / "mlflow.json").read_text())["run_id"]
    assert capsys.readouterr().out.splitlines()[-1] == f"MLflow run {run_id} is complete"
    from mlflow import MlflowClient

    found = MlflowClient(f"sqlite:///{tmp_path}/save/mlflow.db").get_run(run_id)
    assert found.data.metrics["avg.accuracy"] == results_of(run)["metrics"]["accuracy"]["mean"]


def test_reference_experiment_from_the_command_line(settings: Callable[..., list[str]], tmp_path: Path) -> None:
    main(["distill", "experiment=reference", *settings()])
    assert results_of(tmp_path / "run")["protocol"] == "paper"


def test_module_is_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["textdistill"])
    runpy.run_module("textdistill", run_name="__main__")
    assert capsys.readouterr().out.startswith("Usage: textdistill [OPTIONS] COMMAND")


# --- Sweeps


def test_sweep_makes_a_folder_and_a_tracked_run_for_every_job(
    tiny_bert: Path, toy_data: Path, with_store: WithStore, tmp_path: Path
) -> None:
    root = with_store(tmp_path / "save")
    overrides = toy.overrides(tiny_bert, toy_data, root, "tracking=mlflow", "distilled_data.lr_init=0.1,0.2")
    overrides.remove("tracking=none")
    main(["distill", *overrides, "-m"])
    folders = sorted(path.parent for path in root.glob("toy.*/**/results.json"))
    assert [path.name.rpartition(".")[2] for path in folders] == ["job_0", "job_1"]
    for path in folders:
        assert {"config.yaml", "metrics.jsonl", "run.log", "checkpoints", "distilled"} <= set(os.listdir(path))
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name(f"toy.{tiny_bert.name}")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    *runs, parent = sorted(found, key=lambda run: str(run.data.params["distilled_data.lr_init"]).split(",")[::-1])
    assert parent.info.status == "FINISHED"
    assert parent.data.params == dict(override.split("=", 1) for override in overrides)
    assert [run.data.params["distilled_data.lr_init"] for run in runs] == ["0.1", "0.2"]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        folder = Path(run.data.params["base.save_dir"])
        assert run.data.metrics["avg.accuracy"] == results_of(folder)["metrics"]["accuracy"]["mean"]
        assert {"train_loss", "lr.0", "optimizer_lr", "validation_loss", "std.accuracy"} <= run.data.metrics.keys()
        artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert artifacts == {".hydra", "best", "last", "run.log", "results.json"}


def test_sweep_line_of_the_reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its README's line composes as it is; jobs get folders of their own, after the MLflow run of the sweep."""
    seen: list[Any] = []
    training = TrainingSummary(outer_steps=0, training_seconds=0.0, validation={"loss": 0.5})
    splits = {"test": SplitSize("", 0)}
    result = RunResult("", ModelId("", None), "", splits, seed=0, metrics={}, versions={}, training=training)

    def fake(run_config: config.RunConfig, hydra_files: dict[str, str]) -> RunResult:
        run_config.check()
        overrides = yaml.safe_load(hydra_files["overrides.yaml"])
        assert "data.task_name=sst2" in overrides
        assert f"distilled_data.lr_init={run_config.distilled_data.lr_init}" in overrides
        seen.append(run_config)
        return result

    monkeypatch.setattr(hydra_app, "distill", fake)
    sweep_run = Mock(side_effect=lambda *arguments: seen.append(arguments) or Mock())
    monkeypatch.setattr(config, "SweepRun", sweep_run)
    main(["distill", *SWEEP_OF_THE_REFERENCE])
    (destination, sweep, given), *runs = seen
    assert destination() == Destination.of(MlflowConfig(), Path("./save"), "sst2.minilm-l6")
    assert list(given) == SWEEP_OF_THE_REFERENCE[1:]
    grid = [(run.distilled_data.lr_init, run.train.lr_inputs_embeds) for run in runs]
    assert grid == [(lr_init, lr) for lr_init in (0.01, 0.1) for lr in (0.1, 0.01, 0.001)]
    assert len({run.base.save_dir for run in runs}) == 6
    for number, run in enumerate(runs):
        assert isinstance(run, config.RunConfig)
        assert run.base.sweep == sweep
        assert run.base.save_dir.startswith(f"{tmp_path}/save/sst2.minilm-l6/dpc_1.")
        assert run.base.save_dir.endswith(f".job_{number}")
        assert run.train.save_ckpt_dir == f"{run.base.save_dir}/checkpoints"
        assert run.distilled_data.label_type == "unrestricted"


def test_job_that_fails_does_not_end_the_others(
    tiny_bert: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = toy.overrides(tiny_bert, toy_data, tmp_path / "save", "train.max_steps=1", "distilled_data.lr_init=0,1")
    with pytest.raises(SystemExit) as exit_info:
        main(["distill", *overrides, "-m"])
    out, err = capsys.readouterr()
    assert exit_info.value.code == 1
    reason = "job 0 failed: distilled_data.lr_init must be above 0 and finite, got 0.0"
    assert out.count(reason) == 1
    assert f"\ntextdistill: error: {reason}\n" in err
    assert "Traceback" not in err
    (finished,) = (tmp_path / "save").glob("toy.*/*.job_*/results.json")
    assert finished.parent.name.endswith(".job_1")


def test_parallel_jobs_are_runs_of_one_sweep(
    tiny_bert: Path, toy_data: Path, with_store: WithStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where one fails, of which the sweep's own run tells."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    root = with_store(tmp_path / "save")
    overrides = toy.overrides(tiny_bert, toy_data, root, "train.max_steps=1", "tracking=mlflow")
    overrides.remove("tracking=none")
    jobs = ["distilled_data.lr_init=0,0.1,0.2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "-m"]
    with pytest.raises(SystemExit) as exit_info:
        main(["distill", *overrides, *jobs])
    err = capsys.readouterr().err
    assert exit_info.value.code == 1
    assert "\ntextdistill: error: job 0 failed: distilled_data.lr_init must be above 0 and finite, got 0.0\n" in err
    assert "Traceback" not in err
    folders = sorted(root.glob("toy.*/*.job_*/results.json"))
    assert [path.parent.name.rpartition(".")[2] for path in folders] == ["job_1", "job_2"]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name(f"toy.{tiny_bert.name}")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in found if run.data.params["distilled_data.lr_init"] == "0,0.1,0.2"]
    assert parent.info.status == "FAILED"
    children = [run for run in found if run is not parent]
    assert len(children) == 2
    for run in children:
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_distill_returns_the_validation_metric(
    settings: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a sweeper minimises is never read from the test split."""
    returned = []

    def spy(*args: Any, **kwargs: Any) -> Any:
        job = run_job(*args, **kwargs)
        returned.append(job.return_value)
        return job

    monkeypatch.setattr("hydra._internal.hydra.run_job", spy)
    main(["distill", *settings()])
    assert returned == [results_of(tmp_path / "run")["validation"]["loss"]]
    main(["distill", *settings("train.skip_train=true", f"base.save_dir={tmp_path}/other")])
    assert math.isnan(returned[1])
    # A sweeper minimises, so a score that is best at its highest is returned with the other sign.
    main(["distill", *settings("train.select_by=mcc", f"base.save_dir={tmp_path}/mcc")])
    assert returned[2] == -results_of(tmp_path / "mcc")["validation"]["mcc"]


# --- Help


@pytest.mark.parametrize("verb", [*verb_names(), None])
def test_help_answers_at_once(verb: str | None) -> None:
    for _ in range(3):  # the fastest counts
        started = time.monotonic()
        done = subprocess.run([SCRIPT, *([verb] if verb else []), "--help"], capture_output=True, text=True, check=True)
        seconds = time.monotonic() - started
        assert done.stdout.startswith(f"Usage: textdistill {verb or ''}".rstrip())
        if seconds < 1.0:
            break
    assert seconds < 1.0


def test_help_imports_nothing_slow() -> None:
    code = f"""
import sys
from textdistill.cli.main import main
for verb in {[*verb_names()]}:
    main([verb, "--help"])
main([])
assert not {{"torch", "transformers", "hydra", "numpy", "rich", "yaml"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- Bad input


def write_rows(path: Path, rows: list[tuple[str, Any]], header: tuple[str, str] = ("text", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


BAD_DATA: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing file": (lambda folder: folder / "none.csv", "data.path must be a file or a folder"),
    "empty file": (lambda folder: _touch(folder / "empty.csv"), "empty"),
    "no rows": (lambda folder: write_rows(folder / "header.csv", []), "must not be empty"),
    "no text column": (
        lambda folder: write_rows(folder / "other.csv", toy_rows(10, 0), ("body", "label")),
        "data.text_columns",
    ),
    "no label column": (
        lambda folder: write_rows(folder / "other.csv", toy_rows(10, 0), ("text", "kind")),
        "data.label_column",
    ),
    "one class": (
        lambda folder: write_rows(folder / "one.csv", [(text, "a") for text, _ in toy_rows(10, 0)]),
        "data.label_column: 'label' must hold two or more classes, got 'a' only",
    ),
    "class that train lacks": (
        lambda folder: _split(folder, [row for row in toy_rows(10, 0) if row[1] != "b"], toy_rows(10, 1)),
        "label 'b' of the test split is none of the labels of train, a, c",
    ),
    "hidden labels": (
        lambda folder: write_rows(folder / "hidden.csv", [(text, -1) for text, _ in toy_rows(10, 0)]),
        "data.label_column: 'label' of the train split must not hold -1 in every row",
    ),
}


def _touch(path: Path) -> Path:
    path.touch()
    return path


def _split(folder: Path, train: list[tuple[str, Any]], test: list[tuple[str, Any]]) -> Path:
    write_rows(folder / "data" / "train.csv", train)
    return write_rows(folder / "data" / "test.csv", test).parent


BAD_SETTINGS: dict[str, tuple[list[str], str]] = {
    "unknown task": (["data.task_name=agnews", "data.path=null"], "unknown task 'agnews'; known tasks: ag_news, sst2"),
    "divisible": (
        ["distilled_data.data_per_label=3", "learner_train.batch_size_per_label=2"],
        "distilled_data.data_per_label=3 must be divisible by learner_train.batch_size_per_label=2",
    ),
    "positions": (
        ["distilled_data.seq_length=65"],
        "distilled_data.seq_length must be at most the 64 positions of",
    ),
    "lambda": (
        ["distilled_data.attention_label_type=cls", "distilled_data.attention_loss_lambda=0"],
        "distilled_data.attention_loss_lambda must be above 0 and finite with attention labels (cls), got 0",
    ),
    "two precisions in training": (["train.fp16=true", "train.bf16=true"], "train.fp16 and train.bf16 exclude"),
    "two precisions in evaluation": (
        ["evaluate.fp16=true", "evaluate.bf16=true"],
        "evaluate.fp16 and evaluate.bf16 exclude",
    ),
    "precision of a difference": (
        ["train.inner_precision=bf16"],
        "train.inner_precision must be float32 with train.estimator=difference, got bf16",
    ),
    "precision of several steps": (
        ["train.inner_precision=bf16", "train.estimator=forward", "learner_train.train_step=2"],
        "train.inner_precision=bf16 needs learner_train.train_step=1, got 2",
    ),
    "inner loop": (["train.inner_loop=2"], "train.inner_loop must be learner_train.train_step=1, got 2"),
    "scheduler": (["train.scheduler_type=nope"], "train.scheduler_type must be one of linear, cosine"),
    "lr": (["distilled_data.lr_init=0"], "distilled_data.lr_init must be above 0 and finite, got 0"),
    "model": (["model.model_name=/none/such"], "/none/such"),
    "max_length": (["data.max_length=100"], "data.max_length must be at most the 64 positions of"),
}


def fail(arguments: list[str], capsys: pytest.CaptureFixture[str], folder: Path) -> tuple[int, str]:
    """Exit status and standard error of a command that must fail and leave nothing behind."""
    before = set(folder.rglob("results.json")) | set(folder.rglob("distilled"))
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert set(folder.rglob("results.json")) | set(folder.rglob("distilled")) == before
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code, err


def one_error(err: str) -> str:
    """The message, which is one line and the last."""
    *others, message = err.strip().splitlines()
    assert message.startswith("textdistill: error: ")
    assert not [line for line in others if "error" in line]
    return message


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(
    case: str, settings: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD_DATA[case]
    code, err = fail(["distill", *settings(f"data.path={make(tmp_path)}")], capsys, tmp_path)
    assert code == 2
    assert "data" in one_error(err)
    assert message in one_error(err)


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_setting(
    case: str, settings: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, message = BAD_SETTINGS[case]
    code, err = fail(["distill", *settings(*overrides)], capsys, tmp_path)
    assert code == 2
    assert message in one_error(err)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("data.nonsense=1", "there is no key 'data.nonsense'"),
        ("nonsense=1", "there is no key 'nonsense'"),
        ("train.epoch=many", "Value 'many' of type 'str' could not be converted to Integer"),
        ("distilled_data.label_type=sharp", "Invalid value 'sharp', expected one of [hard, soft, unrestricted]"),
        ("experiment=nope", "experiment/nope"),
    ],
)
@pytest.mark.parametrize("verb", ["distill", "baseline"])
def test_unknown_key_or_value(
    verb: str,
    override: str,
    reason: str,
    settings: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hydra's errors take one line as well."""
    arguments = ["distill"] if verb == "distill" else ["baseline", "random"]
    code, err = fail([*arguments, *settings(override)], capsys, tmp_path)
    assert code == 2
    assert reason in one_error(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["destil"], "there is no verb 'destil'; did you mean 'distill'?"),
        (["evaluate"], "missing argument 'DISTILLED_DIR'; usage: textdistill evaluate "),
        (["evaluate", "data.path=x"], "'data.path=x' is neither a folder here nor"),
        (["evaluate", "none/such/set"], "'none/such/set' is neither a folder here nor"),
        (["show", "none/such/set"], "'none/such/set' is neither a folder here nor"),
        (["show"], "missing argument 'DISTILLED_DIR'; usage: textdistill show "),
        (["resume"], "missing argument 'RUN_DIR'; usage: textdistill resume "),
        (["resume", "a", "b=c"], "got unexpected extra argument(s) (b=c); usage: textdistill resume "),
        (["resume", "none/such/run"], "none/such/run must be a run folder with a config.yaml"),
        (["track", "none/such/run"], "none/such/run must be a run folder with a config.yaml"),
        (["verify"], "missing argument 'DISTILLED_DIR'; usage: textdistill verify "),
        (["verify", "none/such/set"], "'none/such/set' is neither a folder here nor"),
        (["finetune", "none/such/set", "--output", "model"], "'none/such/set' is neither a folder here nor"),
        (["baseline"], "missing argument 'KIND'. Choose from: full, random, k-centers, herding"),
        (["report", "none/such/run"], "none/such/run holds no results.json: name a run folder"),
        (["baseline", "k_centers"], "'k_centers' is not one of 'full', 'random', 'k-centers', 'herding'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = fail(arguments, capsys, tmp_path)
    assert code == 2
    assert message in one_error(err)


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ([], "### toy, "),
        (["--output", "out/a.md"], "### toy, "),
        (["--output", "out/a.html"], "<!DOCTYPE html>"),
        (["--output", "out/a.csv"], "task,protocol,model,method,"),
        (["--output", "out/a.tex"], "\\begin{table}"),
        (["--output", "out/a.txt", "--format", "latex"], "\\begin{table}"),
        (["--format", "csv"], "task,protocol,model,method,"),
    ],
)
def test_report(
    arguments: list[str], start: str, distilled_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(distilled_dir.parent), *arguments])
    out = capsys.readouterr().out
    if "--output" in arguments:
        assert out == f"report: {arguments[1]}\n"
        out = (tmp_path / arguments[1]).read_text()
    assert out.startswith(start)


def test_report_of_an_unknown_ending(distilled_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = fail(["report", str(distilled_dir.parent), "--output", "report.pdf"], capsys, tmp_path)
    assert code == 2
    assert one_error(err).endswith(
        "--output must end in one of .html, .md, .csv, .tex, got report.pdf; or give --format"
    )


def test_finetune_needs_an_output(distilled_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = fail(["finetune", str(distilled_dir)], capsys, tmp_path)
    assert code == 2
    assert "missing option '--output'" in one_error(err)


@pytest.mark.parametrize("verb", ["evaluate", "finetune", "distill"])
def test_set_that_does_not_fit_the_model(
    verb: str,
    distilled_dir: Path,
    save_model: SaveModel,
    settings: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wider = tiny_bert_config()
    wider.hidden_size = 32
    model = save_model(wider, tmp_path / "wider")
    arguments = {
        "evaluate": ["evaluate", str(distilled_dir), *settings(f"model.model_name={model}")],
        "finetune": ["finetune", str(distilled_dir), "--output", str(tmp_path / "model"), "--model", str(model)],
        "distill": [
            "distill",
            *settings(f"model.model_name={model}", f"distilled_data.pretrained_data_path={distilled_dir}"),
        ],
    }
    code, err = fail(arguments[verb], capsys, tmp_path)
    assert code == 2
    assert "embedding_size 16, but model.model_name=" in one_error(err)
    assert not (tmp_path / "model").exists()


def test_interrupt(
    settings: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where no state can be kept."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", interrupted)
    code, err = fail(["distill", *settings()], capsys, tmp_path)
    assert code == 130
    assert err.strip().endswith("textdistill: interrupted")


def test_sigterm_of_a_process(settings: Callable[..., list[str]], tmp_path: Path) -> None:
    arguments = settings("train.max_steps=1000000", "train.epoch=1000000", "train.val_steps=1000000")
    process = subprocess.Popen(
        [SCRIPT, "distill", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "checkpoints" / "checkpoint.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert "textdistill: interrupted at step " in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert (tmp_path / "run" / "checkpoints" / "last").is_dir()
    assert not (tmp_path / "run" / "results.json").exists()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"textdistill {textdistill.__version__}\n"
