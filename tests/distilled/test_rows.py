"""A distilled set as rows of a datasets.Dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests.support.sets import ALL, CLS, NONE, a_set
from textdistill.distilled.spec import (
    LabelType,
)
from textdistill.method.attention import AttentionLabelType


@pytest.mark.parametrize("label_type", list(LabelType))
@pytest.mark.parametrize("attention", [NONE, CLS, ALL])
@pytest.mark.parametrize("fix_order", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_dataset_is_what_the_steps_read(
    label_type: LabelType, attention: AttentionLabelType, fix_order: bool, dtype: torch.dtype
) -> None:
    distilled = a_set(0, label_type, attention, per_label=2, steps=3).to(dtype=dtype)
    distilled.config.fix_order = fix_order
    dataset = distilled.as_dataset(order_seed=5)
    names = ["step", "lr", "inputs_embeds", "labels"] + ([] if attention is NONE else ["attention_labels"])
    assert dataset.column_names == names
    assert dataset["step"][:].tolist() == [0, 0, 1, 1, 2, 2]
    for step, batch in enumerate(distilled.batches(5)):
        rows = dataset[2 * step : 2 * step + 2]
        assert rows["lr"].tolist() == [batch.lr.float().tolist()] * 2
        for name, tensor in batch.learned.items():
            assert rows[name].dtype == torch.float32
            assert torch.equal(rows[name], tensor.float())


def test_as_dataset_survives_the_disk(tmp_path: Path) -> None:
    dataset = a_set(0, attention=ALL).as_dataset()
    dataset.to_parquet(tmp_path / "set.parquet")
    again = Dataset.from_parquet(str(tmp_path / "set.parquet"), cache_dir=str(tmp_path)).with_format("torch")
    assert again.features == dataset.features
    for name in dataset.column_names:
        assert torch.equal(again[:][name], dataset[:][name])
