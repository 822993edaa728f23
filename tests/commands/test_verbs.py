"""The verbs as functions: what a run folder holds, and that all verbs tell one story."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, BertConfig, pipeline

from tests.support import toy
from tests.support.fixtures import SaveModel, WithStore
from tests.support.models import tiny_bert_config
from tests.support.words import CLASS_NAMES
from textdistill.commands import context as context_module
from textdistill.commands.context import RunContext
from textdistill.commands.distill import distill, resume
from textdistill.commands.evaluate import baseline, evaluate, verify
from textdistill.commands.reports import track
from textdistill.commands.sets import finetune, show
from textdistill.config import RunConfig, compose, load_run_config
from textdistill.data.tokens import TokenizedSplit
from textdistill.distilled import storage
from textdistill.distilled.dataset import DistilledDataset
from textdistill.evaluation import baselines
from textdistill.runs import mlflow
from textdistill.runs.folder import RunFolder
from textdistill.runs.results import Score
from textdistill.training.interrupts import Interrupted
from textdistill.training.outer_step import OuterStep
from textdistill.training.trainer import Trainer

SETTINGS = [
    "distilled_data.label_type=unrestricted",
    "distilled_data.attention_label_type=cls",
    "distilled_data.lr_init=1.0",
    "train.max_steps=3",
    "train.val_steps=1",
    "train.n_eval_model=2",
    "evaluate.n_eval_model=3",
    "base.seed=5",
]
Compose = Callable[..., RunConfig]


@pytest.fixture
def composed(tiny_bert: Path, toy_data: Path, tmp_path: Path) -> Compose:
    """A quick configuration with the run folder ``tmp_path / "run"``."""

    def composed(*more: str) -> RunConfig:
        return compose(*toy.overrides(tiny_bert, toy_data, tmp_path, f"base.save_dir={tmp_path}/run", *more))

    return composed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture(scope="module")
def finished(tiny_bert: Path, toy_data: Path, root: Path) -> dict[str, Any]:
    """The results of one distillation whose run folder is ``root / "run"``."""
    config = compose(*toy.overrides(tiny_bert, toy_data, root, f"base.save_dir={root}/run", *SETTINGS))
    return distill(config).to_dict()


@pytest.fixture(scope="module")
def distilled_dir(finished: dict[str, Any], root: Path) -> Path:
    return root / "run" / "distilled"


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in DistilledDataset.from_pretrained(folder).raw.items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def assert_nothing_written(folder: Path) -> None:
    assert not list(folder.rglob("results.json"))
    assert not list(folder.rglob("distilled"))


def our_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("textdistill")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


# --- distill


def test_run_folder(finished: dict[str, Any], root: Path) -> None:
    run = root / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "run.log",
        "checkpoints",
        "distilled",
        "results.json",
        "run.lock",
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best", "last", "checkpoint.safetensors"}
    assert_equal(tensors(run / "distilled"), tensors(run / "checkpoints" / "best"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["distilled_data"]["lr_init"] == 1.0
    assert config["train"]["save_ckpt_dir"] == f"{run}/checkpoints"
    assert "step 3/3 validation: loss" in (run / "run.log").read_text()
    lines = [strict_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {name for line in lines for name in line}
    assert logged == {
        *("step", "time", "train_loss", "lr.0", "optimizer_lr", "clipped", "step_seconds", "checkpoint_seconds"),
        *(f"validation_{name}{suffix}" for name in ("loss", "accuracy") for suffix in ("", "_std")),
        *(f"{kind}.{name}" for name in ("loss", "accuracy") for kind in ("avg", "std")),
    }
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 1, 2, 3]
    # The best step has the lowest validation loss.
    best = min((line for line in lines if "validation_loss" in line), key=lambda line: line["validation_loss"])
    assert (finished["best_step"], finished["validation"]["loss"]) == (best["step"], best["validation_loss"])


def test_results(finished: dict[str, Any], root: Path, tiny_bert: Path) -> None:
    results = strict_json((root / "run" / "results.json").read_text())
    assert results == finished
    assert results["task"] == "toy"
    assert results["model"]["name"] == str(tiny_bert)
    assert results["model"]["revision"].startswith("sha256:")
    assert results["protocol"] == "clean"
    assert results["splits"] == {
        "train": {"source": "train (rest)", "rows": 216},
        "validation": {"source": "24 of train", "rows": 24},
        "test": {"source": "test", "rows": 60},
    }
    assert results["seed"] == 5
    assert results["outer_steps"] == 3
    assert results["best_step"] in range(4)
    assert set(results["metrics"]) == {"loss", "accuracy"}
    assert 0 < results["checkpoint_seconds"] < results["training_seconds"] < results["seconds"]
    assert results["peak_memory_bytes"] > 2**26
    assert results["clipped_steps"] in range(4)
    assert set(results["versions"]) == {"results", "textdistill", "torch", "transformers", "datasets"}
    for name, metric in results["metrics"].items():
        assert set(metric) == {"mean", "std", "n", "values"}
        assert metric["n"] == len(metric["values"]) == 3
        assert all(type(value) is float for value in (metric["mean"], metric["std"], *metric["values"])), name
        assert metric["mean"] == pytest.approx(sum(metric["values"]) / 3)
    assert all(math.isclose(value * 60, round(value * 60)) for value in results["metrics"]["accuracy"]["values"])


def test_card_tells_what_the_set_is(finished: dict[str, Any], distilled_dir: Path, tiny_bert: Path) -> None:
    card = DistilledDataset.from_pretrained(distilled_dir).metadata
    assert (card.task, card.class_names) == ("toy", CLASS_NAMES)
    assert card.model.name == str(tiny_bert)
    assert card.model.revision == finished["model"]["revision"]
    assert (card.data["max_length"], card.data["protocol"]) == (32, "clean")
    assert (card.provenance["seed"], card.provenance["outer_steps"]) == (5, 3)
    assert card.provenance["scores"] == finished["metrics"]


def test_selection_never_reads_the_test_split(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test split raises for every access until training is over."""
    events: list[str] = []

    class Sealed:
        def __init__(self, split: TokenizedSplit) -> None:
            self.split = split

        def __getattr__(self, name: str) -> Any:
            assert "trained" in events, f"selection read {name} of the test split"
            return getattr(self.split, name)

        def __len__(self) -> int:
            assert "trained" in events, "selection read the length of the test split"
            return len(self.split)

    tokenize, train = context_module.tokenize, Trainer.train

    def sealing(*args: Any) -> dict[str, Any]:
        splits = tokenize(*args)
        return {**splits, "test": Sealed(splits["test"])}

    def training(*args: Any) -> Any:
        result = train(*args)
        events.append("trained")
        return result

    monkeypatch.setattr(context_module, "tokenize", sealing)
    monkeypatch.setattr(Trainer, "train", training)
    assert distill(composed()).splits["test"].rows == 60
    events.clear()
    with pytest.raises(AssertionError, match="selection read"):
        distill(composed("train.skip_train=true", f"base.save_dir={tmp_path}/other"))


