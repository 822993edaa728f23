"""A distilled set on disk: named tensors and a JSON card in a folder, locally or on the Hugging Face hub.

The folder holds ``distilled.safetensors``, ``config.json`` (the caller's keys plus those in ``OWN_KEYS``) and
``README.md``. It is written beside its final name and renamed, so that a folder under its final name is always
whole. Folders come from strangers: loading executes nothing, never trusts a length that a file claims, and checks
everything the card declares. What the tensors and the keys mean is decided in ``distilled.py``, which reads the
keys with ``parse``.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickletools
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import EnumType
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from textdistill.core.files import sync
from textdistill.distilled import hub

FORMAT_VERSION = 1

TENSORS_FILE = "distilled.safetensors"
CONFIG_FILE = "config.json"
README_FILE = "README.md"
FILES = (TENSORS_FILE, CONFIG_FILE, README_FILE)
REFERENCE_TENSORS_FILE = "data_dict"

# Keys of the card that this module writes and checks; ``revision`` exists only in memory.
OWN_KEYS = {"config_sha256", "format_version", "tensors", "sha256", "revision"}

# Far above any distilled set (attention labels of all rows, 20 samples of BERT-base at length 512: 3 GiB).
MAX_TENSORS_BYTES = 8 * 2**30
# Of config.json, README.md and the header of distilled.safetensors, which become objects in memory, many times their
# size in the file.
MAX_CONFIG_BYTES = 2**20
# Of data_dict's pickle, without what its tensors hold: one of four tensors has less than 1 KiB.
MAX_PICKLE_BYTES = 2**14
# Of other safetensors files.
MAX_HEADER_BYTES = 32 * 2**20
MAX_CONFIG_DEPTH = 20
LIMITS = {CONFIG_FILE: MAX_CONFIG_BYTES, README_FILE: MAX_CONFIG_BYTES}

# As the safetensors header spells them.
DTYPES = {"F64", "F32", "F16", "BF16", "I64"}

# Stands in config.json for its own checksum while that is computed.
UNSEALED = "0" * 64

# What ``parse`` accepts, in words.
JSON_TYPES = {
    bool: "true or false",
    int: "a whole number from 1 to 2^63 - 1",
    float: "a number",
    str: "a string",
    dict: "an object",
}

# All that torch.save needs for a dict of floating-point tensors.
# fmt: off
PICKLE_OPCODES = {
    "PROTO", "STOP", "MARK", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "NEWTRUE", "NEWFALSE", "BINPERSID", "REDUCE", "GLOBAL",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
}
# fmt: on
PICKLE_GLOBALS = {
    "torch._utils _rebuild_tensor_v2",
    "collections OrderedDict",
    *(f"torch {kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16")),
}

T = TypeVar("T")


def save_folder(path: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], readme: str) -> None:
    """Write a set to the folder ``path``, replacing an earlier set there as a whole.

    Everything is written and synced in a hidden sibling folder first, then renamed. If the process dies, the
    folder under its final name is the old set, the new set, or (dying between the two renames that replace
    a set) absent with both sets whole in hidden siblings; never a mixture.

    Args:
        path: the folder; its parents are created. If it exists it must be empty or hold a set and nothing
            else.
        tensors: float64, float32, float16, bfloat16 or int64 tensors of any shape, all values finite.
        config: JSON-serialisable card. ``OWN_KEYS`` belong to this module: any value given for them is dropped.
        readme: Markdown text of the card.

    Raises:
        ValueError: ``path`` is something other than a set, a tensor is not finite or of another dtype,
            ``config`` holds NaN or infinity, or a file would be larger than ``load_folder`` accepts. Nothing has
            changed then.

    """
    path = path.resolve()
    _check_replaceable(path)
    check_finite(path, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        # A folder inside the scratch folder: that one is private to the user, a set has ordinary permissions.
        new, old = Path(scratch, "new"), Path(f"{scratch}.old")
        new.mkdir()
        data = to_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        (new / TENSORS_FILE).write_bytes(data)
        with open_tensors(new / TENSORS_FILE, MAX_CONFIG_BYTES) as file:
            declared = header(path / TENSORS_FILE, file)
        card = {key: value for key, value in config.items() if key not in OWN_KEYS} | {
            "format_version": FORMAT_VERSION,
            "tensors": declared,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        (new / CONFIG_FILE).write_bytes(sealed(card))
        (new / README_FILE).write_text(readme, encoding="utf-8")
        for file in new.iterdir():
            _check_size(path / file.name, file.stat().st_size, LIMITS.get(file.name, MAX_TENSORS_BYTES))
        sync([*new.iterdir(), new])

        replaces = path.exists()
        if replaces:
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:  # an interrupt too must not leave the name empty
            if replaces:
                old.rename(path)
            raise
        sync([path.parent])
    if replaces:
        shutil.rmtree(old)


def load_folder(
    path_or_repo: str | Path, revision: str | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a set from a local folder or, where there is none of that name, a dataset repository on the hub.

    First the card's own checksum, then the header is compared with what the card declares, before a tensor is
    allocated, then the tensors' checksum, then the values. Nothing in the folder is executed, and no link is
    followed out of it.

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
        folder = hub.download(str(path_or_repo), revision, FILES)
        # CACHE/REPOSITORY/snapshots/COMMIT holds links into CACHE/REPOSITORY/blobs; a large file there is a link
        # itself, into CACHE/blobs, which all repositories share.
        boundary, commit = folder.parents[2], folder.name

    card = member(folder, CONFIG_FILE, boundary)
    config = _read_json(card)
    _check_version(card, config)
    _check_seal(card, config)
    if os.path.lexists(folder / README_FILE):
        member(folder, README_FILE, boundary)
    path = member(folder, TENSORS_FILE, boundary)
    with open_tensors(path, MAX_CONFIG_BYTES) as file:
        _check_declared(path, header(path, file), config)
        _check_sha256(path, config)
        # Copies: what safetensors returns is a map of the file, which would follow a later change of it.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    check_finite(path, tensors)
    return tensors, config | {"revision": commit}


def is_reference_folder(path: str | Path) -> bool:
    """Whether ``path`` is a set written by the reference implementation (``config.json`` + ``data_dict``)."""
    return os.path.lexists(Path(path, REFERENCE_TENSORS_FILE)) and not os.path.lexists(Path(path, TENSORS_FILE))


def load_reference(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a set in the reference implementation's format, executing nothing of its pickle.

    Args:
        path: a folder with ``config.json`` and ``data_dict``.

    Returns:
        The raw tensors, contiguous on the CPU, by the names that the file gives them: ``inputs_embeds`` (N, L, D),
        ``labels`` (N, C), ``lr`` (T,) or (), before softplus, and perhaps ``attention_labels`` (N, Y, H, Q, L),
        before softmax; and the card as it is: ``config``, ``train_config``, ``num_labels``, ``hidden_size``,
        ``num_layers``, ``num_heads``. That the two agree is for the caller to check.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or holds anything but plain tensors.

    Source: arumaekawa/dataset-distillation-with-attention-labels, ``DistilledData.save_pretrained``.

    """
    config = _read_json(member(path, CONFIG_FILE, path))
    file = member(path, REFERENCE_TENSORS_FILE, path)
    try:
        sizes = _check_pickle(file)
        # Mapped, a storage is a slice of the file, whatever length the pickle claims for it.
        tensors = torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(tensors, dict) or not all(type(tensor) is torch.Tensor for tensor in tensors.values()):
            raise ValueError("it holds something else")
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()
        }
        if sorted(storages.values()) != sorted(sizes):
            raise ValueError(f"its tensors claim storages of {sorted(storages.values())} bytes, it has {sorted(sizes)}")
        # Tensors can share a storage, and zero strides make a huge tensor of one stored number.
        if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > file.stat().st_size:
            raise ValueError("its tensors claim more elements than it stores")
    except Exception as error:  # a damaged archive fails in as many ways as zipfile, torch and pickle know
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{file} must be a dict of plain floating-point tensors written by torch.save (pickled code is never "
            f"run): {reason[:200]}; get the file from a source you trust or write it with the reference implementation"
        ) from error
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    check_finite(file, tensors)
    return tensors, config


