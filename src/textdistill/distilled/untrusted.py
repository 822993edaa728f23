"""Checks of files and values that come from strangers, made before anything is done with them.

A distilled set may be downloaded from anyone. The readers of both formats use these checks. An error names the file or
the key, the rule, the value and the remedy.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import EnumType
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from torch import Tensor

# Far above any distilled set. BERT-base with labels for every attention row, 20 samples, length 512: 3 GiB.
MAX_TENSORS_BYTES = 8 * 2**30
# JSON and headers become objects in memory that take many times their size in the file.
MAX_CONFIG_BYTES = 2**20
MAX_CONFIG_DEPTH = 20

# The JSON values that ``parse`` accepts for a field of each type, as error messages name them.
JSON_TYPES = {
    bool: "true or false",
    int: "a whole number from 1 to 2^63 - 1",
    float: "a number",
    str: "a string",
    dict: "an object",
}

T = TypeVar("T")


def ordinary_file(folder: Path, name: str, boundary: Path, limit: int = MAX_TENSORS_BYTES) -> Path:
    """The path of a file that is safe to open.

    Args:
        folder: must hold the file.
        name: of the file.
        boundary: folder that links may not lead out of.
        limit: largest size in bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a folder, pipe or device, lies outside ``boundary``, or is too large.

    """
    path = folder / name
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} has no file {name}; check the path") from error
    except OSError as error:  # links that form a ring
        raise ValueError(f"{path} must be an ordinary file, got {error}; replace it by the file itself") from error
    if not path.resolve().is_relative_to(boundary.resolve()):
        raise ValueError(f"{path} is a link to a file outside its folder; replace it by the file itself")
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
        raise ValueError(f"{path} must be an ordinary file, got a folder, pipe or device; fetch the set again")
    check_size(path, status.st_size, limit)
    return path


def check_size(path: Path, size: int, limit: int) -> None:
    """Raises ValueError if a file of ``size`` bytes is larger than ``limit``."""
    if size > limit:
        raise ValueError(f"{path} must have at most {limit} bytes, got {size}; fetch it again")


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError if a tensor of the file ``path`` holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path}: tensor {brief(name)} must hold finite values, but {int((~tensor.isfinite()).sum())} of "
                f"{tensor.numel()} are NaN or infinite; distil again with smaller learning rates"
            )


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in a file, nested at most ``MAX_CONFIG_DEPTH`` deep and free of NaN and infinity.

    Raises:
        ValueError: the file holds something else.

    """
    try:
        config = json.loads(path.read_bytes())
        # Python's parser also takes NaN, Infinity, 1e999 and lone surrogates. Strict JSON cannot state these values.
        json.dumps(config, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}; restore the file from its source") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(config).__name__}; restore the file from its source")
    level: list[Any] = [config]
    for _ in range(MAX_CONFIG_DEPTH):
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
        level = [child for child in level if isinstance(child, dict | list)]
    if level:
        raise ValueError(
            f"{path} must nest at most {MAX_CONFIG_DEPTH} objects or lists; restore the file from its source"
        )
    return config


def parse(schema: type[T], value: object, key: str = "") -> T:
    """A value read from JSON, as an instance of the dataclass ``schema``.

    Args:
        schema: its fields are dataclasses, string enums, ``bool``, ``int`` (a count, at least 1), ``float``, ``str``,
            ``dict``, tuples of one of these types, or one of these types or None.
        value: must be an object with exactly the keys that ``schema`` has fields, and values of their types.
        key: dotted key of ``value``, for error messages.

    Raises:
        ValueError: ``value`` breaks this rule. The message names the key, but not the file.

    """
    hints = get_type_hints(schema)
    if not isinstance(value, dict):
        raise ValueError(f"{key or 'the file'} must be an object, got {brief(value)}")
    if value.keys() != hints.keys():
        raise ValueError(
            f"{key or 'the file'} must have the keys {sorted(hints)}: missing {sorted(hints.keys() - value.keys())}, "
            f"unknown {brief(sorted(value.keys() - hints.keys()))}"
        )
    return schema(**{name: _typed(hint, value[name], f"{key}.{name}".lstrip(".")) for name, hint in hints.items()})


def brief(value: object) -> str:
    """A value from a stranger's file, shortened to a line or two for an error message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _typed(hint: Any, value: object, key: str) -> Any:
    """``value``, checked against the type ``hint`` of a field and converted to it."""
    if isinstance(hint, UnionType):
        return None if value is None else _typed(get_args(hint)[0], value, key)
    if is_dataclass(hint):
        return parse(hint, value, key)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{key} must be a list, got {brief(value)}")
        return tuple(_typed(get_args(hint)[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if isinstance(hint, EnumType):
        if value not in list(hint):
            raise ValueError(f"{key} must be one of {', '.join(hint)}, got {brief(value)}")
        return hint(value)
    kind = get_origin(hint) or hint
    # Compare types, because isinstance counts true as a number. A whole number may stand for a float.
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits or (kind is int and value < 1) or (type(value) is int and abs(value) >= 2**63):  # type: ignore[operator]
        raise ValueError(f"{key} must be {JSON_TYPES[kind]}, got {brief(value)}")
    return float(value) if kind is float else value  # type: ignore[arg-type]
