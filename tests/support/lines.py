"""``metrics.jsonl`` read by the rules of JSON alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