def parse(schema: type[T], value: Any, key: str = "") -> T:
    """A value read from JSON as an instance of the dataclass ``schema``.

    Args:
        schema: its fields are dataclasses, string enums, ``bool``, ``int`` (a count, at least 1), ``float``, ``str``,
            ``dict[str, Any]``, tuples of one of these, or one of these or None.
        value: must have exactly the keys that ``schema`` has fields, and values of their types.
        key: where ``value`` stands, for messages.

    Raises:
        ValueError: it has not; the message names the key, but not the file.

    """
    hints = get_type_hints(schema)
    if not isinstance(value, dict):
        raise ValueError(f"{key or 'the card'} must be an object, got {brief(value)}")
    if value.keys() != hints.keys():
        raise ValueError(
            f"{key or 'the card'} must have the keys {sorted(hints)}: missing {sorted(hints.keys() - value.keys())}, "
            f"unknown {brief(sorted(value.keys() - hints.keys()))}"
        )
    return schema(**{name: _typed(hint, value[name], f"{key}.{name}".lstrip(".")) for name, hint in hints.items()})


def brief(value: object) -> str:
    """A value from a stranger's file as a message shows it: at most a line or two."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def sealed(card: Mapping[str, Any]) -> bytes:
    """``config.json`` with ``config_sha256``: of these very bytes, but with ``UNSEALED`` in its place."""
    text = json.dumps({"config_sha256": UNSEALED, **card}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.replace(UNSEALED, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


def _typed(hint: Any, value: Any, key: str) -> Any:
    """``value`` as the type ``hint`` of a field."""
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
    # By type, not isinstance: true is no number. But 1 may stand for 1.0.
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits or (kind is int and value < 1) or (type(value) is int and abs(value) >= 2**63):
        raise ValueError(f"{key} must be {JSON_TYPES[kind]}, got {brief(value)}")
    return float(value) if kind is float else value


def _check_pickle(file: Path) -> list[int]:
    """Raises for an archive that is more than a dict of tensors; returns the sizes of its storages.

    ``torch.load(weights_only=True)`` runs no code, but would inflate compressed members, allocate what the pickle
    asks for (``bytearray(2**40)``), print pairs of pairs of one shared pair in a message, and crash on a key that
    is a very deep tuple.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        (pickle,) = (member for member in members if member.filename.lower().endswith("data.pkl"))
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its members are compressed")
        if pickle.file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"its pickle has {pickle.file_size} bytes, more than {MAX_PICKLE_BYTES}")
        if damaged := archive.testzip():
            raise ValueError(f"its member {brief(damaged)} does not have the checksum of the archive")
        data = archive.read(pickle)
    memo, previous = {}, ""
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name not in PICKLE_OPCODES or (name == "GLOBAL" and argument not in PICKLE_GLOBALS):
            raise ValueError(f"its pickle holds {name} {brief(argument)}")
        if name.endswith("BINPUT"):
            memo[argument] = previous
        elif name.endswith("BINGET") and memo.get(argument) not in ("BINUNICODE", "GLOBAL"):
            raise ValueError("its pickle uses a container twice")
        previous = name
    return [member.file_size for member in members if "/data/" in member.filename]


