"""Distils a text-classification dataset into a few learned samples that fine-tune a transformer in one step."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textdistill.api import baseline, distill, evaluate, report, resume, tune, verify
    from textdistill.commands.finished import FinishedRun
    from textdistill.commands.predict import Predictions, predict
    from textdistill.commands.reports import track
    from textdistill.commands.sets import finetune, push, show
    from textdistill.config import RunConfig, compose
    from textdistill.data.splits import Protocol
    from textdistill.distilled.dataset import DistilledDataset
    from textdistill.distilled.spec import AttentionLabelWeight, Init, LabelType
    from textdistill.evaluation.baselines import Baseline, Training
    from textdistill.method.attention import AttentionLabelType
    from textdistill.method.hypergradient import Estimator, Trajectory
    from textdistill.reporting.tables import Format
    from textdistill.runs.results import RunResult, Score
    from textdistill.runs.tracker import Tracking
    from textdistill.settings import Settings
    from textdistill.training.config import InnerPrecision, OptimizerType

__all__ = [
    "AttentionLabelType",
    "AttentionLabelWeight",
    "Baseline",
    "DistilledDataset",
    "Estimator",
    "FinishedRun",
    "Format",
    "Init",
    "InnerPrecision",
    "LabelType",
    "OptimizerType",
    "Predictions",
    "Protocol",
    "RunConfig",
    "RunResult",
    "Score",
    "Settings",
    "Tracking",
    "Training",
    "Trajectory",
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
    "AttentionLabelType": "method.attention",
    "AttentionLabelWeight": "distilled.spec",
    "Baseline": "evaluation.baselines",
    "DistilledDataset": "distilled.dataset",
    "Estimator": "method.hypergradient",
    "FinishedRun": "commands.finished",
    "Format": "reporting.tables",
    "Init": "distilled.spec",
    "InnerPrecision": "training.config",
    "LabelType": "distilled.spec",
    "OptimizerType": "training.config",
    "Predictions": "commands.predict",
    "Protocol": "data.splits",
    "RunConfig": "config",
    "RunResult": "runs.results",
    "Score": "runs.results",
    "Settings": "settings",
    "Tracking": "runs.tracker",
    "Training": "evaluation.baselines",
    "Trajectory": "method.hypergradient",
    "baseline": "api",
    "compose": "config",
    "distill": "api",
    "evaluate": "api",
    "finetune": "commands.sets",
    "predict": "commands.predict",
    "push": "commands.sets",
    "report": "api",
    "resume": "api",
    "show": "commands.sets",
    "track": "commands.reports",
    "tune": "api",
    "verify": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
