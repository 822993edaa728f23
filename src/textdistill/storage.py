"""A distilled set on disk: named tensors and a JSON card in a folder, locally or on the Hugging Face hub.

The folder holds ``distilled.safetensors``, ``config.json`` (the caller's keys plus ``format_version``,
``tensors`` and ``sha256``) and ``README.md``. It is written beside its final name and renamed, so that a
folder under its final name is always whole. Folders come from strangers: loading executes nothing, never
trusts a length that a file claims, and checks everything the card declares. What the tensors and the keys
mean is decided in ``distilled.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

FORMAT_VERSION = 1

TENSORS_FILE = "distilled.safetensors"
CONFIG_FILE = "config.json"
README_FILE = "README.md"
REFERENCE_TENSORS_FILE = "data_dict"

# Far above any distilled set (attention labels of all rows, 20 samples of BERT-base at length 512: 3 GiB).
MAX_TENSORS_BYTES = 8 * 2**30
MAX_CONFIG_BYTES = 16 * 2**20

# As the safetensors header spells them.
DTYPES = {"F64", "F32", "F16", "BF16", "I64"}


def save_folder(path: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], readme: str) -> None:
    """Write a set to the folder ``path``, replacing an earlier set there as a whole.

    Everything is written and synced in a hidden sibling folder first, then renamed. If the process dies, the
    folder under its final name is the old set, the new set, or (dying between the two renames that replace
    a set) absent with both sets whole in hidden siblings; never a mixture.

    Args:
        path: the folder; its parents are created. If it exists it must be empty or hold a set and nothing
            else.
        tensors: float64, float32, float16, bfloat16 or int64 tensors of any shape, all values finite.
        config: JSON-serialisable card. ``format_version``, ``tensors`` ({name: {shape, dtype}}), ``sha256``
            (of the tensor file) and ``revision`` belong to this module: any value given for them is dropped.
        readme: Markdown text of the card.

    Raises:
        ValueError: ``path`` is something other than a set, a tensor is not finite or of another dtype, or
            ``config`` holds NaN or infinity. Nothing has changed then.

    """
    path = path.resolve()
    _check_replaceable(path)
    _check_finite(path, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        # A folder inside the scratch folder: that one is private to the user, a set has ordinary permissions.
        new, old = Path(scratch, "new"), Path(f"{scratch}.old")
        new.mkdir()
        data = to_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        (new / TENSORS_FILE).write_bytes(data)
        with _open_tensors(new / TENSORS_FILE) as file:
            header = _header(path / TENSORS_FILE, file)
        card = {key: value for key, value in config.items() if key != "revision"} | {
            "format_version": FORMAT_VERSION,
            "tensors": header,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        text = json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False)
        (new / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        (new / README_FILE).write_text(readme, encoding="utf-8")
        _sync([*new.iterdir(), new])

        replaces = path.exists()
        if replaces:
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:  # an interrupt too must not leave the name empty
            if replaces:
                old.rename(path)
            raise
        _sync([path.parent])
    if replaces:
        shutil.rmtree(old)


def load_folder(
    path_or_repo: str | Path, revision: str | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a set from a local folder or, where there is none of that name, a dataset repository on the hub.

    The header is compared with what the card declares before a tensor is allocated, then the checksum, then
    the values. Nothing in the folder is executed, and no link is followed out of it.

    Args:
        path_or_repo: a folder, or a repository id ``owner/name``.
        revision: branch, tag or commit of the repository; None is its main branch.

    Returns:
        The tensors, on the CPU, as they were saved, and the card as saved plus ``revision``: the commit that
        was read from the hub, None for a local folder.

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
        folder = _download(str(path_or_repo), revision)
        # The hub's cache is DIR/snapshots/COMMIT with links into DIR/blobs.
        boundary, commit = folder.parent.parent, folder.name

    config = _read_json(_member(folder, CONFIG_FILE, boundary, MAX_CONFIG_BYTES))
    _check_version(folder / CONFIG_FILE, config)
    path = _member(folder, TENSORS_FILE, boundary, MAX_TENSORS_BYTES)
    with _open_tensors(path) as file:
        _check_declared(path, _header(path, file), config)
        _check_sha256(path, config)
        # Copies: what safetensors returns is a map of the file, which would follow a later change of it.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    _check_finite(path, tensors)
    return tensors, config | {"revision": commit}


def is_reference_folder(path: str | Path) -> bool:
    """Whether ``path`` is a set written by the reference implementation (``config.json`` + ``data_dict``)."""
    path = Path(path)
    return (
        (path / CONFIG_FILE).is_file()
        and (path / REFERENCE_TENSORS_FILE).is_file()
        and not (path / TENSORS_FILE).exists()
    )


def load_reference(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a set in the reference implementation's format, executing nothing of its pickle.

    Args:
        path: a folder with ``config.json`` and ``data_dict``.

    Returns:
        The raw tensors, contiguous on the CPU: ``inputs_embeds`` (N, L, D), ``labels`` (N, C), ``lr`` (T,) or
        (), before softplus, and ``attention_labels`` (N, Y, H, Q, L), before softmax, where the card says so;
        and the card as it is: ``config``, ``train_config``, ``num_labels``, ``hidden_size``, ``num_layers``,
        ``num_heads``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, holds anything but plain tensors, or contradicts the card's shapes.

    Source: arumaekawa/dataset-distillation-with-attention-labels, ``DistilledData.save_pretrained``.

    """
    config_path = _member(path, CONFIG_FILE, path, MAX_CONFIG_BYTES)
    config = _read_json(config_path)
    shapes = _reference_shapes(config_path, config)
    file = _member(path, REFERENCE_TENSORS_FILE, path, MAX_TENSORS_BYTES)
    try:
        # Mapped, a storage is a slice of the file, whatever length the pickle claims for it.
        tensors = torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged archive fails in as many ways as torch and pickle know
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{file} must be a dict of plain tensors written by torch.save (pickled code is never run): "
            f"{reason}; get the file from a source you trust or write it with the reference implementation"
        ) from error
    if not isinstance(tensors, dict) or not all(_is_plain(tensor) for tensor in tensors.values()):
        raise ValueError(
            f"{file} must hold a dict of plain floating-point tensors and nothing else; "
            "write it again with the reference implementation"
        )
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes:
        raise ValueError(
            f"{file} must hold tensors of the shapes that {CONFIG_FILE} implies, {shapes}, got {found}; "
            "the two files belong to different sets: restore the one that was changed"
        )
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    _check_finite(file, tensors)
    return tensors, config


