"""The typed settings of the Python functions: one for each key of the configuration.

After a change of a key, write the module anew:

    TEXTDISTILL_WRITE_SETTINGS=1 python -m pytest tests/test_settings.py; ruff check --fix src; ruff format src
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

import pytest
from mypy import api as mypy

import textdistill
from textdistill.config import RunConfig
from textdistill.settings import Settings

SOURCE = Path(textdistill.__file__).with_name("settings.py")
WRITE = "TEXTDISTILL_WRITE_SETTINGS"
HEAD = '''"""The keyword settings of ``distill`` and the other functions, with their types.

Every key of the configuration has a setting of its name. A name that several groups have carries its group in front:
``train_n_eval_model`` is ``train.n_eval_model``. tests/test_settings.py writes this module.
"""

from __future__ import annotations

from os import PathLike
from typing import Literal, TypedDict

'''
BODY = '''

class Settings(TypedDict, total=False):
    """The settings by keyword. docs/migrating.md describes every key."""

    experiment: str
'''

# Hydra's types cannot say these.
NARROWER = {"bf16": 'bool | Literal["auto"]', "path": "str | PathLike[str] | list[str] | None"}


def keys() -> Iterator[tuple[str, str, Any]]:
    """Group, key and type of each key of the configuration."""
    for group, kind in get_type_hints(RunConfig).items():
        if not is_dataclass(kind):
            yield "", group, kind
            continue
        hints = get_type_hints(kind)
        for key in fields(kind):
            # The other groups follow data.task_name.
            if key.name != "task_name" or group == "data":
                yield group, key.name, hints[key.name]


def annotation(kind: Any, name: str, imports: set[str]) -> str:
    """The type of a setting, as it is written."""
    if name in NARROWER:
        return NARROWER[name]
    if isinstance(kind, UnionType):
        return " | ".join(annotation(part, name, imports) for part in get_args(kind))
    if kind is str and re.fullmatch(r"(.*_)?(path|dir|root)", name):
        return "str | PathLike[str]"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        imports.add(f"from {kind.__module__} import {kind.__name__}")
        members = ", ".join(f'"{member}"' for member in kind)
        return f"{kind.__name__} | Literal[{members}]"
    return "None" if kind is NoneType else str(kind) if get_args(kind) else str(kind.__name__)


def written() -> str:
    """The text of the module, from the configuration."""
    count, imports = Counter(name for _, name, _ in keys()), set[str]()
    lines = ""
    for group, name, kind in keys():
        setting = f"{group}_{name}" if count[name] > 1 else name
        lines += f"    {setting}: {annotation(kind, name, imports)}\n"
    return f"{HEAD}{chr(10).join(sorted(imports))}\n{BODY}{lines}"


def test_settings_are_the_keys_of_the_configuration() -> None:
    def tokens(text: str) -> list[str]:
        """Of the class, whatever its lines."""
        return re.findall(r"\w+|[^\w\s,()]", text.partition("class Settings")[2])

    if WRITE in os.environ:
        SOURCE.write_text(written(), encoding="utf-8")
    assert tokens(SOURCE.read_text(encoding="utf-8")) == tokens(written()), f"set {WRITE}=1 to write the module anew"
    assert get_type_hints(Settings).keys() >= {"label_type", "train_n_eval_model", "evaluate_n_eval_model", "seed"}


SNIPPET = """
import pandas as pd
from textdistill import (
    Baseline, DistilledDataset, LabelType, RunConfig, RunResult, baseline, compose, distill, evaluate, predict, report
)

result = distill("reviews.csv", text="review", steps=200, label_type="soft", train_n_eval_model=2, seed=1)
result = distill(["a cat", "a ship"], ["a", "c"], label_type=LabelType.hard, output="save/toy")
accuracy: float = result.metrics["accuracy"].mean
distilled: DistilledDataset = result.distilled
plain: RunResult = evaluate(result, pd.DataFrame({"text": ["a"], "label": ["b"]}), evaluate_n_eval_model=3)
config: RunConfig = compose("data.task_name=sst2")
again: RunResult = distill(config)
full: RunResult = baseline(Baseline.full, "reviews.csv", model="minilm-l6")
labels: list[str] = predict(result, ["a cat"]).labels
page: str = report(result)
"""


# What a strict checker must refuse, in the lines after the script.
WRONG = """
distill("reviews.csv", label_typ="soft")
distill("reviews.csv", label_type="sof")
distill("reviews.csv", n_eval_model=3)
"""
# Types of these packages matter little to a user's script, and reading them takes a minute.
SKIPPED = (
    "torch",
    "transformers",
    "datasets",
    "pyarrow",
    "huggingface_hub",
    "hydra",
    "sklearn",
    "mlflow",
    "optuna",
    "pandas",
)


def test_types_of_a_users_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = ",".join(f"mypy-{name}.*" for name in SKIPPED)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\nfollow_imports = silent\nignore_missing_imports = true\n"
        f"disallow_any_unimported = false\n[{packages}]\nfollow_imports = skip\n"
    )
    (tmp_path / "script.py").write_text(SNIPPET + WRONG)
    monkeypatch.setenv("MYPYPATH", str(SOURCE.parents[1]))
    monkeypatch.chdir(tmp_path)
    found, *_ = mypy.run(["--config-file=mypy.ini", "script.py"])
    lines = [int(number) for number in re.findall(r"^script.py:(\d+): error", found, re.MULTILINE)]
    first = SNIPPET.count("\n") + 2
    assert lines == [first, first + 1, first + 2], found
    for name in ("label_typ", "label_type", "n_eval_model"):
        assert f'"{name}"' in found
