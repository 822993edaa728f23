"""The keyword settings of Python, and the overrides that they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from os import PathLike, fspath
from typing import Any

from textdistill.arguments import OPTION_KEYS
from textdistill.config import known_keys
from textdistill.core.suggestions import did_you_mean, nearest
from textdistill.overrides import quoted


def setting_overrides(settings: Mapping[str, object]) -> list[str]:
    """Returns the override that each setting stands for.

    Args:
        settings: values by the name of a setting in ``Settings``, or by a key with dots.

    Raises:
        ValueError: there is no such setting, several groups have one of this name, or a value is of no use.

    """
    return [f"{setting_key(name)}={quoted(_plain(name, value))}" for name, value in settings.items()]


def search_overrides(search: Mapping[str, Sequence[object] | str]) -> list[str]:
    """Returns the overrides of a search: a list of values for each setting, or a range as Hydra writes it."""
    return [
        f"{setting_key(name)}="
        f"{values if isinstance(values, str) else ','.join(quoted(_plain(name, value)) for value in values)}"
        for name, values in search.items()
    ]


@cache
def setting_keys() -> dict[str, str]:
    """Returns the key of each setting in ``Settings``."""
    # model.task_name and evaluate.task_name follow data.task_name.
    keys = sorted(known_keys() - {"model.task_name", "evaluate.task_name"})
    names = [key.rpartition(".")[2] for key in keys]
    count = Counter(names)
    settings = [name if count[name] == 1 else key.replace(".", "_") for name, key in zip(names, keys, strict=True)]
    return {"experiment": "experiment", **dict(zip(settings, keys, strict=True))}


def setting_key(name: str) -> str:
    """Returns the key that a setting stands for: its own name with dots, or the key of a setting in ``Settings``.

    Raises:
        ValueError: there is no such setting, or several groups have one of this name.

    """
    keys = setting_keys()
    if name in known_keys():
        return name
    if name in keys:
        return keys[name]
    if several := [f"{setting} ({key})" for setting, key in keys.items() if key.endswith(f".{name}")]:
        raise ValueError(f"the setting {name!r} must say which group it belongs to; give {' or '.join(several)}")
    raise ValueError(f"there is no setting {name!r}{did_you_mean(nearest(name, [*keys, *OPTION_KEYS]))}")


def _plain(name: str, value: object) -> Any:
    """Returns a value as ``quoted`` takes it."""
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "item"):  # a number of numpy or torch
        return value.item()
    raise ValueError(
        f"the setting {name!r} must be a string, a number, a truth value, None or a list, got {value!r:.60}"
    )