def _reference_shapes(path: Path, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that belong to a card of the reference implementation."""

    def size(section: Mapping[str, Any], key: str) -> int:
        if type(section[key]) is not int:
            raise TypeError(f"{key}={section[key]!r}")
        return int(section[key])

    try:
        data = config["config"]
        num_labels, seq_length = size(config, "num_labels"), size(data, "seq_length")
        n = size(data, "data_per_label") * num_labels
        shapes = {
            "inputs_embeds": (n, seq_length, size(config, "hidden_size")),
            "labels": (n, num_labels),
            "lr": (size(config["train_config"], "train_step"),) if data["lr_for_step"] else (),
        }
        if data["attention_label_type"] != "none":
            rows = {"cls": 1, "all": seq_length}[data["attention_label_type"]]
            heads = (size(config, "num_layers"), size(config, "num_heads"))
            shapes["attention_labels"] = (n, *heads, rows, seq_length)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be a card of the reference implementation, but a key is missing or of another type "
            f"({error!r}); write it again with the reference implementation"
        ) from error
    return shapes


def _is_plain(tensor: Any) -> bool:
    """Whether an unpickled value is an ordinary dense tensor with every element in the file."""
    return (
        type(tensor) is torch.Tensor
        and tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        # Zero strides would make a huge tensor of one stored number.
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _download(repo: str, revision: str | None) -> Path:
    """The local copy of a dataset repository's set."""
    try:
        folder = snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[TENSORS_FILE, CONFIG_FILE, README_FILE],
        )
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{repo!r} is neither a folder here nor, at revision {revision!r}, a dataset repository that can "
            f"be fetched from the hub; check path, repository and connection ({str(error).strip()})"
        ) from error
    return Path(folder)


