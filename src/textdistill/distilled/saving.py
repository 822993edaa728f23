"""A distilled set on its way to and from folders and the hub, and what it must not take along."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple, cast

import torch
from huggingface_hub import CommitInfo
from torch import Tensor

from textdistill.distilled import hub, storage
from textdistill.distilled.readme import LICENSE, readme
from textdistill.distilled.reference_format import (
    REFERENCE_TENSORS_FILE,
    is_reference_folder,
    load_reference,
    read_reference,
)
from textdistill.distilled.spec import ModelMetadata, SetMetadata, SetSpec
from textdistill.distilled.untrusted import check_finite

logger = logging.getLogger(__name__)

# The raw tensors that hold almost all numbers of a set.
LARGE_TENSORS = ("inputs_embeds", "attention_labels")
# Keys whose values are folders or files: path, datasets_path, save_dir, data_dir_root, ...
PATH_KEY = re.compile(r"(.*_)?(path|dir|root)")


class LoadedSet(NamedTuple):
    """What a folder or repository holds.

    Attributes:
        raw: the raw tensors by name, in float32 on the CPU.
        spec: settings and metadata.
        dtype: type of the embeddings in the file.
        revision: commit of the hub repository; None for a folder.

    """

    raw: dict[str, Tensor]
    spec: SetSpec
    dtype: torch.dtype
    revision: str | None


def load_set(path_or_repo: str | Path, revision: str | None) -> LoadedSet:
    """Reads a folder or repository; ``DistilledDataset.from_pretrained`` documents it."""
    stored: Mapping[str, Tensor]
    if reference := is_reference_folder(path_or_repo):
        stored, config = load_reference(Path(path_or_repo))
    else:
        stored, config = storage.load_folder(path_or_repo, revision)
    raw = {name: tensor.float() for name, tensor in stored.items()}
    # Check again: a finite float64 value may overflow in float32.
    check_finite(Path(path_or_repo, REFERENCE_TENSORS_FILE if reference else storage.TENSORS_FILE), raw)
    commit = None
    try:
        if reference:
            spec = read_reference(config, raw)
        else:
            spec = SetSpec.from_json({key: value for key, value in config.items() if key not in storage.OWN_KEYS})
            commit = cast("str | None", config["revision"])
        spec.check(raw)
    except ValueError as error:
        file = Path(path_or_repo, storage.CONFIG_FILE)
        raise ValueError(f"{file}: {error}; restore the folder from its source") from error
    return LoadedSet(raw, spec, stored["inputs_embeds"].dtype, commit)


def save_set(
    path: Path, raw: Mapping[str, Tensor], spec: SetSpec, dtype: torch.dtype | None, source: str = "PATH"
) -> None:
    """Writes a set to a folder; ``DistilledDataset.save_pretrained`` documents it.

    Args:
        path: the folder.
        raw: the raw tensors by name.
        spec: settings and metadata.
        dtype: of embeddings and attention labels in the file; None keeps theirs.
        source: what the README passes to ``from_pretrained``.

    """
    large = {name: tensor.to(dtype) for name, tensor in raw.items() if name in LARGE_TENSORS}
    shapes = {name: tuple(tensor.shape) for name, tensor in raw.items()}
    storage.save_folder(path, {**raw, **large}, spec.to_json(), readme(spec, shapes, source))


def push_set(
    repo_id: str,
    raw: Mapping[str, Tensor],
    spec: SetSpec,
    dtype: torch.dtype | None,
    *,
    private: bool | None,
    revision: str | None,
    commit_message: str | None,
    token: str | None,
    license: str | None,
) -> CommitInfo:
    """Commits a set without local paths to the hub; ``DistilledDataset.push_to_hub`` documents it."""
    if license is not None and not LICENSE.fullmatch(license):
        raise ValueError(f"license must be an identifier of the hub, such as mit or cc-by-4.0, got {license!r}")
    repo = hub.create(repo_id, private, token)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "set")
        spec = without_local_paths(spec)
        if license is not None:
            spec = with_provenance(spec, {"license": license})
        save_set(folder, raw, spec, dtype, repo)
        return hub.commit(folder, repo, revision, commit_message or "Upload a distilled set", token)


def with_provenance(spec: SetSpec, provenance: Mapping[str, object]) -> SetSpec:
    """``spec`` with further entries in the provenance of its metadata."""
    metadata = replace(spec.metadata, provenance={**spec.metadata.provenance, **provenance})
    return spec._replace(metadata=metadata)


def without_local_paths(spec: SetSpec) -> SetSpec:
    """``spec`` without folders and files of this machine; ``DistilledDataset.without_local_paths`` documents it."""
    metadata = spec.metadata
    model = ModelMetadata(**drop_local_paths(asdict(metadata.model)))
    if model.name != metadata.model.name:
        logger.warning(
            "the metadata to share name the model %s: %s is a folder of this machine, and others need a copy of it",
            model.name,
            metadata.model.name,
        )
    metadata = SetMetadata(
        task=drop_local_paths(metadata.task),
        class_names=metadata.class_names,
        model=model,
        data=drop_local_paths(metadata.data),
        provenance=drop_local_paths(metadata.provenance),
    )
    return spec._replace(config=replace(spec.config, pretrained_data_path=None), metadata=metadata)


def drop_local_paths(value: Any) -> Any:
    """A JSON value without folders and files of this machine, at every depth.

    Keys that name a path are left out. A string that is a path, absolute or from ``.`` or ``~``, becomes its last
    part, because the name of a model or a task may be a path.
    """
    if isinstance(value, Mapping):
        return {key: drop_local_paths(item) for key, item in value.items() if not PATH_KEY.fullmatch(key)}
    if isinstance(value, list | tuple):
        return type(value)(drop_local_paths(item) for item in value)
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith((".", "~"))):
        return PurePath(value).name
    return value
