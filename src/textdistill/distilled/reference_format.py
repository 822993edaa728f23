"""Distilled sets that the reference implementation saved: a folder with ``config.json`` and a pickle, ``data_dict``.

The pickle comes from strangers. It is checked opcode by opcode before torch reads it, and nothing in it is executed.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from textdistill.distilled.spec import (
    AttentionLabelWeight,
    DistilledDataConfig,
    Init,
    LearnerTrainConfig,
    ModelMetadata,
    SetMetadata,
    SetSpec,
    check_shapes,
    tensor_shapes,
)
from textdistill.distilled.storage import CONFIG_FILE, TENSORS_FILE
from textdistill.distilled.untrusted import (
    MAX_CONFIG_BYTES,
    brief,
    check_finite,
    ordinary_file,
    parse,
    read_json,
)

REFERENCE_TENSORS_FILE = "data_dict"

# Limit of the pickle without the data of its tensors. The pickle of a set's four tensors has less than 1 KiB.
MAX_PICKLE_BYTES = 2**14

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


@dataclass
class _ReferenceFile:
    """config.json of the reference implementation."""

    config: DistilledDataConfig
    train_config: LearnerTrainConfig
    num_labels: int
    hidden_size: int
    num_layers: int
    num_heads: int


def is_reference_folder(path: str | Path) -> bool:
    """Whether ``path`` is a set that the reference implementation saved."""
    return os.path.lexists(Path(path, REFERENCE_TENSORS_FILE)) and not os.path.lexists(Path(path, TENSORS_FILE))


def load_reference(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Reads a folder of the reference implementation and executes nothing of its pickle.

    Args:
        path: a folder with ``config.json`` and ``data_dict``.

    Returns:
        The raw tensors, contiguous and on the CPU, by name: ``inputs_embeds`` (N, L, D), ``labels`` (N, C), ``lr``
        (T,) or (), and perhaps ``attention_labels`` (N, Y, H, Q, L). Then the content of ``config.json``, whose form
        ``read_reference`` checks.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or holds anything but plain tensors.

    Source: arumaekawa/dataset-distillation-with-attention-labels, ``DistilledData.save_pretrained``.

    """
    config = read_json(ordinary_file(path, CONFIG_FILE, path, MAX_CONFIG_BYTES))
    file = ordinary_file(path, REFERENCE_TENSORS_FILE, path)
    try:
        tensors = _load_pickle(file)
    except Exception as error:  # zipfile, torch and pickle each raise errors of their own for a damaged archive
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{file} must be a dict of plain floating-point tensors written by torch.save (pickled code is never "
            f"run): {reason[:200]}; get the file from a source you trust or write it with the reference implementation"
        ) from error
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    check_finite(file, tensors)
    return tensors, config


def read_reference(config: Mapping[str, object], raw: Mapping[str, Tensor]) -> SetSpec:
    """The settings and metadata in ``config.json`` of the reference implementation.

    Raises:
        ValueError: ``config`` is of another form, or ``raw`` has other shapes than ``config`` states.

    """
    data = config.get("config")
    if isinstance(data, dict):
        # The reference implementation has one choice for each of these settings.
        fixed = {"init": Init.noise, "attention_label_weight": AttentionLabelWeight.equal, "lr_for_parameter": False}
        config = {**config, "config": data | fixed}
    file = parse(_ReferenceFile, config)
    # The reference implementation does not record which model a set was made for.
    model = ModelMetadata(
        name="bert-base-uncased",
        revision=None,
        embedding_size=file.hidden_size,
        num_layers=file.num_layers,
        num_heads=file.num_heads,
        parameters=(),
    )
    # Check shapes before making class names: a damaged file may state 2**60 classes.
    check_shapes(raw, tensor_shapes(file.config, file.train_config, file.num_labels, model))
    metadata = SetMetadata("unknown", tuple(map(str, range(file.num_labels))), model)
    return SetSpec(file.config, file.train_config, metadata)


def _load_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickle as views of the file. Raises an error of any type unless all tensors are plain."""
    sizes = _check_pickle(file)
    # In a mapped file, a storage is a slice of the file, even if the pickle claims a longer storage.
    tensors = torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(tensors, dict) or not all(type(tensor) is torch.Tensor for tensor in tensors.values()):
        raise ValueError("it holds something else")
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    if sorted(storages.values()) != sorted(sizes):
        raise ValueError(f"its tensors claim storages of {sorted(storages.values())} bytes, it has {sorted(sizes)}")
    # Tensors can share a storage, and zero strides make a huge tensor of one stored number.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > file.stat().st_size:
        raise ValueError("its tensors claim more elements than it stores")
    return tensors


def _check_pickle(file: Path) -> list[int]:
    """Raises for an archive that is more than a dict of tensors; returns the sizes of its storages in bytes.

    ``torch.load(weights_only=True)`` runs no code, but a hostile file could still harm the process. torch would inflate
    compressed members, allocate as much memory as the pickle asks for (``bytearray(2**40)``), build an error message of
    exponential length from nested shared tuples, and crash on a key that is a very deep tuple.
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
