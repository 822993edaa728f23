"""What a distilled set is: its settings, its card, the shapes of its tensors, and how files state them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor

from textdistill.distilled import storage
from textdistill.method.attention import AttentionLabelType
from textdistill.method.learner import Learner


class LabelType(StrEnum):
    """One-hot and fixed; learned through a softmax; or learned and used as they are."""

    hard = "hard"
    soft = "soft"
    unrestricted = "unrestricted"


class Init(StrEnum):
    """Initial embeddings: standard normal noise (the reference), or embeddings of real training texts."""

    noise = "noise"
    real = "real"


class AttentionLabelWeight(StrEnum):
    """How much a row of attention labels counts in the attention loss: all alike (the reference), or as learned."""

    equal = "equal"
    learned = "learned"


@dataclass
class DistilledDataConfig:
    """The shape of the distilled set and how it starts: ``distilled_data.*``."""

    pretrained_data_path: str | None = None
    data_per_label: int = 1
    attention_label_type: AttentionLabelType = AttentionLabelType.none
    attention_label_weight: AttentionLabelWeight = AttentionLabelWeight.learned
    attention_loss_lambda: float = 0.5
    seq_length: int = 64
    label_type: LabelType = LabelType.hard
    lr_for_step: bool = True
    lr_for_parameter: bool = True
    lr_init: float = 0.1
    lr_linear_decay: bool = False
    fix_order: bool = True
    init: Init = Init.real

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        for key, least in {"data_per_label": 1, "seq_length": 1}.items():
            if getattr(self, key) < least:
                raise ValueError(f"distilled_data.{key} must be at least {least}, got {getattr(self, key)}")
        if not 0 < self.lr_init < math.inf:
            raise ValueError(f"distilled_data.lr_init must be above 0 and finite, got {self.lr_init}")
        supervised = self.attention_label_type is not AttentionLabelType.none
        if supervised and not 0 < self.attention_loss_lambda < math.inf:
            raise ValueError(
                "distilled_data.attention_loss_lambda must be above 0 and finite with attention labels"
                f" ({self.attention_label_type}), got {self.attention_loss_lambda};"
                " set distilled_data.attention_label_type=none to do without"
            )


@dataclass
class LearnerTrainConfig:
    """The inner loop: ``learner_train.*``."""

    train_step: int = 1
    batch_size_per_label: int = 1

    def check(self, data: DistilledDataConfig) -> None:
        """Raises ValueError for a value out of range or at odds with the distilled set's size."""
        if self.train_step < 1:
            raise ValueError(f"learner_train.train_step must be at least 1, got {self.train_step}")
        size, batch = data.data_per_label, self.batch_size_per_label
        if not 1 <= batch <= size:
            raise ValueError(
                f"learner_train.batch_size_per_label must be from 1 to distilled_data.data_per_label={size},"
                f" got {batch}"
            )
        if data.fix_order and size % batch:
            raise ValueError(
                f"distilled_data.data_per_label={size} must be divisible by"
                f" learner_train.batch_size_per_label={batch} when distilled_data.fix_order=true;"
                " change one of them, or set distilled_data.fix_order=false"
            )


@dataclass(frozen=True)
class ModelMetadata:
    """The encoder that a set was made for.

    Attributes:
        name: as the user gave it: a model of the hub, or a folder.
        revision: commit on the hub or checksum of the weights, None where neither is known.
        embedding_size: D.
        num_layers: Y.
        num_heads: H.
        parameters: names (P) of the parameters that inner steps update.

    """

    name: str
    revision: str | None
    embedding_size: int
    num_layers: int
    num_heads: int
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class SetMetadata:
    """What a distilled set was made for and from; stored beside its tensors.

    Attributes:
        task: name of the task.
        class_names: C names; sample i has class i % C.
        model: the encoder that it was made for.
        data: how the data were read (columns, protocol, max_length, fingerprint).
        provenance: seed, outer steps, versions, scores - whatever the maker wants remembered.

    """

    task: str
    class_names: tuple[str, ...]
    model: ModelMetadata
    data: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _File:
    """config.json, without the keys that belong to ``storage``."""

    distilled_data: DistilledDataConfig
    learner_train: LearnerTrainConfig
    task: str
    class_names: tuple[str, ...]
    model: ModelMetadata
    data: dict[str, Any]
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        if len(set(self.class_names)) != max(1, len(self.class_names)):
            raise ValueError(f"class_names must be one or more distinct strings, got {storage.brief(self.class_names)}")


