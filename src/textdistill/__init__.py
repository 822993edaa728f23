"""Distils a text-classification dataset into a few learned samples that fine-tune a transformer in one step."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textdistill.commands.tune import tune
    from textdistill.commands.verbs import baseline, distill, evaluate, finetune, push, resume, show, track, verify
    from textdistill.config import compose
    from textdistill.distilled.dataset import DistilledDataset

__all__ = [
    "DistilledDataset",
    "baseline",
    "compose",
    "distill",
    "evaluate",
    "finetune",
    "push",
    "resume",
    "show",
    "track",
    "tune",
    "verify",
]

_HOMES = {"DistilledDataset": "distilled.dataset", "compose": "config", "tune": "commands.tune"}


def __getattr__(name: str) -> Any:
    # Importing torch and transformers takes seconds; `textdistill --help` must not.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'commands.verbs')}"), name)
