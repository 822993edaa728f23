"""What the benchmarks write: a JSON file of rows with the machine they were measured on, and its table in the docs."""

from __future__ import annotations

import json
import os
import platform
from argparse import Namespace
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Row
from textdistill.core.files import replacing

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def machine() -> Row:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers")},
    }


def record(name: str, given: Namespace, key: Sequence[str], rows: Iterable[Row]) -> None:
    """Writes each row as soon as it is measured, and at the end, unless ``--quick``, the table in the docs.

    Rows of the file with other values of ``key`` stay, so that a large benchmark can be measured in parts.
    """
    output = given.output or Path("save/benchmarks") / f"{name}{'.quick' * given.quick}.json"
    report: Row = {"machine": machine(), "rows": []}
    if output.exists():
        earlier = json.loads(output.read_text())
        if earlier["machine"] != report["machine"]:
            raise SystemExit(
                f"--output must not hold rows of another machine or setup, got {output}: name another file"
            )
        report = earlier
    output.parent.mkdir(parents=True, exist_ok=True)
    for row in rows:
        kept = {tuple(r[k] for k in key): r for r in [*report["rows"], row]}
        report["rows"] = [kept[k] for k in sorted(kept)]
        with replacing(output) as partial:
            partial.write_text(json.dumps(report, indent=2) + "\n")
    text = table(report)
    print(text)
    if not given.quick:
        insert(name, text)


def table(report: Row) -> str:
    """The report as Markdown: the machine, then a line a row."""
    rows = [list(report["rows"][0]), ["---"] * len(report["rows"][0])]
    rows += [[_cell(value) for value in row.values()] for row in report["rows"]]
    lines = ["Machine: " + ", ".join(f"{name} {value}" for name, value in report["machine"].items()) + ".", ""]
    return "\n".join(lines + [f"| {' | '.join(cells)} |" for cells in rows])


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " to ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"
    return "" if value is None else str(value)


def insert(name: str, text: str) -> None:
    """Puts ``text`` between the markers of ``name`` in the docs, in place of what is there."""
    begin, end = f"<!-- {name}: written by benchmarks/{name}.py -->", f"<!-- end of {name} -->"
    page = PAGE.read_text(encoding="utf-8")
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{PAGE} must hold the lines {begin!r} and {end!r} once each; restore them")
    head, tail = page.partition(begin)[0], page.partition(end)[2]
    PAGE.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")
