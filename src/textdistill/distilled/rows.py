"""The samples of a distilled set as a ``datasets.Dataset``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from datasets import Dataset

    from textdistill.method.inner_loop import InnerBatch


def to_rows(batches: Sequence[InnerBatch]) -> Dataset:
    """One row for each sample of each batch; ``DistilledDataset.as_dataset`` documents the columns."""
    # datasets takes a second to import, and most uses of a set do not need it.
    from datasets import Array2D, Array4D, Dataset, Features, List, Value

    learned = {name: torch.cat([batch.learned[name] for batch in batches]) for name in batches[0].learned}
    size = len(batches[0].labels)
    columns = {"lr": torch.stack([batch.lr for batch in batches]).repeat_interleave(size, dim=0), **learned}
    per_parameter = columns["lr"].dim() > 1
    features = {
        "step": Value("int64"),
        "lr": List(Value("float32"), length=columns["lr"].shape[1]) if per_parameter else Value("float32"),
        "inputs_embeds": Array2D(tuple(learned["inputs_embeds"].shape[1:]), "float32"),
        "labels": List(Value("float32"), length=learned["labels"].shape[1]),
    }
    if "attention_labels" in learned:
        features["attention_labels"] = Array4D(tuple(learned["attention_labels"].shape[1:]), "float32")
    arrays = {name: column.detach().float().cpu().numpy() for name, column in columns.items()}
    steps = [step for step in range(len(batches)) for _ in range(size)]
    return Dataset.from_dict({"step": steps, **arrays}, Features(features)).with_format("torch")
