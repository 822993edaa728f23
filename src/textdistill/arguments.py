"""The short options of the command line and of Python, and the overrides that they stand for."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from textdistill.core.suggestions import did_you_mean, nearest
from textdistill.data.task import TASKS
from textdistill.overrides import key_of, parse, quoted

Data: TypeAlias = str | os.PathLike[str]
Value: TypeAlias = str | int | list[str]

# The key that each option stands for. DATA stands for data.path or data.task_name.
OPTION_KEYS = {
    "text": "data.text_columns",
    "label": "data.label_column",
    "model": "model.model_name",
    "steps": "train.max_steps",
    "output": "base.save_dir",
}
# A sweep or a study makes a run folder for each of its runs.
MANY_RUNS_KEYS = OPTION_KEYS | {"output": "base.save_dir_root"}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_FILE_NAME = re.compile(r"\.(csv|tsv|txt|jsonl?|ndjson|parquet|arrow|gz|bz2|zip|xz|zst)$", re.IGNORECASE)
# Folders are named after the task. A file system allows names of 255 bytes.
_NAME_LENGTH = 60


def to_overrides(
    data: Data | Sequence[Data] | None = None,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    model: Data | None = None,
    steps: int | None = None,
    output: Data | None = None,
    given: Sequence[str] = (),
    many_runs: bool = False,
) -> list[str]:
    """Returns the overrides that the short options stand for.

    Args:
        data: a file or folder, several files, a built-in task, or the id ``user/name`` of a dataset on the hub. A path
            also names the task, unless ``given`` does.
        text: one or two columns of texts, as a sequence or separated by a comma.
        label: the column of labels.
        model: the name or folder of an encoder.
        steps: number of outer steps.
        output: the run folder, or the folder of all run folders with ``many_runs``.
        given: overrides that stand beside the options. Their keys must not be those of an option.
        many_runs: whether the overrides are those of a sweep or a study.

    Raises:
        FileNotFoundError: ``data`` is neither a path nor a task; the error names the nearest.
        ValueError: an option and an override in ``given`` set the same key.

    """
    values = {
        "text": None if text is None else _columns(text),
        "label": label,
        "model": None if model is None else _expand_home(model),
        "steps": steps,
        "output": None if output is None else _expand_home(output),
    }
    keys = MANY_RUNS_KEYS if many_runs else OPTION_KEYS
    settings = {} if data is None else _data_settings(data)
    options = dict.fromkeys(settings, "DATA") | {keys[option]: option for option in values}
    settings |= {keys[option]: value for option, value in values.items() if value is not None}
    given_by_key = {key_of(override): override for override in given}
    if "data.path" in settings and "data.task_name" in given_by_key:
        del settings["data.task_name"]
    for key in settings.keys() & given_by_key.keys():
        raise ValueError(
            f"{key} must be given once, got the option {options[key]}, which stands for it, and {given_by_key[key]};"
            " leave out one"
        )
    return [f"{key}={quoted(value)}" for key, value in settings.items()]


def to_options(overrides: Sequence[str]) -> list[str]:
    """Returns the words of a command line that stand for overrides: DATA, then options, then the other overrides.

    ``to_overrides`` reads the same settings from them.
    """
    by_key = {key_of(override): override for override in overrides}
    values = {key: parse(override).value() for key, override in by_key.items() if not _is_sweep(override)}
    data, words = [], []
    path, name = values.get("data.path"), values.get("data.task_name")
    if isinstance(path, str) and os.path.exists(path) and path and path[0] not in "-~":
        data, used = [path], {"data.path", *(["data.task_name"] if name == task_name(path) else [])}
    elif isinstance(name, str) and path is None and "data.path" not in by_key and not os.path.exists(name):
        data, used = [name], {"data.task_name"}
    else:
        used = set()
    for option, key in OPTION_KEYS.items():
        value = values.get(key)
        if option == "text" and isinstance(value, list) and not any(re.search(r",|^\s|\s$", item) for item in value):
            value = ",".join(value)
        if isinstance(value, str | int) and not str(value).startswith(("-", "~")):
            words += [f"--{option}", str(value)]
            used.add(key)
    return [*data, *words, *(override for key, override in by_key.items() if key not in used)]


def _is_sweep(override: str) -> bool:
    return parse(override).is_sweep_override() or not override.partition("=")[1] or override[0] in "+~"


def task_name(path: str) -> str:
    """Returns a name for the task of a path: letters, digits and ``_ . -``, never empty and never a built-in task."""
    name = Path(path).resolve().name
    while match := _FILE_NAME.search(name):
        name = name[: match.start()]
    # A file system may store é as two characters, and the second one is no letter.
    name = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name))[:_NAME_LENGTH].strip("_.-")
    # The columns and classes of a built-in task are not those of a file that has its name.
    return f"{name}_data" if name in TASKS else name or "data"


def _data_settings(data: Data | Sequence[Data]) -> dict[str, Value]:
    """Returns the keys of ``data.*`` that a DATA stands for."""
    if not isinstance(data, str | os.PathLike):
        if tasks := sorted({os.fspath(item) for item in data} & TASKS.keys()):
            raise ValueError(f"DATA must be one task or any number of files, got the task {tasks[0]!r} beside others")
        paths = [_existing_path(os.fspath(item)) or _unknown_data(os.fspath(item)) for item in data]
        return {"data.path": paths, "data.task_name": task_name(os.path.dirname(os.path.abspath(paths[0])))}
    name = os.fspath(data)
    if path := _existing_path(name):
        return {"data.path": path, "data.task_name": task_name(path)}
    if name in TASKS or (_HUB_ID.fullmatch(name) and not _looks_like_path(name)):
        return {"data.task_name": name}
    _unknown_data(name)


def _columns(text: str | Sequence[str]) -> list[str]:
    return [column.strip() for column in text.split(",")] if isinstance(text, str) else list(text)


def _existing_path(name: str) -> str | None:
    return next((path for path in (name, _expand_home(name)) if os.path.exists(path)), None)


def _looks_like_path(name: str) -> bool:
    """Whether ``a/b`` names a file or folder that is missing, and not a dataset on the hub."""
    return bool(_FILE_NAME.search(name)) or os.path.isdir(name.partition("/")[0])


def _unknown_data(name: str) -> NoReturn:
    folder, last = os.path.split(_expand_home(name))
    beside = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    raise FileNotFoundError(
        f"DATA must be a file or folder, a built-in task ({', '.join(TASKS)}) or a dataset on the hub (user/name),"
        f" got {name!r}{did_you_mean(nearest(last, [*beside, *TASKS])) or '; check the path'}"
    )


def _expand_home(path: Data) -> str:
    return os.path.expanduser(os.fspath(path))
