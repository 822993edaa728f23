"""Reads the configurations of a dataset from the README that lies beside its files on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Configuration:
    """Files of a dataset that belong together.

    Attributes:
        patterns: pairs of a split and a pattern of file names. An empty split: the names of the files say it.
        folder: the folder that holds the files, if there are no patterns.
        default: whether the README makes it the default.

    """

    patterns: tuple[tuple[str, str], ...]
    folder: str
    default: bool


def stated_configurations(folder: Path) -> dict[str, Configuration]:
    """Returns the configurations that README.md states, by name; empty without any.

    Raises:
        ValueError: the README states them in another form than the hub.

    """
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    matter = _FRONT_MATTER.match(readme.read_text(encoding="utf-8-sig", errors="replace"))
    try:
        stated = yaml.safe_load(matter[1]) if matter else None
        configs = stated.get("configs") or [] if isinstance(stated, dict) else []
        return {str(config["config_name"]): _configuration(config) for config in configs}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"data.path: the configurations in {readme} must have the form of the hub ({reason}); "
            "mend or remove the file"
        ) from error


def _configuration(config: Any) -> Configuration:
    files = config.get("data_files") or []
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    patterns: list[tuple[str, str]] = []
    for entry in [files] if isinstance(files, str) else files:
        split, paths = (entry["split"], entry["path"]) if isinstance(entry, dict) else ("", entry)
        patterns += [(str(split), str(path)) for path in ([paths] if isinstance(paths, str) else paths)]
    folder = str(config.get("data_dir") or "")
    for path in (folder, *(pattern for _, pattern in patterns)):
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise TypeError(f"{path} leads out of the folder")
    return Configuration(tuple(patterns), folder, bool(config.get("default")) or config["config_name"] == "default")
