"""``metrics.jsonl``: each line is valid JSON and in the file at once."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from tests.support.lines import lines_of
from textdistill.runs.metrics import JsonLines, MetricLine, read_lines


def test_json_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "new" / "run" / "metrics.jsonl")
    before = time.time()
    appended = lines.append({"train.loss": 0.5, "absent": None}, step=3)
    (line,) = lines_of(tmp_path / "new" / "run")
    assert MetricLine(line["step"], line["time"], {"train.loss": line["train.loss"]}) == appended
    assert before - 1e-3 <= line.pop("time") <= time.time() + 1e-3
    assert line == {"step": 3, "train.loss": 0.5}
    lines.append({"train.loss": 0.25}, step=4)
    assert [line["step"] for line in lines_of(tmp_path / "new" / "run")] == [3, 4]
    lines.close()


def test_json_lines_hold_valid_json_only(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"a": math.nan, "b": math.inf, "c": -math.inf, "Zürich": 1}, step=0)
    (line,) = lines_of(tmp_path)
    assert {**line, "time": 0} == {"step": 0, "time": 0, "a": None, "b": None, "c": None, "Zürich": 1.0}
    lines.close()


def test_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 0.5}\n{"st\n')
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert next(lines) == MetricLine(1, 0.5, {})
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 must be JSON .*; remove the line"):
        next(lines)
