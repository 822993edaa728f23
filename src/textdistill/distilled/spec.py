"""What describes a distilled set beside its tensors: settings, metadata, and the shapes that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from textdistill.distilled.untrusted import brief, parse
from textdistill.method.attention import AttentionLabelType

if TYPE_CHECKING:
    from textdistill.method.learner import Learner


class LabelType(StrEnum):
    """Kind of the set's labels.

    ``hard`` labels are one-hot and fixed. ``soft`` labels are learned through a softmax. ``unrestricted`` labels are
    learned and used as they are.
    """

    hard = "hard"
    soft = "soft"
    unrestricted = "unrestricted"


class Init(StrEnum):
    """Start of the embeddings: standard normal noise (as in the reference), or embeddings of real training texts."""

    noise = "noise"
    real = "real"


class AttentionLabelWeight(StrEnum):
    """Weight of a row of attention labels in the attention loss: 1 (as in the reference), or learned."""

    equal = "equal"
    learned = "learned"


# The default length of a sample: the classes share TOKENS positions, within these limits (docs/decisions.md).
TOKENS = 2048
MIN_LENGTH, MAX_LENGTH = 16, 64
# The most class names in a line for a reader.
LISTED = 20


@dataclass
class DistilledDataConfig:
    """Shape, kinds and start of a distilled set: the configuration keys ``distilled_data.*``."""

    pretrained_data_path: str | None = None
    data_per_label: int = 1
    attention_label_type: AttentionLabelType = AttentionLabelType.cls
    attention_label_weight: AttentionLabelWeight = AttentionLabelWeight.learned
    attention_loss_lambda: float = 0.5
    # None selects MAX_LENGTH positions, or fewer for many classes; see ``resolved``.
    seq_length: int | None = None
    label_type: LabelType = LabelType.unrestricted
    lr_for_step: bool = True
    lr_for_parameter: bool = True
    lr_init: float = 0.1
    lr_linear_decay: bool = False
    fix_order: bool = True
    init: Init = Init.real

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        for key in ("data_per_label", "seq_length"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"distilled_data.{key} must be at least 1, got {value}")
        if not 0 < self.lr_init < math.inf:
            raise ValueError(f"distilled_data.lr_init must be above 0 and finite, got {self.lr_init}")
        supervised = self.attention_label_type is not AttentionLabelType.none
        if supervised and not 0 < self.attention_loss_lambda < math.inf:
            raise ValueError(
                "distilled_data.attention_loss_lambda must be above 0 and finite with attention labels"
                f" ({self.attention_label_type}), got {self.attention_loss_lambda};"
                " set distilled_data.attention_label_type=none to do without"
            )

    @property
    def positions(self) -> int:
        """L, the length of a sample; raises ValueError if it is not decided."""
        if self.seq_length is None:
            raise ValueError("distilled_data.seq_length of a distilled set must be a whole number, got null")
        return self.seq_length

    def resolved(self, num_labels: int, max_positions: int) -> DistilledDataConfig:
        """Returns the settings with the length of a sample decided.

        Args:
            num_labels: C. Up to 32 classes have samples of 64 positions, and from 128 classes on they have 16.
            max_positions: the greatest length that the learner takes.

        """
        if self.seq_length is not None:
            return self
        length = min(MAX_LENGTH, max(MIN_LENGTH, TOKENS // num_labels), max_positions)
        return replace(self, seq_length=length)


@dataclass
class LearnerTrainConfig:
    """Number and batch size of the inner steps: the configuration keys ``learner_train.*``."""

    train_step: int = 1
    batch_size_per_label: int = 1

    def check(self, data: DistilledDataConfig) -> None:
        """Raises ValueError for a value that is out of range or does not fit the size of the set, ``data``."""
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
        name: name of a model on the hub, or its folder, as the user gave it.
        revision: commit on the hub or checksum of the weights; None if neither is known.
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
        data: how the data were read (columns, protocol, max_length, fingerprint), as free JSON.
        provenance: how the set came about (seed, outer steps, versions, scores), as free JSON.

    """

    task: str
    class_names: tuple[str, ...]
    model: ModelMetadata
    data: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


class SetSpec(NamedTuple):
    """All of a distilled set but its tensors.

    Attributes:
        config: shape and kinds.
        inner_config: number and batch size of inner steps.
        metadata: task, model and provenance.

    """

    config: DistilledDataConfig
    inner_config: LearnerTrainConfig
    metadata: SetMetadata

    def check(self, raw: Mapping[str, Tensor]) -> None:
        """Raises ValueError for a setting out of range, or unless ``raw`` has the tensors that the settings imply."""
        self.config.check()
        self.inner_config.check(self.config)
        shapes = tensor_shapes(self.config, self.inner_config, len(self.metadata.class_names), self.metadata.model)
        check_shapes(raw, shapes)

    def to_json(self) -> dict[str, object]:
        """The content of ``config.json``, without the keys that belong to ``storage``."""
        return {
            "distilled_data": asdict(self.config),
            "learner_train": asdict(self.inner_config),
            "task": self.metadata.task,
            "class_names": list(self.metadata.class_names),
            "model": asdict(self.metadata.model),
            "data": self.metadata.data,
            "provenance": self.metadata.provenance,
        }

    @classmethod
    def from_json(cls, config: Mapping[str, object]) -> SetSpec:
        """Reads what ``to_json`` returns; raises ValueError for a value of another form."""
        file = parse(_SetFile, config)
        metadata = SetMetadata(file.task, file.class_names, file.model, file.data, file.provenance)
        return cls(file.distilled_data, file.learner_train, metadata)


@dataclass(frozen=True, kw_only=True)
class _SetFile(SetMetadata):
    """config.json, without the keys that belong to ``storage``."""

    distilled_data: DistilledDataConfig
    learner_train: LearnerTrainConfig

    def __post_init__(self) -> None:
        if len(set(self.class_names)) != max(1, len(self.class_names)):
            raise ValueError(f"class_names must be one or more distinct strings, got {brief(self.class_names)}")


def listed(names: Sequence[str]) -> str:
    """Returns names in one line: all of up to LISTED names, or the first of them and the number of the rest."""
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest


def model_metadata(learner: Learner) -> ModelMetadata:
    """The metadata of the model that ``learner`` fine-tunes."""
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
    """The shape of each raw tensor of a set, by name; see ``DistilledDataset.raw``."""
    count, length = config.data_per_label * num_labels, config.positions
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
    """Raises ValueError unless ``raw`` has exactly the tensors of ``expected``, each of its shape."""
    actual = {name: tuple(tensor.shape) for name, tensor in raw.items()}
    if actual != expected:
        raise ValueError(f"tensors of a distilled set must have shapes {expected}, got {brief(actual)}")