def test_data_that_are_too_few_leave_no_run_folder(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.batches_per_step must be at most the \d+ batches"):
        distill(composed("train.batches_per_step=1000"))
    assert not (tmp_path / "run").exists()


def test_skip_train(composed: Compose, tmp_path: Path) -> None:
    results = distill(composed("train.skip_train=true")).to_dict()
    assert results["outer_steps"] == 0
    assert "validation" not in results
    assert not (tmp_path / "run" / "checkpoints").exists()
    # The set as it starts, which training moves.
    start = tensors(tmp_path / "run" / "distilled")
    torch.testing.assert_close(torch.nn.functional.softplus(start["lr"]), torch.tensor([0.1]))
    distill(composed(f"base.save_dir={tmp_path}/trained"))
    last = tensors(tmp_path / "trained" / "checkpoints" / "last")
    assert not torch.equal(last["inputs_embeds"], start["inputs_embeds"])


def test_pretrained_data_path_goes_on_from_a_saved_set(
    finished: dict[str, Any], distilled_dir: Path, composed: Compose, tmp_path: Path
) -> None:
    same = distill(composed(*SETTINGS, f"distilled_data.pretrained_data_path={distilled_dir}", "train.skip_train=true"))
    assert_equal(tensors(tmp_path / "run" / "distilled"), tensors(distilled_dir))
    assert same.to_dict()["metrics"] == finished["metrics"]
    other = f"base.save_dir={tmp_path}/other"
    distill(composed(*SETTINGS, f"distilled_data.pretrained_data_path={distilled_dir}", other))
    first, *_ = map(strict_json, (tmp_path / "other" / "metrics.jsonl").read_text().splitlines())
    assert (first["step"], first["validation_loss"]) == (0, finished["validation"]["loss"])
    last = tensors(tmp_path / "other" / "checkpoints" / "last")
    assert not torch.equal(last["inputs_embeds"], tensors(distilled_dir)["inputs_embeds"])


def test_pretrained_set_counts(
    distilled_dir: Path, composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"distilled_data.pretrained_data_path={distilled_dir}"
    distill(composed(path, "train.skip_train=true", "distilled_data.seq_length=4"))
    (warning,) = our_warnings(caplog)
    assert warning.startswith("distilled_data.{attention_label_type,seq_length,label_type,lr_init} have no effect")
    assert tensors(tmp_path / "run" / "distilled")["inputs_embeds"].shape == (3, 8, 16)
    with pytest.raises(ValueError, match=r"learner_train\.train_step must be 1, that of the set in .*, got 2"):
        distill(composed(path, "learner_train.train_step=2"))


def test_diverged_learners_are_no_result(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = Score.of([1.0, math.nan])
    monkeypatch.setattr(RunContext, "score", lambda *_: {"loss": nan, "accuracy": nan})
    with pytest.raises(FloatingPointError, match=r"losses of the learners on the test split must be finite"):
        distill(composed())
    assert_nothing_written(tmp_path)


def test_warning_comes_once(composed: Compose, distilled_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = composed("train.lr_attention_labels=0.5")
    for verb in (lambda: distill(config), lambda: evaluate(distilled_dir, config), lambda: baseline("full", config)):
        caplog.clear()
        verb()
        assert our_warnings(caplog) == [
            "train.lr_attention_labels has no effect: distilled_data.attention_label_type=none"
        ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_composed_files_are_kept(composed: Compose, tmp_path: Path) -> None:
    distill(composed("train.skip_train=true"), {"overrides.yaml": "- größe=1\n", "config.yaml": "a: 1\n"})
    assert contents(tmp_path / "run" / ".hydra") == {
        "overrides.yaml": "- größe=1\n".encode(),
        "config.yaml": b"a: 1\n",
    }


# --- resume


def timeless(value: Any) -> Any:
    """Without what was measured of the machine."""
    if isinstance(value, dict):
        measured = ("time", "seconds", "peak_memory_bytes")
        return {k: timeless(v) for k, v in value.items() if k not in measured and not k.endswith("_seconds")}
    return value


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    return [strict_json(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Lines, results, sets and state are equal but for times."""
    assert timeless(strict_json((run_dir / "results.json").read_text())) == timeless(
        strict_json((other / "results.json").read_text())
    )
    assert [*map(timeless, lines_of(run_dir))] == [*map(timeless, lines_of(other))]
    for name in ("distilled", "checkpoints/best", "checkpoints/last"):
        assert_equal(tensors(run_dir / name), tensors(other / name))
    state = "checkpoints/checkpoint.safetensors"
    assert_equal(load_file(run_dir / state), load_file(other / state))


@pytest.fixture
def copied(finished: dict[str, Any], root: Path, tmp_path: Path) -> Path:
    """The folder of the finished run at another place."""
    return Path(shutil.copytree(root / "run", tmp_path / "run"))


def test_folder_of_a_run_is_not_written_to_unless_asked(copied: Path, composed: Compose) -> None:
    before = contents(copied)
    with pytest.raises(ValueError, match=rf"base\.save_dir={copied} holds a run; set train\.resume=true to go on with"):
        distill(composed(*SETTINGS), {"config.yaml": "x"})
    assert contents(copied) == before
    # A checkpoint alone is a run as well.
    (copied / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="holds a run; set"):
        distill(composed(*SETTINGS))


def test_folder_that_is_being_written_is_refused(copied: Path, composed: Compose) -> None:
    with RunFolder(copied).lock():
        before = contents(copied)
        for verb in (lambda: distill(composed(*SETTINGS, "train.resume=true")), lambda: track(copied)):
            with pytest.raises(ValueError, match="is being written by pid"):
                verb()
        assert contents(copied) == before


def test_finished_run_gives_its_results_again(copied: Path, finished: dict[str, Any], root: Path) -> None:
    """In the folder where it is now."""
    (copied / "results.json").unlink()
    again = resume(copied).to_dict()
    assert timeless(again) == timeless(finished)
    assert strict_json((copied / "results.json").read_text()) == again
    assert_same_run(copied, root / "run")
    assert load_run_config(copied).train.save_ckpt_dir == f"{copied}/checkpoints"


def test_interrupted_run_goes_on_to_the_same_end(
    finished: dict[str, Any], root: Path, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = OuterStep.__call__, iter(range(1, 10))

    def interrupted(*args: Any) -> Any:
        if next(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(OuterStep, "__call__", interrupted)
    with pytest.raises(Interrupted, match="interrupted at step 2/3; the state is in") as error:
        distill(composed(*SETTINGS))
    assert_nothing_written(tmp_path)
    # The folder is free again.
    assert not (tmp_path / "run" / "run.holder").exists()
    resume(tmp_path / "run")
    assert error.value.signum == signal.SIGTERM
    assert_same_run(tmp_path / "run", root / "run")
    assert "going on from step 2/3" in (tmp_path / "run" / "run.log").read_text()
    assert next(calls) == 4, "one step was left"


def test_run_without_a_checkpoint_starts_anew(root: Path, copied: Path, finished: dict[str, Any]) -> None:
    (copied / "checkpoints" / "checkpoint.safetensors").unlink()
    resume(copied)
    assert_same_run(copied, root / "run")


def test_changed_settings_are_refused(copied: Path, composed: Compose) -> None:
    before = contents(copied)
    with pytest.raises(ValueError, match="a run goes on only with the configuration it began with") as error:
        distill(composed(*SETTINGS, "train.resume=true", "train.lr_lr=0.3", "distilled_data.lr_init=0.5"))
    message = str(error.value)
    assert re.findall(r"([\w.]+) \(was ([^,]+), now ([^)]+)\)", message) == [
        ("distilled_data.lr_init", "1.0", "0.5"),
        ("train.lr_lr", "None", "0.3"),
    ]
    assert contents(copied) == before


def test_changed_data_and_model_are_refused(
    copied: Path, composed: Compose, toy_data: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    """By content, wherever they are."""
    data, model = tmp_path / "data", tmp_path / "models" / tiny_bert.name
    shutil.copytree(toy_data, data)
    again = ["train.resume=true", "base.run_name=other", "train.checkpoint_interval=7", "train.log_interval=1"]
    distill(composed(*SETTINGS, *again, f"data.path={data}"))
    text = (data / "test.csv").read_text()
    (data / "test.csv").write_text(text.replace("cat", "dog"))
    with pytest.raises(ValueError, match=r"differs in data \(was '\w+', now '\w+'\); restore"):
        distill(composed(*SETTINGS, *again, f"data.path={data}"))
    shutil.copytree(tiny_bert, model)
    weights = load_file(model / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][0, 0] += 1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"differs in model \(was 'sha256:\w+', now 'sha256:\w+'\), model\.model_name"):
        distill(composed(*SETTINGS, *again, f"model.model_name={model}"))


def test_run_of_a_constant_schedule_can_be_made_longer(composed: Compose, tmp_path: Path) -> None:
    endless = ["train.scheduler_type=constant", "train.val_steps=2", "train.log_interval=1"]
    distill(composed(*endless, "train.max_steps=4"))
    longer = f"base.save_dir={tmp_path}/longer"
    distill(composed(*endless, longer, "train.max_steps=2"))
    distill(composed(*endless, longer, "train.max_steps=4", "train.resume=true"))
    for name in ("last", "best"):
        assert_equal(tensors(tmp_path / "longer/checkpoints" / name), tensors(tmp_path / "run/checkpoints" / name))
    with pytest.raises(ValueError, match=r"train\.max_steps must be at least 4, the step reached, got 3"):
        distill(composed(*endless, longer, "train.max_steps=3", "train.resume=true"))


# --- MLflow that fails, and runs that it sees in pieces


TRACKED = ["tracking=mlflow", "train.log_interval=1", "base.experiment_name=e", "train.checkpoint_interval=2"]


def in_mlflow(root: Path, run_dir: Path) -> tuple[Any, dict[tuple[str, int], tuple[float, int]]]:
    """The run of a folder, and its metrics: value and time in milliseconds by key and step, each once."""
    client = mlflow.open_client(mlflow.ensure_store(root))
    run = client.get_run(strict_json((run_dir / "mlflow.json").read_text())["run_id"])
    values = [metric for name in run.data.metrics for metric in client.get_metric_history(run.info.run_id, name)]
    found = {(metric.key, metric.step): (metric.value, metric.timestamp) for metric in values}
    assert len(found) == len(values), "a step has two values"
    return run, found


def in_lines(run_dir: Path) -> dict[tuple[str, int], tuple[float, int]]:
    return {
        (name, line["step"]): (value, int(line["time"] * 1000))
        for line in lines_of(run_dir)
        for name, value in line.items()
        if name not in ("step", "time")
    }


def artifacts_of(root: Path, run: Any) -> set[str]:
    client = mlflow.open_client(mlflow.ensure_store(root))
    return {file.path for file in client.list_artifacts(run.info.run_id)}


def test_run_that_mlflow_failed_in_is_completed(
    composed: Compose,
    with_store: WithStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    with_store(tmp_path)
    log_batch, calls = MlflowClient.log_batch, []

    def locked(self: MlflowClient, *args: Any, **entries: Any) -> None:
        if "metrics" in entries and len(calls) == 2:
            raise sqlite3.OperationalError("database is locked")
        calls.append(entries)
        log_batch(self, *args, **entries)

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", locked)
        result = distill(composed(*TRACKED, "train.max_steps=4"), {"overrides.yaml": "x"})
    (warning,) = our_warnings(caplog)
    assert f"OperationalError: database is locked); the run goes on and is recorded in {run_dir}/" in warning
    assert f"textdistill track {run_dir} completes" in warning
    assert (run_dir / "results.json").exists()
    run, found = in_mlflow(tmp_path, run_dir)
    assert run.info.status == "RUNNING"
    assert 0 < len(found) < len(in_lines(run_dir))

    assert track(run_dir) == run.info.run_id
    run, found = in_mlflow(tmp_path, run_dir)
    assert found == in_lines(run_dir)
    assert found["avg.loss", 4][0] == result.metrics["loss"].mean
    assert run.info.status == "FINISHED"
    assert run.data.params["train.max_steps"] == "4"
    assert artifacts_of(tmp_path, run) == {".hydra", "best", "last", "run.log", "results.json"}


def test_mlflow_run_of_a_run_that_died_goes_on(
    composed: Compose, with_store: WithStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the lines of a step beyond the last checkpoint, which come again and are not written twice."""
    with_store(tmp_path)
    step, calls = OuterStep.__call__, iter(range(1, 100))

    def dying(*args: Any) -> Any:
        if next(calls) == 4:
            raise RuntimeError("died")
        return step(*args)

    monkeypatch.setattr(OuterStep, "__call__", dying)
    run_dir = tmp_path / "run"
    with pytest.raises(RuntimeError, match="died"):
        distill(composed(*TRACKED, "train.max_steps=5", "train.val_steps=3"))
    run, before = in_mlflow(tmp_path, run_dir)
    assert run.info.status == "FAILED"
    assert before == in_lines(run_dir)
    assert {step for key, step in before if key == "train_loss"} == {1, 2, 3}
    assert {step for key, step in before if key == "validation_loss"} == {0, 3}
    resume(run_dir)
    again, after = in_mlflow(tmp_path, run_dir)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert {key: value for key, value in after.items() if key in before} == before
    lines = in_lines(run_dir)
    assert after.keys() == lines.keys()
    for (name, step_of), (value, _) in after.items():
        assert name.endswith("_seconds") or value == lines[name, step_of][0]
    client = mlflow.open_client(mlflow.ensure_store(tmp_path))
    assert len(client.search_runs([again.info.experiment_id])) == 1


def test_mlflow_run_of_an_interrupted_run_is_killed(
    composed: Compose, with_store: WithStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_store(tmp_path)
    step = OuterStep.__call__

    def interrupted(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(OuterStep, "__call__", interrupted)
    with pytest.raises(Interrupted):
        distill(composed(*TRACKED, "train.max_steps=5"))
    run, _ = in_mlflow(tmp_path, tmp_path / "run")
    assert run.info.status == "KILLED"


# --- verify


def test_verify_measures_what_is_stated(
    finished: dict[str, Any], distilled_dir: Path, composed: Compose, tmp_path: Path
) -> None:
    verification = verify(distilled_dir, composed(*SETTINGS))
    assert verification.verified is verification.same_data is verification.same_model is True
    assert verification.anomalies == []
    assert set(verification.metrics) == {"loss", "accuracy"}
    for name, metric in verification.metrics.items():
        expected = {key: finished["metrics"][name][key] for key in ("mean", "std", "n")}
        assert asdict(metric) == {"stated": expected, "measured": expected, "within": True}
    assert not (tmp_path / "run").exists(), "it writes nothing"


def stating(distilled_dir: Path, folder: Path, **scores: Any) -> Path:
    """A copy of the set whose card states other scores, sealed as its maker would."""
    shutil.copytree(distilled_dir, folder)
    card = strict_json((folder / "config.json").read_text())
    del card["config_sha256"]
    card["provenance"]["scores"] |= scores
    (folder / "config.json").write_bytes(storage.sealed(card))
    return folder


@pytest.mark.parametrize(
    ("shift", "std", "within"),
    [(0.04, 0.05, True), (0.06, 0.05, False), (-0.06, 0.05, False), (0.0, None, True), (0.001, None, False)],
)
def test_verify_allows_the_stated_spread(
    shift: float,
    std: float | None,
    within: bool,
    finished: dict[str, Any],
    distilled_dir: Path,
    composed: Compose,
    tmp_path: Path,
) -> None:
    stated = {"mean": finished["metrics"]["loss"]["mean"] + shift, "std": std, "n": 3}
    found = verify(stating(distilled_dir, tmp_path / "set", loss=stated), composed(*SETTINGS))
    assert found.metrics["loss"].within is found.verified is within
    assert asdict(found.metrics["loss"].stated) == stated
    assert found.metrics["accuracy"].within


def test_verify_says_that_data_or_model_are_others(
    distilled_dir: Path, composed: Compose, toy_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy_data, data)
    (data / "test.csv").write_text((data / "test.csv").read_text().replace("cat", "dog"))
    found = verify(distilled_dir, composed(*SETTINGS, f"data.path={data}"))
    assert (found.same_data, found.same_model) == (False, True)


def test_verify_needs_a_stated_score(distilled_dir: Path, composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoints/best: the card must state a score to be verified"):
        verify(distilled_dir.parent / "checkpoints" / "best", composed(*SETTINGS))
    for number, stated in enumerate([{"mean": 1.0, "std": 0.1}, {"mean": "1", "std": 0.1, "n": 3}, 0.5]):
        with pytest.raises(ValueError, match=r"the card must state mean, std and n of loss"):
            verify(stating(distilled_dir, tmp_path / f"set{number}", loss=stated), composed(*SETTINGS))


@pytest.mark.parametrize("name", ["distilled.safetensors", "config.json"])
def test_one_flipped_bit_is_named(name: str, distilled_dir: Path, composed: Compose, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(distilled_dir, tmp_path / "set"))
    content = bytearray((folder / name).read_bytes())
    # The lowest bit of a digit of the stated score, and of a tensor's last number.
    place = content.index(b'"mean"') + 11 if name == "config.json" else len(content) - 4
    content[place] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{folder}/{name}: (the |config_)sha256 must be"):
        verify(folder, composed(*SETTINGS))


# --- evaluate


def test_evaluate_repeats_the_score_of_distill(
    finished: dict[str, Any], distilled_dir: Path, composed: Compose, tmp_path: Path
) -> None:
    results = evaluate(distilled_dir, composed("base.seed=5", "evaluate.n_eval_model=3")).to_dict()
    assert results["metrics"] == finished["metrics"]
    assert results == strict_json((tmp_path / "run" / "results.json").read_text())
    assert results["distilled"] == str(distilled_dir)
    shared = ("task", "model", "protocol", "splits", "seed", "versions")
    assert {key: results[key] for key in shared} == {key: finished[key] for key in shared}
    other = evaluate(distilled_dir, composed("base.seed=6", "evaluate.n_eval_model=3"))
    assert other.metrics["loss"].values != finished["metrics"]["loss"]["values"]


def test_evaluate_refuses_other_classes(distilled_dir: Path, composed: Compose, toy_data: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for file in toy_data.iterdir():
        with file.open(newline="") as source, (renamed / file.name).open("w", newline="") as target:
            csv.writer(target).writerows([text, "z" if label == "a" else label] for text, label in csv.reader(source))
    with pytest.raises(ValueError, match=r"the distilled set has classes \['a', .*, but the data have \['b',"):
        evaluate(distilled_dir, composed(f"data.path={renamed}"))
    assert_nothing_written(tmp_path)


VERBS = ("distill", "evaluate", "finetune")


@pytest.mark.parametrize(
    ("verb", "change", "message"),
    [
        *((verb, {"hidden_size": 32}, "embedding_size 16, but .* has 32") for verb in VERBS),
        *((verb, {"max_position_embeddings": 6}, "8 positions, but .* takes at most 6") for verb in VERBS),
        ("distill", {"num_hidden_layers": 3}, "num_layers 2, but .* has 3"),
        ("distill", {"num_attention_heads": 2}, "num_heads 4, but .* has 2"),
    ],
)
def test_model_of_another_shape_is_refused(
    verb: str,
    change: dict[str, int],
    message: str,
    distilled_dir: Path,
    composed: Compose,
    save_model: SaveModel,
    tmp_path: Path,
) -> None:
    model = save_model(BertConfig(**{**tiny_bert_config().to_dict(), **change}), tmp_path / "other-model")
    overrides = [f"model.model_name={model}", "data.max_length=6"]
    work = {
        "distill": lambda: distill(composed(*overrides, f"distilled_data.pretrained_data_path={distilled_dir}")),
        "evaluate": lambda: evaluate(distilled_dir, composed(*overrides)),
        "finetune": lambda: finetune(distilled_dir, tmp_path / "tuned", str(model)),
    }
    with pytest.raises(ValueError, match=message):
        work[verb]()
    assert_nothing_written(tmp_path)
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"num_attention_heads": 2}])
def test_another_model_of_the_same_width(
    change: dict[str, int],
    distilled_dir: Path,
    composed: Compose,
    save_model: SaveModel,
    toy_data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Attention labels of other layers and heads are left out, and the record says so."""
    model = save_model(BertConfig(**{**tiny_bert_config().to_dict(), **change}), tmp_path / "other-model")
    caplog.set_level("WARNING", "textdistill")
    config = composed(f"model.model_name={model}", "base.seed=5", "evaluate.n_eval_model=1")
    results = evaluate(distilled_dir, config).to_dict()
    assert "attention labels are left out: the set was made for" in caplog.text
    assert results["distilled_data"]["attention_label_type"] == "none"
    assert results["made_for"] == DistilledDataset.from_pretrained(distilled_dir).metadata.model.name
    finetune(distilled_dir, tmp_path / "tuned", str(model), seed=5)
    accuracy, loss = pipeline_scores(tmp_path / "tuned", toy_data)
    assert [accuracy] == results["metrics"]["accuracy"]["values"]
    assert [loss] == pytest.approx(results["metrics"]["loss"]["values"], abs=1e-5)


def test_max_length_beyond_the_models_positions(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.max_length must be at most the 64 positions of .*, got 65"):
        distill(composed("data.max_length=65"))
    assert_nothing_written(tmp_path)


# --- finetune


def pipeline_scores(model: Path, toy_data: Path) -> tuple[float, float]:
    """Accuracy and loss of a model folder on the test split, as a stranger to this package would measure them."""
    with (toy_data / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    classify = pipeline("text-classification", str(model), device="cpu", top_k=None)
    answers = [{a["label"]: a["score"] for a in answer} for answer in classify([row["text"] for row in rows])]
    hits = [max(answer, key=answer.__getitem__) == row["label"] for answer, row in zip(answers, rows, strict=True)]
    losses = [-math.log(answer[row["label"]]) for answer, row in zip(answers, rows, strict=True)]
    return sum(hits) / len(hits), sum(losses) / len(losses)


def test_finetuned_model_scores_what_evaluate_reports(
    finished: dict[str, Any], distilled_dir: Path, toy_data: Path, tmp_path: Path
) -> None:
    done = finetune(distilled_dir, tmp_path / "model", seed=5)
    assert done.output == str(tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.id2label == dict(enumerate(CLASS_NAMES))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").model_max_length == 32
    accuracy, loss = pipeline_scores(tmp_path / "model", toy_data)
    assert accuracy == finished["metrics"]["accuracy"]["values"][0]
    assert loss == pytest.approx(finished["metrics"]["loss"]["values"][0], abs=1e-5)
    # Learners differ in loss, so that this was learner 0 and no other.
    assert len({round(value, 3) for value in finished["metrics"]["loss"]["values"]}) == 3


def test_finetune_does_not_overwrite(distilled_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--output must be a new or empty folder, got .*; choose"):
        finetune(distilled_dir, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- show


def test_show(distilled_dir: Path, tiny_bert: Path) -> None:
    summary = show(distilled_dir, nearest=2, positions=4)
    strict_json(json.dumps(asdict(summary)))
    assert summary.shapes == {
        "attention_labels": (3, 2, 4, 1, 8),
        "inputs_embeds": (3, 8, 16),
        "labels": (3, 3),
        "lr": (1,),
        "lr_scales": (1, 40),
    }
    assert summary.bytes["inputs_embeds"] == 3 * 8 * 16 * 4
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    assert summary.lr == distilled.lr.tolist()
    assert distilled.lr_scales is not None
    assert [list(step.values()) for step in summary.lr_scales] == distilled.lr_scales.tolist()
    assert summary.labels == distilled.labels.tolist()
    assert distilled.attention_labels is not None
    assert distilled.attention_weights is not None
    for sample, peaks in enumerate(summary.attention):
        rows = distilled.attention_labels[sample]
        weights = distilled.attention_weights[sample]
        strength = (rows.amax(-1) * weights).max().item()
        assert peaks[0].probability * peaks[0].weight == pytest.approx(strength)
        for peak in peaks:
            where = (peak.layer, peak.head, peak.row, peak.key)
            assert rows[where].item() == peak.probability == rows[where[:3]].max().item()
    tokens = summary.tokens
    assert [len(tokens), len(tokens[0]), len(tokens[0][0])] == [3, 4, 2]
    # The nearest token of one position, from its definition.
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    model = DistilledDataset.from_pretrained(distilled_dir).finetune()
    words = model.get_input_embeddings().weight.detach()
    cosines = torch.cosine_similarity(words, distilled.raw["inputs_embeds"][1, 2].detach(), dim=-1)
    assert tokens[1][2][0].token == tokenizer.convert_ids_to_tokens(int(cosines.argmax()))
    assert tokens[1][2][0].cosine == pytest.approx(cosines.max().item(), abs=1e-5)


def test_show_does_without_the_model(distilled_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    distilled.metadata = replace(
        distilled.metadata, model=replace(distilled.metadata.model, name=str(tmp_path / "gone"))
    )
    distilled.save_pretrained(tmp_path / "set")
    summary = show(tmp_path / "set")
    assert summary.tokens is None
    assert summary.shapes["lr"] == (1,)
    assert "no nearest tokens" in caplog.text


# --- baseline


@pytest.mark.parametrize("kind", ["random", "k-centers", "herding"])
def test_baseline_inner_loop(kind: str, composed: Compose, finished: dict[str, Any], tmp_path: Path) -> None:
    results = baseline(kind, composed("base.seed=5", "evaluate.n_eval_model=6")).to_dict()
    assert results == strict_json((tmp_path / "run" / "results.json").read_text())
    assert (results["baseline"], results["training"], results["train_step"]) == (kind, "inner_loop", 1)
    assert results["data_per_label"] == 1
    assert results["lr"] in baselines.INNER_LRS
    assert results["metrics"]["accuracy"]["n"] == 6
    # The same rows as distill's.
    assert results["splits"] == finished["splits"]


def test_baseline_ordinary(composed: Compose, finished: dict[str, Any]) -> None:
    results = baseline("herding", composed("distilled_data.data_per_label=2"), baselines.Training.ordinary).to_dict()
    assert (results["baseline"], results["training"], results["data_per_label"]) == ("herding", "ordinary", 2)
    assert "lr" not in results
    assert results["splits"] == finished["splits"]


def test_baseline_full(composed: Compose, finished: dict[str, Any], tmp_path: Path) -> None:
    results = baseline("full", composed("base.seed=5")).to_dict()
    assert results == strict_json((tmp_path / "run" / "results.json").read_text())
    assert results["baseline"] == "full"
    assert results["metrics"]["accuracy"]["std"] is None
    assert results["metrics"]["accuracy"]["n"] == 1
    assert results["splits"] == finished["splits"]


def test_baseline_of_no_kind(composed: Compose) -> None:
    with pytest.raises(ValueError, match="unknown baseline 'k_centers'; known baselines: full, random, k-c"):
        baseline("k_centers", composed())