def _member(folder: Path, name: str, boundary: Path, max_bytes: int) -> Path:
    """The path of a file that must be in ``folder``, not beyond ``boundary`` and of sane size."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a distilled set: it has no file {name}; check the path")
    if not path.resolve().is_relative_to(boundary.resolve()):
        raise ValueError(f"{path} is a link to a file outside its folder; replace it by the file itself")
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"{path} must have at most {max_bytes} bytes, got {size}; it is no distilled set")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}; restore the file from its source") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(config).__name__}; restore the file from its source")
    return config


def _check_version(path: Path, config: Mapping[str, Any]) -> None:
    version = config.get("format_version")
    if version is None:
        raise ValueError(f"{path} has no format_version: no distilled set of this format; check the path")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version must be {FORMAT_VERSION}, got {version!r}; "
            "load it with the textdistill release that wrote it, or upgrade textdistill"
        )


def _open_tensors(path: Path) -> Any:
    """The file as ``safe_open`` (untyped) gives it: extents checked against its size, no tensor read yet."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}; fetch it again") from error


def _header(path: Path, file: Any) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every tensor by the file's own header: {name: {"shape": [...], "dtype": "F32"}}."""
    header = {}
    for name in file.keys():  # noqa: SIM118 - not a dict
        entry = file.get_slice(name)
        header[name] = {"shape": list(entry.get_shape()), "dtype": str(entry.get_dtype())}
        if header[name]["dtype"] not in DTYPES:
            raise ValueError(
                f"{path}: tensor {name!r} must have one of the dtypes {sorted(DTYPES)}, got "
                f"{header[name]['dtype']}; save it in one of those"
            )
    return header


def _check_declared(path: Path, header: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    declared = config.get("tensors")
    if not isinstance(declared, dict):
        raise ValueError(f"{path.with_name(CONFIG_FILE)} must declare its tensors in an object; fetch it again")
    for name in sorted(header.keys() | declared.keys()):
        if header.get(name) != declared.get(name):
            raise ValueError(
                f"{path}: tensor {name!r} must be what {CONFIG_FILE} declares, {declared.get(name)}, "
                f"got {header.get(name)}; the folder is damaged or mixed: fetch it again"
            )


def _check_sha256(path: Path, config: Mapping[str, Any]) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != config.get("sha256"):
        raise ValueError(
            f"{path}: the sha256 must be the one in {CONFIG_FILE}, {config.get('sha256')}, got {digest}; "
            "the file was changed after it was saved: fetch it again"
        )


def _check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path}: tensor {name!r} must hold finite values, but {int((~tensor.isfinite()).sum())} of "
                f"{tensor.numel()} are NaN or infinite; distil again with smaller learning rates"
            )


def _check_replaceable(path: Path) -> None:
    """A set may replace a set; nothing else that exists is ever removed."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"{path} must be a folder, got a file; choose another path")
    names = {entry.name for entry in path.iterdir()}
    others = names - {TENSORS_FILE, CONFIG_FILE, README_FILE}
    if others or (names and not {TENSORS_FILE, CONFIG_FILE} <= names):
        raise ValueError(
            f"{path} must be empty or hold a distilled set and nothing else to be replaced, got "
            f"{sorted(names)[:5]}; choose another path or move those files away"
        )


def _sync(paths: Iterable[Path]) -> None:
    """Wait until files, or the entries of folders, are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
