"""Distilled sets and outer steps for tests of the outer loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.support.words import CLASS_NAMES
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.initial import initial_set
from textdistill.distilled.spec import (
    DistilledDataConfig,
    LabelType,
    LearnerTrainConfig,
    SetMetadata,
    model_metadata,
)
from textdistill.method.attention import AttentionLabelType
from textdistill.method.hypergradient import Estimator
from textdistill.method.learner import Learner
from textdistill.training.config import InnerPrecision
from textdistill.training.outer_step import OuterStep, StepResult

# Real batches have 10 rows, so the 30 rows of the toy split are an epoch of 3 steps.
BATCH, EPOCH = 10, 3
# A set with every learned part.
SOFT = {"label_type": LabelType.soft, "attention_label_type": AttentionLabelType.cls}
MIXED_PRECISION: list[dict[str, Any]] = [
    {"bf16": True},
    {"fp16": True},
    {"inner_precision": InnerPrecision.bf16, "estimator": Estimator.forward},
]


def create(learner: Learner, split: TokenizedSplit, train_step: int = 1, **config: Any) -> DistilledDataset:
    """A new distilled set of short samples."""
    data = DistilledDataConfig(**({"seq_length": 4} | config))
    inner_config = LearnerTrainConfig(train_step=train_step)
    return initial_set(
        data, inner_config, SetMetadata("toy", CLASS_NAMES, model_metadata(learner)), learner, split, seed=0
    )


def raw_copy(distilled: DistilledDataset) -> dict[str, Tensor]:
    """The tensors of a set as they are now."""
    return {name: tensor.detach().clone() for name, tensor in distilled.raw.items()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors are the same, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stepping(call: Callable[[OuterStep, list[dict[str, Tensor]], int], StepResult]) -> type[OuterStep]:
    """An outer step that calls a function in place of the update."""
    return type("Step", (OuterStep,), {"__call__": call})


def acting_before(actions: Mapping[int, Callable[[], None]]) -> type[OuterStep]:
    """An outer step that does something before its first, second, ... call, as the keys of ``actions`` say."""
    calls = iter(range(1, 1000))

    def call(self: OuterStep, batches: list[dict[str, Tensor]], step: int) -> StepResult:
        actions.get(next(calls), lambda: None)()
        return OuterStep.__call__(self, batches, step)

    return stepping(call)
