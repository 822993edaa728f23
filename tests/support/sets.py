"""Small distilled sets: new ones of a learner, and random ones."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.words import CLASS_NAMES
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.initial import initial_set
from textdistill.distilled.spec import (
    DistilledDataConfig,
    LabelType,
    LearnerTrainConfig,
    ModelMetadata,
    SetMetadata,
    model_metadata,
)
from textdistill.method.attention import AttentionLabelType
from textdistill.method.learner import Learner

NONE, CLS, ALL = AttentionLabelType


# Without learned labels and attention labels, which a test adds where it needs them.
SMALL = {"seq_length": 7, "lr_init": 0.3, "label_type": LabelType.hard, "attention_label_type": NONE}


def create(
    learner: Learner, split: TokenizedSplit, steps: int = 1, batch_size: int = 1, seed: int = 0, **kwargs: Any
) -> DistilledDataset:
    config = DistilledDataConfig(**(SMALL | kwargs))
    metadata = SetMetadata("toy", CLASS_NAMES, model_metadata(learner))
    return initial_set(config, LearnerTrainConfig(steps, batch_size), metadata, learner, split, seed)


def a_set(
    seed: int,
    label_type: LabelType = LabelType.soft,
    attention: AttentionLabelType = CLS,
    per_label: int = 2,
    length: int = 3,
    steps: int = 2,
    for_step: bool = True,
    scale: float = 1.0,
) -> DistilledDataset:
    """Random raw tensors; 2 classes, width 4, 2 layers, 3 heads, 3 parameters."""
    generator = torch.Generator().manual_seed(seed)
    count, rows = 2 * per_label, attention.rows(length)
    shapes = {"inputs_embeds": (count, length, 4), "labels": (count, 2), "lr": (steps,) if for_step else ()}
    shapes["lr_scales"] = (*shapes["lr"], 3)
    if rows:
        shapes["attention_labels"] = (count, 2, 3, rows, length)
    raw = {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    config = DistilledDataConfig(
        data_per_label=per_label,
        attention_label_type=attention,
        seq_length=length,
        label_type=label_type,
        lr_for_step=for_step,
    )
    model = ModelMetadata(
        "some/model", None, embedding_size=4, num_layers=2, num_heads=3, parameters=("body.a", "body.b", "head")
    )
    metadata = SetMetadata("toy", ("no", "yes"), model, {"path": "x"}, {"seed": seed})
    return DistilledDataset(raw, config, LearnerTrainConfig(steps, 1), metadata)
