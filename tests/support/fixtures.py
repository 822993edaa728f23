"""Types of the fixtures in tests/conftest.py that are functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedConfig

SaveModel = Callable[[PreTrainedConfig, Path], Path]
WithStore = Callable[[Path], Path]
