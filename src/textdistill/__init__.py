"""Distils a text-classification dataset into a few learned samples that fine-tune a transformer in one step."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textdistill.commands.distill import distill, resume
    from textdistill.commands.evaluate import baseline, evaluate, verify
    from textdistill.commands.predict import Predictions, predict
    from textdistill.commands.reports import report, track
    from textdistill.commands.sets import finetune, push, show
    from textdistill.commands.tune import tune
    from textdistill.config import compose
    from textdistill.distilled.dataset import DistilledDataset
    from textdistill.runs.results import RunResult, Score

__all__ = [
    "DistilledDataset",
    "Predictions",
    "RunResult",
    "Score",
    "__version__",
    "baseline",
    "compose",
    "distill",
    "evaluate",
    "finetune",
    "predict",
    "push",
    "report",
    "resume",
    "show",
    "track",
    "tune",
    "verify",
]

__version__ = version("textdistill")

# The module of each public name. Importing torch and transformers takes seconds; `textdistill --help` must not.
_MODULES = {
    "DistilledDataset": "distilled.dataset",
    "Predictions": "commands.predict",
    "RunResult": "runs.results",
    "Score": "runs.results",
    "baseline": "commands.evaluate",
    "compose": "config",
    "distill": "commands.distill",
    "evaluate": "commands.evaluate",
    "finetune": "commands.sets",
    "predict": "commands.predict",
    "push": "commands.sets",
    "report": "commands.reports",
    "resume": "commands.distill",
    "show": "commands.sets",
    "track": "commands.reports",
    "tune": "commands.tune",
    "verify": "commands.evaluate",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
