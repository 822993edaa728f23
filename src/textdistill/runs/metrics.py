"""Defines the interface of a tracker and writes ``metrics.jsonl``, the record of every run."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """The methods of an experiment tracker that the outer loop calls."""

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Records the metrics of outer step ``step``. Values that are None are skipped."""

    def mark(self) -> int:
        """Writes the record to the disk and returns the position of its end."""

    def rewind(self, mark: int) -> None:
        """Drops the record after a position that ``mark`` returned. Position 0 drops everything."""


class NullTracker:
    """Records nothing. Every process except process 0 uses this tracker."""

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """See ``Tracker``."""

    def mark(self) -> int:
        """See ``Tracker``."""
        return 0

    def rewind(self, mark: int) -> None:
        """See ``Tracker``."""


@dataclass(frozen=True)
class MetricLine:
    """One line of ``metrics.jsonl``.

    Attributes:
        step: the outer step.
        time: seconds since the epoch.
        values: the metrics by name; None where the value was NaN or infinite.

    """

    step: int
    time: float
    values: Mapping[str, float | None]


class JsonLines:
    """Appends lines of the form ``{"step": ..., "time": ..., metric: ...}`` to ``metrics.jsonl``.

    A line is in the file when ``append`` returns. NaN and infinity are written as null, because JSON has neither.

    Args:
        path: the file. A missing folder is created.

    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # Line buffering writes each line whole and at once.
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def append(self, metrics: Mapping[str, float | None], step: int) -> MetricLine:
        """Appends one line and returns the line. Metrics that are None are left out."""
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = MetricLine(step, round(time.time(), 3), finite)
        text = json.dumps({"step": line.step, "time": line.time, **finite}, ensure_ascii=False, allow_nan=False)
        self._file.write(text + "\n")
        return line

    def size(self) -> int:
        """Syncs the file to the disk and returns its size in bytes."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> None:
        """Keeps the first ``size`` bytes."""
        self._file.truncate(min(size, self.size()))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_lines(path: Path) -> Iterator[MetricLine]:
    """Reads the lines of ``metrics.jsonl``.

    Raises:
        ValueError: a line was not written by ``JsonLines``. The message names the line.

    """
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                values = json.loads(text)
                line = MetricLine(values.pop("step"), values.pop("time"), values)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {number} must be JSON ({error}); remove the line") from error
            yield line


def flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested mappings with their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
