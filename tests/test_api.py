"""The functions of the package: data of every form, settings, and what they return."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

import textdistill
from tests.support.words import toy_rows
from textdistill import (
    Baseline,
    FinishedRun,
    LabelType,
    RunResult,
    Training,
    baseline,
    compose,
    distill,
    evaluate,
    predict,
    report,
    resume,
    tune,
    verify,
)
from textdistill.keywords import search_overrides, setting_overrides

TEXTS, LABELS = map(list, zip(*toy_rows(40, seed=0), strict=True))
FRAME = pd.DataFrame({"text": TEXTS, "label": LABELS})


@pytest.fixture(scope="module")
def quick(tiny_bert: Path) -> dict[str, Any]:
    """Settings of a run of two outer steps."""
    return {
        "model": tiny_bert,
        "max_length": 32,
        "seq_length": 8,
        "evaluate_n_eval_model": 2,
        "tracking": "none",
    }


@pytest.fixture(scope="module")
def run(quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return distill(TEXTS, LABELS, steps=2, train_n_eval_model=1, output=tmp_path_factory.mktemp("api") / "run", **quick)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- Data


def test_data_of_every_form_give_the_same_run(run: FinishedRun, quick: dict[str, Any]) -> None:
    FRAME.to_csv("reviews.csv", index=False)
    dataset = Dataset.from_pandas(FRAME)
    forms: dict[str, Any] = {
        "frame": FRAME,
        "dataset": dataset,
        "splits": DatasetDict({"train": dataset}),
        "rows": FRAME.to_dict("records"),
        "pair": (TEXTS, LABELS),
        "file": "reviews.csv",
        "path": Path("reviews.csv"),
    }
    for name, data in forms.items():
        other = distill(data, steps=2, train_n_eval_model=1, output=f"runs/{name}", **quick)
        assert other.metrics == run.metrics, name
        assert other.run_dir == Path("runs", name)


def test_result_has_the_set_and_the_report(run: FinishedRun) -> None:
    assert isinstance(run, RunResult)
    assert run.to_dict() == RunResult.read(run.run_dir / "results.json").to_dict()
    assert run.distilled.metadata.class_names == ("a", "b", "c")
    assert run.report() == run.run_dir / "report.html"
    assert run.report("page.html").read_text() == (run.run_dir / "report.html").read_text()
    assert repr(run).startswith("FinishedRun(task='in_memory', accuracy=")
    assert report(run, format="csv").splitlines()[0] == report(run.run_dir, format="csv").splitlines()[0]


def test_evaluate_takes_the_settings_of_the_set(run: FinishedRun) -> None:
    for number, source in enumerate((run, run.distilled, run.run_dir / "distilled")):
        again = evaluate(source, FRAME, output=f"again{number}")
        assert again.metrics == run.metrics
        assert again.distilled.metadata == run.distilled.metadata
    assert verify(run.run_dir / "distilled", TEXTS, LABELS).verified
    with pytest.raises(ValueError, match="data must be given for a set that was made from data in memory"):
        evaluate(run)


def test_predict_takes_the_result(run: FinishedRun) -> None:
    assert predict(run, TEXTS[:5]).labels == predict(run.run_dir / "distilled", TEXTS[:5]).labels


def test_resume_takes_the_data_again(run: FinishedRun) -> None:
    assert resume(run.run_dir, TEXTS, LABELS).metrics == run.metrics


def test_baseline(quick: dict[str, Any]) -> None:
    found = baseline("random", FRAME, data_per_label=2, training=Training.ordinary, output="save/random", **quick)
    assert found.baseline is not None
    assert (found.baseline.data_per_label, found.baseline.training) == (2, "ordinary")
    with pytest.raises(ValueError, match="a baseline has no distilled set, got the result of random"):
        _ = found.distilled
    with pytest.raises(ValueError, match="unknown baseline 'rndom'"):
        baseline("rndom", FRAME, **quick)  # type: ignore[arg-type]


def test_tune(quick: dict[str, Any]) -> None:
    study = tune(
        FRAME, search={"label_type": ["soft", LabelType.hard]}, trials=2, steps=2, study="mine", output="out",
        train_n_eval_model=1, **quick,
    )  # fmt: skip
    assert len(study.trials) == 2
    assert study.run_dir.is_relative_to("out/mine")


def test_config_of_compose_stands_alone(run: FinishedRun, quick: dict[str, Any], tmp_path: Path) -> None:
    FRAME.to_csv("reviews.csv", index=False)
    config = compose(
        "data.task_name=mine", "data.path=reviews.csv", f"model.model_name={quick['model']}", "train.max_steps=2",
        "data.max_length=32", "distilled_data.seq_length=8", "evaluate.n_eval_model=2", "train.n_eval_model=1",
        "tracking=none", "base.save_dir=composed",
    )  # fmt: skip
    assert distill(config).metrics == run.metrics
    for other in ({"steps": 3}, {"label_type": "soft"}, {"labels": LABELS}):
        with pytest.raises(ValueError, match="a RunConfig must be the only description of a run"):
            distill(config, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["a text", "b text"], "2 strings that are no files; give the labels"),
        ([], r"got list \[\]"),
        (5, "got int"),
    ],
)
def test_data_that_are_none(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distill(data)
    assert not list(Path().iterdir())


# --- Settings


def test_settings_become_overrides() -> None:
    settings = {
        "label_type": LabelType.soft,
        "train_n_eval_model": 2,
        "evaluate.n_eval_model": 3,
        "resume": True,
        "max_steps": None,
        "save_dir": Path("a b"),
        "lr_init": 1e-5,
        "text_columns": ("a", "b,c"),
    }
    config = compose("data.task_name=mine", *setting_overrides(settings))
    assert config.distilled_data.label_type is LabelType.soft
    assert (config.train.n_eval_model, config.evaluate.n_eval_model) == (2, 3)
    assert (config.train.resume, config.train.max_steps) == (True, None)
    assert (config.base.save_dir, config.distilled_data.lr_init) == ("a b", 1e-5)
    assert config.data.text_columns == ["a", "b,c"]
    assert compose(*setting_overrides({"experiment": "reference"})).distilled_data.label_type is LabelType.hard
    assert search_overrides({"seed": [1, 2], "lr_init": "interval(0.1,1)"}) == [
        "base.seed=1,2",
        "distilled_data.lr_init=interval(0.1,1)",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_typ": "soft"}, "there is no setting 'label_typ'; did you mean .*'label_type'"),
        ({"lable": "x"}, "there is no setting 'lable'; did you mean .*'label'"),
        (
            {"n_eval_model": 3},
            r"'n_eval_model' must say .* evaluate_n_eval_model \(evaluate.n_eval_model\) or train_n_eval_model",
        ),
        ({"bf16": True}, r"evaluate_bf16 \(evaluate.bf16\) or train_bf16 \(train.bf16\)"),
        ({"steps": 1, "max_steps": 2}, "train.max_steps must be given once"),
        ({"label_type": "sof"}, "hard, soft, unrestricted"),
        ({"seed": {"a": 1}}, "the setting 'seed' must be a string, a number"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        distill(FRAME, **settings)
    assert "\n" not in str(refused.value)
    assert not list(Path().iterdir())


# --- The module


def test_public_names() -> None:
    assert dir(textdistill) == sorted(textdistill.__all__)
    assert {name for name in textdistill.__all__ if getattr(textdistill, name) is None} == set()
    assert textdistill.Baseline is Baseline


def test_import_is_quick() -> None:
    """A tenth of a second on its own. The limit leaves room for a busy machine."""
    code = "import time; start = time.process_time(); import textdistill; print(time.process_time() - start)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.3
