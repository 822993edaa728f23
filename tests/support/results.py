"""Results as a report reads them: of distilled sets, of real samples and of full data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from textdistill.reporting.rows import StoredResult
from textdistill.runs.results import RunResult


def scored(
    *accuracies: float, seed: int = 1, rows: int = 100, settings: dict[str, Any] | None = None, **other: Any
) -> StoredResult:
    metric = {"mean": sum(accuracies) / len(accuracies), "std": None, "n": len(accuracies), "values": list(accuracies)}
    values = {
        "task": "toy",
        "protocol": "clean",
        "model": {"name": "tiny", "revision": None},
        "splits": {"test": {"source": "test", "rows": rows}},
        "seed": seed,
        "metrics": {"accuracy": metric},
        "versions": {},
        **other,
    }
    return StoredResult(Path("results.json"), RunResult.from_dict(values), settings or {})


def distilled(
    *accuracies: float, attention: str = "cls", per_class: int = 1, steps: int = 1, **other: Any
) -> StoredResult:
    shape = {"label_type": "soft", "attention_label_type": attention, "data_per_label": per_class, "seq_length": 8}
    training = {"outer_steps": 10, "training_seconds": 90.0}
    made = {"distilled_data": shape, "learner_train": {"train_step": steps}, "made_for": "tiny"}
    return scored(*accuracies, **made | training | other)


def real(kind: str, *accuracies: float, training: str = "inner_loop", per_class: int = 1, **other: Any) -> StoredResult:
    extra = {"train_step": 1} if training == "inner_loop" else {}
    return scored(*accuracies, baseline=kind, training=training, data_per_label=per_class, **extra, **other)


def full(accuracy: float = 0.9, **other: Any) -> StoredResult:
    return scored(accuracy, baseline="full", **other)
