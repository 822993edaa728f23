"""Distils, and resumes: the files of a run, its results, and the end of an interrupted run."""

from __future__ import annotations

import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.support.runs import (
    SETTINGS,
    Compose,
    assert_equal,
    assert_nothing_written,
    lines_of,
    our_warnings,
    strict_json,
    tensors,
)
from tests.support.words import CLASS_NAMES
from textdistill.commands import context as context_module
from textdistill.commands.context import RunContext
from textdistill.commands.distill import distill, resume
from textdistill.commands.evaluate import baseline, evaluate
from textdistill.commands.reports import track
from textdistill.config import load_run_config
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.dataset import DistilledDataset
from textdistill.evaluation.scoring import Scores
from textdistill.runs.folder import RunFolder
from textdistill.runs.results import Score
from textdistill.training.interrupts import Interrupted
from textdistill.training.outer_step import OuterStep
from textdistill.training.trainer import Trainer

METRICS = ("accuracy", "macro_f1", "balanced_accuracy", "mcc", "loss")

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
    assert "step 3/3 validation: accuracy" in (run / "run.log").read_text()
    lines = [strict_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {name for line in lines for name in line}
    assert logged == {
        *("step", "time", "train_loss", "lr.0", "optimizer_lr", "clipped", "step_seconds", "checkpoint_seconds"),
        *(f"validation_{name}{suffix}" for name in METRICS for suffix in ("", "_std")),
        *(f"{kind}.{name}" for name in METRICS for kind in ("avg", "std")),
    }
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 1, 2, 3]
    # The best step has the lowest validation loss.
    best = min((line for line in lines if "validation_loss" in line), key=lambda line: line["validation_loss"])
    assert (finished["best_step"], finished["validation"]["loss"]) == (best["step"], best["validation_loss"])


def assert_classes(results: dict[str, Any]) -> None:
    """Sixty test rows of three classes, twenty of each, by three learners."""
    classes, metrics = results["classes"], results["metrics"]
    confusion = classes["confusion"]
    assert classes["names"] == list(CLASS_NAMES)
    assert [sum(row) for row in confusion] == [60, 60, 60]
    assert sum(confusion[i][i] for i in range(3)) / 180 == pytest.approx(metrics["accuracy"]["mean"])
    majority = classes["majority"]
    assert majority["metrics"].keys() == metrics.keys()
    assert (majority["metrics"]["accuracy"], majority["metrics"]["mcc"]) == (pytest.approx(1 / 3), 0.0)


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
    assert (results["precision"], results["outer_precision"]) == ("float32", "float32")
    assert set(results["metrics"]) == set(METRICS)
    assert_classes(results)
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
    """The test split raises for every access until training is over, but to the lines that describe the data."""
    events: list[str] = []

    class Sealed:
        def __init__(self, split: TokenizedSplit) -> None:
            self.split = split

        def __getattr__(self, name: str) -> Any:
            assert events, f"selection read {name} of the test split"
            return getattr(self.split, name)

        def __len__(self) -> int:
            return len(self.split)  # The forecast counts the rows.

    tokenize, describe, train = context_module.tokenize, context_module.describe, Trainer.train

    def sealing(*args: Any) -> dict[str, Any]:
        splits = tokenize(*args)
        return {**splits, "test": Sealed(splits["test"])}

    def describing(*args: Any) -> list[str]:
        events.append("described")
        lines = list(describe(*args))
        events.clear()
        return lines

    def training(*args: Any) -> Any:
        result = train(*args)
        events.append("trained")
        return result

    monkeypatch.setattr(context_module, "tokenize", sealing)
    monkeypatch.setattr(context_module, "describe", describing)
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
    assert warning.startswith("distilled_data.{seq_length,lr_init} have no effect")
    assert tensors(tmp_path / "run" / "distilled")["inputs_embeds"].shape == (3, 8, 16)
    with pytest.raises(ValueError, match=r"learner_train\.train_step must be 1, that of the set in .*, got 2"):
        distill(composed(path, "learner_train.train_step=2"))


def test_the_run_states_the_length_of_a_sample(composed: Compose, tmp_path: Path) -> None:
    """A length left open is decided once, and the configuration, the set and the result state it."""
    result = distill(composed("distilled_data.seq_length=null", "train.skip_train=true"))
    assert load_run_config(tmp_path / "run").distilled_data.seq_length == 64
    assert DistilledDataset.from_pretrained(tmp_path / "run" / "distilled").config.seq_length == 64
    assert result.shape is not None
    assert result.shape.distilled_data["seq_length"] == 64


@pytest.mark.parametrize(("asked", "rows"), [("null", 36), ("8", 8)])
def test_a_real_batch_has_a_row_for_each_of_many_classes(
    composed: Compose, tmp_path: Path, asked: str, rows: int
) -> None:
    texts = [f"{text},c{number}" for number in range(36) for text in ("a", "b", "c", "d", "e", "f")]
    (tmp_path / "many.csv").write_text("\n".join(["text,label", *texts]))
    data = ["data.task_name=many", f"data.path={tmp_path / 'many.csv'}", "distilled_data.seq_length=3"]
    distill(composed(*data, f"data.train_batch_size={asked}", "train.skip_train=true"))
    assert load_run_config(tmp_path / "run").data.train_batch_size == rows


def test_diverged_learners_are_no_result(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = Score.of([1.0, math.nan])
    monkeypatch.setattr(RunContext, "score", lambda *_: Scores({"loss": nan, "accuracy": nan}, np.zeros((3, 3))))
    with pytest.raises(FloatingPointError, match=r"losses of the learners on the test split must be finite"):
        distill(composed())
    assert_nothing_written(tmp_path)


def test_warning_comes_once(composed: Compose, distilled_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = composed("train.lr_attention_labels=0.5", "distilled_data.attention_label_type=none")
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