def member(folder: Path, name: str, boundary: Path) -> Path:
    """The path of a file that must be in ``folder``, an ordinary one, not beyond ``boundary`` and of sane size.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is something else.

    """
    path = folder / name
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} has no file {name}; check the path") from error
    except OSError as error:  # a ring of links
        raise ValueError(f"{path} must be an ordinary file, got {error}; replace it by the file itself") from error
    if not path.resolve().is_relative_to(boundary.resolve()):
        raise ValueError(f"{path} is a link to a file outside its folder; replace it by the file itself")
    if not stat.S_ISREG(status.st_mode):  # to read a pipe or a device may never end
        raise ValueError(f"{path} must be an ordinary file, got a folder, pipe or device; fetch the set again")
    _check_size(path, status.st_size, LIMITS.get(name, MAX_TENSORS_BYTES))
    return path


def _check_size(path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"{path} must have at most {limit} bytes, got {size}; fetch it again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
        # Python reads more than JSON: NaN, Infinity, 1e999 and halves of characters, which cannot be written.
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


def _check_version(path: Path, config: Mapping[str, Any]) -> None:
    version = config.get("format_version")
    if version is None:
        raise ValueError(f"{path} has no format_version: no distilled set of this format; check the path")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version must be {FORMAT_VERSION}, got {brief(version)}; "
            "load it with the textdistill release that wrote it, or upgrade textdistill"
        )


