"""The distilled set before training, and the settings that it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.sets import ALL, CLS, NONE, create
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.initial import initial_set
from textdistill.distilled.spec import (
    DistilledDataConfig,
    Init,
    LearnerTrainConfig,
    SetMetadata,
    model_metadata,
)
from textdistill.method.attention import AttentionLabelType
from textdistill.method.learner import Learner, ModelConfig


@pytest.mark.parametrize("label_type", [NONE, CLS, ALL])
def test_create_has_the_shapes_of_the_design(
    tiny_learner: Learner, toy_split: TokenizedSplit, label_type: AttentionLabelType
) -> None:
    distilled = create(tiny_learner, toy_split, steps=2, data_per_label=2, attention_label_type=label_type)
    shapes = {name: tuple(tensor.shape) for name, tensor in distilled.raw.items()}
    expected = {"inputs_embeds": (6, 7, 16), "labels": (6, 3), "lr": (2,)}
    expected["lr_scales"] = (2, len(tiny_learner.fresh_params(0)))
    if label_type is not NONE:
        expected["attention_labels"] = (6, 2, 4, label_type.rows(7), 7)
    assert shapes == expected
    assert len(distilled) == 6
    assert torch.equal(distilled.labels.argmax(-1), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert distilled.metadata.model == model_metadata(tiny_learner)
    assert {tensor.dtype for tensor in distilled.raw.values()} == {torch.float64}


@pytest.mark.parametrize("init", list(Init))
def test_create_depends_on_the_seed_only(tiny_learner: Learner, toy_split: TokenizedSplit, init: Init) -> None:
    torch.manual_seed(0)
    first = create(tiny_learner, toy_split, init=init, attention_label_type=CLS)
    torch.manual_seed(1)
    again, other = (create(tiny_learner, toy_split, init=init, attention_label_type=CLS, seed=seed) for seed in (0, 1))
    assert all(torch.equal(first.raw[name], again.raw[name]) for name in first.raw)
    for name in ("inputs_embeds", "attention_labels"):
        assert not torch.equal(first.raw[name], other.raw[name])


@pytest.mark.parametrize("length", [3, 30])
def test_real_init_is_a_text_of_the_class_tiled(
    tiny_learner32: Learner, toy_split: TokenizedSplit, length: int
) -> None:
    distilled = create(tiny_learner32, toy_split, seq_length=length, data_per_label=2, init=Init.real)

    def tiled(row: int) -> Tensor:
        ids = torch.from_numpy(toy_split.ids[toy_split.offsets[row] : toy_split.offsets[row + 1]]).long()
        return tiny_learner32.embed(torch.stack([ids[i % len(ids)] for i in range(length)]))

    found = []
    for sample, embeds in enumerate(distilled.raw["inputs_embeds"]):
        rows = [row for row in range(len(toy_split)) if toy_split.labels[row] == sample % 3]
        found.append({row for row in rows if torch.equal(tiled(row), embeds)})
        assert found[-1], f"sample {sample} is no text of its class"
    if length == 30:
        assert all(found[i].isdisjoint(found[i + 3]) for i in range(3)), "a text was drawn twice"


def test_noise_init_is_standard_normal(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    embeds = create(tiny_learner, toy_split, seq_length=60, init=Init.noise).raw["inputs_embeds"].detach()
    assert float(embeds.mean()) == pytest.approx(0, abs=0.05)
    assert float(embeds.std()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("init", list(Init))
def test_attention_labels_start_as_noise(tiny_learner: Learner, toy_split: TokenizedSplit, init: Init) -> None:
    distilled = create(tiny_learner, toy_split, seq_length=60, init=init, attention_label_type=ALL)
    logits = distilled.raw["attention_labels"].detach()
    centred = logits - logits.mean(-1, keepdim=True)
    assert float(centred.std()) == pytest.approx(1, rel=0.05)
    weights = distilled.attention_weights
    assert weights is not None
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=0, atol=1e-6)


@pytest.mark.parametrize("lr_init", [1e-6, 0.01, 1.0, 1000.0])
def test_lr_starts_at_lr_init(tiny_learner: Learner, toy_split: TokenizedSplit, lr_init: float) -> None:
    assert create(tiny_learner, toy_split, lr_init=lr_init).lr.item() == pytest.approx(lr_init, rel=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"data_per_label": 0}, "distilled_data.data_per_label must be at least 1, got 0"),
        ({"seq_length": 0}, "distilled_data.seq_length must be at least 1, got 0"),
        ({"seq_length": 65}, "distilled_data.seq_length must be at most the 64 positions of"),
        ({"lr_init": 0.0}, "distilled_data.lr_init must be above 0 and finite, got 0.0"),
        ({"lr_init": -0.1}, "distilled_data.lr_init must be above 0 and finite, got -0.1"),
        ({"lr_init": float("nan")}, "distilled_data.lr_init must be above 0 and finite, got nan"),
        (
            {"attention_label_type": CLS, "attention_loss_lambda": 0.0},
            "distilled_data.attention_loss_lambda must be above 0 and finite with attention labels (cls), got 0.0",
        ),
        ({"steps": 0}, "learner_train.train_step must be at least 1, got 0"),
        (
            {"data_per_label": 3, "batch_size": 2},
            "distilled_data.data_per_label=3 must be divisible by learner_train.batch_size_per_label=2",
        ),
        (
            {"data_per_label": 2, "batch_size": 3},
            "learner_train.batch_size_per_label must be from 1 to distilled_data.data_per_label=2, got 3",
        ),
        ({"batch_size": 0}, "learner_train.batch_size_per_label must be from 1 to"),
        ({"data_per_label": 11, "init": Init.real}, "class 0 has 10 rows, fewer than the 11"),
    ],
)
def test_settings_out_of_range_are_refused(
    tiny_learner: Learner, toy_split: TokenizedSplit, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        create(tiny_learner, toy_split, **kwargs)


def test_lambda_zero_and_odd_batches_are_fine_where_they_have_a_meaning(
    tiny_learner: Learner, toy_split: TokenizedSplit
) -> None:
    create(tiny_learner, toy_split, attention_label_type=NONE, attention_loss_lambda=0.0)
    create(tiny_learner, toy_split, data_per_label=3, batch_size=2, fix_order=False)


@pytest.mark.parametrize(
    ("classes", "positions", "length"),
    [
        (2, 512, 64),
        (32, 512, 64),
        (50, 512, 40),
        (77, 512, 26),
        (128, 512, 16),
        (1000, 512, 16),
        (2, 40, 40),
        (150, 8, 8),
    ],
)
def test_samples_of_many_classes_are_shorter(classes: int, positions: int, length: int) -> None:
    assert DistilledDataConfig().resolved(classes, positions).seq_length == length
    assert DistilledDataConfig(seq_length=100).resolved(classes, positions).seq_length == 100


def test_the_set_states_the_length_that_the_configuration_left_open(
    tiny_learner: Learner, toy_split: TokenizedSplit
) -> None:
    distilled = create(tiny_learner, toy_split, seq_length=None)
    assert distilled.config.seq_length == distilled.raw["inputs_embeds"].shape[1] == 64
    with pytest.raises(ValueError, match=r"distilled_data\.seq_length of a distilled set must be .*, got null"):
        DistilledDataset(distilled.raw, DistilledDataConfig(), distilled.inner_config, distilled.metadata)


@pytest.mark.parametrize(("classes", "factor"), [(3, 1), (20, 1), (21, 420), (150, 3000)])
def test_the_output_layer_of_many_classes_starts_with_a_higher_rate(
    tiny_bert: Path, toy_split: TokenizedSplit, classes: int, factor: float
) -> None:
    names = tuple(f"class {number}" for number in range(classes))
    learner = Learner(ModelConfig(model_name=str(tiny_bert)), names)
    config = DistilledDataConfig(seq_length=3, init=Init.noise)
    metadata = SetMetadata("toy", names, model_metadata(learner))
    distilled = initial_set(config, LearnerTrainConfig(), metadata, learner, toy_split, 0)
    (batch,) = distilled.batches(0)
    rates = dict(zip(learner.trainable, batch.lr.tolist(), strict=True))
    for name, rate in rates.items():
        expected = 0.1 * factor if name in ("classifier.weight", "classifier.bias") else 0.1
        assert rate == pytest.approx(expected, rel=1e-4), name