@dataclass
class _ReferenceFile:
    """config.json of the reference implementation."""

    config: DistilledDataConfig
    train_config: LearnerTrainConfig
    num_labels: int
    hidden_size: int
    num_layers: int
    num_heads: int


def model_metadata(learner: Learner) -> ModelMetadata:
    """The metadata of a set that is made for ``learner``."""
    return ModelMetadata(
        name=learner.name,
        revision=learner.revision,
        embedding_size=learner.embedding_size,
        num_layers=learner.num_layers,
        num_heads=learner.num_heads,
        parameters=tuple(learner.trainable),
    )


def tensor_shapes(
    config: DistilledDataConfig, inner_config: LearnerTrainConfig, num_labels: int, model: ModelMetadata
) -> dict[str, tuple[int, ...]]:
    """By name, the shape of each raw tensor of a set; see ``DistilledDataset.raw``."""
    count, length = config.data_per_label * num_labels, config.seq_length
    shapes: dict[str, tuple[int, ...]] = {
        "inputs_embeds": (count, length, model.embedding_size),
        "labels": (count, num_labels),
        "lr": (inner_config.train_step,) if config.lr_for_step else (),
    }
    if config.lr_for_parameter:
        shapes["lr_scales"] = (*shapes["lr"], len(model.parameters))
    if config.attention_label_type is not AttentionLabelType.none:
        rows = config.attention_label_type.rows(length)
        shapes["attention_labels"] = (count, model.num_layers, model.num_heads, rows, length)
    return shapes


def check_shapes(raw: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless a set has these tensors, each of its shape."""
    given = {name: tuple(tensor.shape) for name, tensor in raw.items()}
    if given != expected:
        raise ValueError(f"tensors of a distilled set must have shapes {expected}, got {storage.brief(given)}")


def read_card(config: Mapping[str, Any]) -> tuple[DistilledDataConfig, LearnerTrainConfig, SetMetadata]:
    """What ``config.json`` of a set says; ValueError where it is not of the form."""
    file = storage.parse(_File, {key: value for key, value in config.items() if key not in storage.OWN_KEYS})
    card = SetMetadata(file.task, file.class_names, file.model, file.data, file.provenance)
    return file.distilled_data, file.learner_train, card


def read_reference(
    config: Mapping[str, Any], raw: Mapping[str, Tensor]
) -> tuple[DistilledDataConfig, LearnerTrainConfig, SetMetadata]:
    """What ``config.json`` of the reference implementation says; ValueError where ``raw`` is of other shapes."""
    data = config.get("config")
    if isinstance(data, dict):
        # The reference knows no others.
        known = {"init": Init.noise, "attention_label_weight": AttentionLabelWeight.equal, "lr_for_parameter": False}
        config = {**config, "config": data | known}
    file = storage.parse(_ReferenceFile, config)
    # The reference does not record what the set was made for.
    model = ModelMetadata(
        name="bert-base-uncased",
        revision=None,
        embedding_size=file.hidden_size,
        num_layers=file.num_layers,
        num_heads=file.num_heads,
        parameters=(),
    )
    # Before there are names: a card may claim 2**60 classes.
    check_shapes(raw, tensor_shapes(file.config, file.train_config, file.num_labels, model))
    return file.config, file.train_config, SetMetadata("unknown", tuple(map(str, range(file.num_labels))), model)
