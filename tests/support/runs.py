"""Settings and comparisons for tests of finished runs."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

from textdistill.config import RunConfig
from textdistill.distilled.dataset import DistilledDataset

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


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    return [strict_json(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def pipeline_scores(model: Path, toy_data: Path) -> tuple[float, float]:
    """Accuracy and loss of a model folder on the test split, as a stranger to this package would measure them."""
    with (toy_data / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    classify = pipeline("text-classification", str(model), device="cpu", top_k=None)
    answers = [{a["label"]: a["score"] for a in answer} for answer in classify([row["text"] for row in rows])]
    hits = [max(answer, key=answer.__getitem__) == row["label"] for answer, row in zip(answers, rows, strict=True)]
    losses = [-math.log(answer[row["label"]]) for answer, row in zip(answers, rows, strict=True)]
    return sum(hits) / len(hits), sum(losses) / len(losses)