def _check_seal(path: Path, config: Mapping[str, Any]) -> None:
    seal = config.get("config_sha256")
    data = path.read_bytes().replace(str(seal).encode(), UNSEALED.encode(), 1)
    if seal != hashlib.sha256(data).hexdigest():
        raise ValueError(
            f"{path}: config_sha256 must be that of the file itself (docs/format.md), got {brief(seal)}; "
            "the file was changed after it was saved: fetch it again"
        )


def open_tensors(path: Path, max_header_bytes: int = MAX_HEADER_BYTES) -> Any:
    """The file as ``safe_open`` (untyped) gives it: extents checked against its size, no tensor read yet."""
    try:
        with path.open("rb") as file:
            claimed = int.from_bytes(file.read(8), "little")
        if claimed > max_header_bytes:
            raise ValueError(f"its header claims {claimed} bytes, more than {max_header_bytes}")
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {str(error)[:200]}; fetch it again") from error


def header(path: Path, file: Any) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every tensor by the file's own header: {name: {"shape": [...], "dtype": "F32"}}."""
    entries = {}
    for name in file.keys():  # noqa: SIM118 - not a dict
        entry = file.get_slice(name)
        entries[name] = {"shape": list(entry.get_shape()), "dtype": str(entry.get_dtype())}
        if entries[name]["dtype"] not in DTYPES:
            raise ValueError(
                f"{path}: tensor {brief(name)} must have one of the dtypes {sorted(DTYPES)}, got "
                f"{entries[name]['dtype']}; save it in one of those"
            )
    return entries


def _check_declared(path: Path, header: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    declared = config.get("tensors")
    if not isinstance(declared, dict):
        raise ValueError(f"{path.with_name(CONFIG_FILE)} must declare its tensors in an object; fetch it again")
    for name in sorted(header.keys() | declared.keys()):
        expected, found = declared.get(name), header.get(name)
        # As text: to Python, true and 1.0 equal 1.
        if json.dumps(expected, sort_keys=True) != json.dumps(found, sort_keys=True):
            raise ValueError(
                f"{path}: tensor {brief(name)} must be what {CONFIG_FILE} declares, {brief(expected)}, "
                f"got {brief(found)}; the folder is damaged or mixed: fetch it again"
            )


def _check_sha256(path: Path, config: Mapping[str, Any]) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != config.get("sha256"):
        raise ValueError(
            f"{path}: the sha256 must be the one in {CONFIG_FILE}, {brief(config.get('sha256'))}, got {digest}; "
            "the file was changed after it was saved: fetch it again"
        )


def check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path}: tensor {brief(name)} must hold finite values, but {int((~tensor.isfinite()).sum())} of "
                f"{tensor.numel()} are NaN or infinite; distil again with smaller learning rates"
            )


def _check_replaceable(path: Path) -> None:
    """A set may replace a set; nothing else that exists is ever removed."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"{path} must be a folder, got a file; choose another path")
    names = {entry.name for entry in path.iterdir()}
    others = names - set(FILES)
    if others or (names and not {TENSORS_FILE, CONFIG_FILE} <= names):
        raise ValueError(
            f"{path} must be empty or hold a distilled set and nothing else to be replaced, got "
            f"{sorted(names)[:5]}; choose another path or move those files away"
        )
