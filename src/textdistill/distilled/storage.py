"""The folder format of a distilled set: ``distilled.safetensors``, ``config.json`` and ``README.md``.

A folder is written beside its final name and then renamed, so a folder under its final name is always whole. Folders
come from strangers. Loading executes nothing, trusts no length that a file claims, and compares the tensors with
``config.json``. This module knows names, shapes, types and checksums of tensors. Other modules know their meaning.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from textdistill.core.files import sync
from textdistill.distilled import hub
from textdistill.distilled.untrusted import (
    MAX_CONFIG_BYTES,
    MAX_TENSORS_BYTES,
    brief,
    check_finite,
    check_size,
    ordinary_file,
    read_json,
)

FORMAT_VERSION = 1

TENSORS_FILE = "distilled.safetensors"
CONFIG_FILE = "config.json"
README_FILE = "README.md"
# Largest size of each file, in bytes.
LIMITS = {TENSORS_FILE: MAX_TENSORS_BYTES, CONFIG_FILE: MAX_CONFIG_BYTES, README_FILE: MAX_CONFIG_BYTES}

# Keys of config.json that this module writes and checks. ``revision`` exists in memory only.
OWN_KEYS = {"config_sha256", "format_version", "tensors", "sha256", "revision"}

# Largest header of a safetensors file that is not a distilled set, in bytes.
MAX_HEADER_BYTES = 32 * 2**20

# Types of tensors that a set may hold, as the safetensors header spells them.
DTYPES = {"F64", "F32", "F16", "BF16", "I64"}

# Placeholder of the checksum of config.json while that checksum is computed.
UNSEALED = "0" * 64


@dataclass
class TensorEntry:
    """What the header of a safetensors file states of one tensor, in the form that config.json repeats."""

    shape: list[int]
    dtype: str


def save_folder(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object], readme: str) -> None:
    """Writes a set to the folder ``path`` and replaces an earlier set there as a whole.

    All files are written to a hidden sibling folder and synced, then that folder is renamed. Wherever the process dies,
    ``path`` is the old set or the new set, never a mixture. Between the two renames that replace a set, ``path`` is
    absent, and both sets are whole in hidden siblings.

    Args:
        path: the folder. Its parents are created. An existing folder must be empty or hold a set and nothing else.
        tensors: float64, float32, float16, bfloat16 or int64 tensors of any shape, all values finite.
        config: content of ``config.json``, serialisable as JSON. Values under ``OWN_KEYS`` are replaced.
        readme: Markdown text of ``README.md``.

    Raises:
        ValueError: ``path`` holds something other than a set, a tensor is not finite or of another dtype, ``config``
            holds NaN or infinity, or a file would be larger than ``load_folder`` accepts. No file was changed.

    """
    path = path.resolve()
    _check_replaceable(path)
    check_finite(path, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        # The scratch folder is private to the user. A folder inside it gets ordinary permissions.
        new, old = Path(scratch, "new"), Path(f"{scratch}.old")
        new.mkdir()
        data = to_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        (new / TENSORS_FILE).write_bytes(data)
        with open_tensors(new / TENSORS_FILE, MAX_CONFIG_BYTES) as file:
            declared = header(path / TENSORS_FILE, file)
        content = {key: value for key, value in config.items() if key not in OWN_KEYS} | {
            "format_version": FORMAT_VERSION,
            "tensors": {name: asdict(entry) for name, entry in declared.items()},
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        (new / CONFIG_FILE).write_bytes(sealed(content))
        (new / README_FILE).write_text(readme, encoding="utf-8")
        for file in new.iterdir():
            check_size(path / file.name, file.stat().st_size, LIMITS[file.name])
        sync([*new.iterdir(), new])

        replaces = path.exists()
        if replaces:
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:  # includes KeyboardInterrupt, which must not leave ``path`` absent
            if replaces:
                old.rename(path)
            raise
        sync([path.parent])
    if replaces:
        shutil.rmtree(old)


def load_folder(path_or_repo: str | Path, revision: str | None = None) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Reads a set from a local folder or, if no such folder exists, from a dataset repository on the hub.

    The checks run in this order: checksum of ``config.json``; shapes and types in the header against ``config.json``,
    before any tensor is allocated; checksum of the tensors; finite values. Nothing in the folder is executed, and no
    link is followed out of it.

    Args:
        path_or_repo: a folder, or a repository id ``owner/name``.
        revision: branch, tag or commit of the repository; None is its main branch.

    Returns:
        The tensors on the CPU, as they were saved, and the content of ``config.json``. The added key ``revision`` is
        the commit that was read from the hub, or None for a local folder.

    Raises:
        FileNotFoundError: no such folder or repository, or a file is missing in it.
        ValueError: a file breaks one of the rules above; the message names file, rule and remedy.

    """
    if Path(path_or_repo).is_dir():
        if revision is not None:
            raise ValueError(
                f"revision names a version of a hub repository, but {path_or_repo} is a local folder and "
                f"revision is {revision!r}; leave it out"
            )
        folder = boundary = Path(path_or_repo)
        commit = None
    else:
        folder = hub.download(str(path_or_repo), revision, list(LIMITS))
        # The hub's cache consists of links. CACHE/REPOSITORY/snapshots/COMMIT links to CACHE/REPOSITORY/blobs, where a
        # large file is a link to CACHE/blobs. So links may lead anywhere within CACHE.
        boundary, commit = folder.parents[2], folder.name

    config_file = ordinary_file(folder, CONFIG_FILE, boundary, LIMITS[CONFIG_FILE])
    config = read_json(config_file)
    _check_version(config_file, config)
    _check_seal(config_file, config)
    if os.path.lexists(folder / README_FILE):
        ordinary_file(folder, README_FILE, boundary, LIMITS[README_FILE])
    path = ordinary_file(folder, TENSORS_FILE, boundary, LIMITS[TENSORS_FILE])
    with open_tensors(path, MAX_CONFIG_BYTES) as file:
        _check_declared(path, header(path, file), config)
        _check_sha256(path, config)
        # Copy, because safetensors returns a map of the file, and a later change of the file would show in it.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    check_finite(path, tensors)
    return tensors, config | {"revision": commit}


def sealed(config: Mapping[str, object]) -> bytes:
    """The bytes of ``config.json`` with its own checksum, which is computed with ``UNSEALED`` in its place."""
    text = json.dumps({"config_sha256": UNSEALED, **config}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.replace(UNSEALED, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


def _check_version(path: Path, config: Mapping[str, object]) -> None:
    version = config.get("format_version")
    if version is None:
        raise ValueError(f"{path} has no format_version: no distilled set of this format; check the path")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version must be {FORMAT_VERSION}, got {brief(version)}; "
            "load it with the textdistill release that wrote it, or upgrade textdistill"
        )


def _check_seal(path: Path, config: Mapping[str, object]) -> None:
    seal = config.get("config_sha256")
    data = path.read_bytes().replace(str(seal).encode(), UNSEALED.encode(), 1)
    if seal != hashlib.sha256(data).hexdigest():
        raise ValueError(
            f"{path}: config_sha256 must be that of the file itself (docs/format.md), got {brief(seal)}; "
            "the file was changed after it was saved: fetch it again"
        )


def open_tensors(path: Path, max_header_bytes: int = MAX_HEADER_BYTES) -> Any:
    """A safetensors file, opened by ``safe_open``: its extents fit the file, and no tensor has been read."""
    try:
        with path.open("rb") as file:
            claimed = int.from_bytes(file.read(8), "little")
        if claimed > max_header_bytes:
            raise ValueError(f"its header claims {claimed} bytes, more than {max_header_bytes}")
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {str(error)[:200]}; fetch it again") from error


def header(path: Path, file: Any) -> dict[str, TensorEntry]:
    """The entry of every tensor in the header of a safetensors file, by name.

    Args:
        path: of the file, for error messages.
        file: the file as ``open_tensors`` returns it.

    Raises:
        ValueError: a tensor has a dtype outside ``DTYPES``.

    """
    entries = {}
    for name in file.keys():  # noqa: SIM118 - not a dict
        tensor = file.get_slice(name)
        entry = entries[name] = TensorEntry(list(tensor.get_shape()), str(tensor.get_dtype()))
        if entry.dtype not in DTYPES:
            raise ValueError(
                f"{path}: tensor {brief(name)} must have one of the dtypes {sorted(DTYPES)}, got {entry.dtype}; "
                "save it in one of those"
            )
    return entries


def _check_declared(path: Path, entries: Mapping[str, TensorEntry], config: Mapping[str, object]) -> None:
    declared = config.get("tensors")
    if not isinstance(declared, dict):
        raise ValueError(f"{path.with_name(CONFIG_FILE)} must declare its tensors in an object; fetch it again")
    for name in sorted(entries.keys() | declared.keys()):
        expected, actual = declared.get(name), asdict(entries[name]) if name in entries else None
        # Compare as text, because true and 1.0 equal 1 in Python.
        if json.dumps(expected, sort_keys=True) != json.dumps(actual, sort_keys=True):
            raise ValueError(
                f"{path}: tensor {brief(name)} must be what {CONFIG_FILE} declares, {brief(expected)}, "
                f"got {brief(actual)}; the folder is damaged or mixed: fetch it again"
            )


def _check_sha256(path: Path, config: Mapping[str, object]) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != config.get("sha256"):
        raise ValueError(
            f"{path}: the sha256 must be the one in {CONFIG_FILE}, {brief(config.get('sha256'))}, got {digest}; "
            "the file was changed after it was saved: fetch it again"
        )


def _check_replaceable(path: Path) -> None:
    """Raises ValueError if writing a set to ``path`` would remove anything but another set."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"{path} must be a folder, got a file; choose another path")
    names = {entry.name for entry in path.iterdir()}
    others = names - LIMITS.keys()
    if others or (names and not {TENSORS_FILE, CONFIG_FILE} <= names):
        raise ValueError(
            f"{path} must be empty or hold a distilled set and nothing else to be replaced, got "
            f"{sorted(names)[:5]}; choose another path or move those files away"
        )
