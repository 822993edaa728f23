"""A distilled set from outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.support.words import CLASS_NAMES
from textdistill.core.seeding import stream_seed
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.adapt import train_learner
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.initial import initial_set
from textdistill.distilled.inspection import find_anomalies, nearest_tokens, own_attention, strongest_labels
from textdistill.distilled.spec import (
    AttentionLabelWeight,
    DistilledDataConfig,
    Init,
    LabelType,
    LearnerTrainConfig,
    SetMetadata,
    model_metadata,
)
from textdistill.method.attention import AttentionLabelType
from textdistill.method.learner import Learner


@pytest.fixture
def real(tiny_learner: Learner, toy_split: TokenizedSplit) -> DistilledDataset:
    """3 samples of 4 real words, soft labels, attention labels for all rows of 2 layers and 4 heads."""
    config = DistilledDataConfig(
        seq_length=4,
        init=Init.real,
        label_type=LabelType.soft,
        attention_label_type=AttentionLabelType.all,
    )
    metadata = SetMetadata("toy", CLASS_NAMES, model_metadata(tiny_learner))
    return initial_set(config, LearnerTrainConfig(), metadata, tiny_learner, toy_split, seed=0)


def plain(learner: Learner, split: TokenizedSplit, **config: Any) -> DistilledDataset:
    config = {
        "seq_length": 4,
        "init": Init.real,
        "label_type": LabelType.hard,
        "attention_label_type": AttentionLabelType.none,
    } | config
    metadata = SetMetadata("toy", CLASS_NAMES, model_metadata(learner))
    return initial_set(DistilledDataConfig(**config), LearnerTrainConfig(), metadata, learner, split, seed=0)


def point(distilled: DistilledDataset, place: tuple[int, ...], key: int, logit: float) -> None:
    """Makes one attention row point at one key."""
    with torch.no_grad():
        row = distilled.raw["attention_labels"][place]
        row.zero_()
        row[key] = logit


# --- strongest


def test_strongest_rows_are_found_in_order(real: DistilledDataset) -> None:
    real.raw["attention_labels"].data.zero_()
    point(real, (1, 0, 3, 2), 1, 4.0)
    point(real, (1, 1, 2, 0), 3, 6.0)
    logits = [torch.tensor([logit, 0.0, 0.0, 0.0]) for logit in (6.0, 4.0)]
    first, second = ((pytest.approx(row.softmax(0)[0].item()), pytest.approx(row.exp().sum().item())) for row in logits)
    found = strongest_labels(real, 2)
    assert found is not None
    assert found[1] == [
        (1, 2, 0, 3, *first),
        (0, 3, 2, 1, *second),
    ]
    assert [len(sample) for sample in found] == [2, 2, 2]
    assert {peak.probability for sample in (found[0], found[2]) for peak in sample} == {0.25}


def test_a_heavy_row_is_stronger_than_a_sharp_one(real: DistilledDataset) -> None:
    real.raw["attention_labels"].data.zero_()
    point(real, (1, 0, 3, 2), 1, 4.0)
    real.raw["attention_labels"].data[1, 1, 2, 0] = 6.0
    found = strongest_labels(real, 1)
    assert found is not None
    assert (found[1][0].layer, found[1][0].probability) == (1, 0.25)
    real.config.attention_label_weight = AttentionLabelWeight.equal
    found = strongest_labels(real, 1)
    assert found is not None
    assert (found[1][0].layer, found[1][0].weight) == (0, 1.0)


def test_strongest_of_few_or_no_rows(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    cls = plain(tiny_learner, toy_split, attention_label_type=AttentionLabelType.cls)
    found = strongest_labels(cls, 100)
    assert found is not None
    assert [len(sample) for sample in found] == [2 * 4] * 3
    assert strongest_labels(plain(tiny_learner, toy_split), 3) is None


# --- nearest_tokens


def test_nearest_tokens_of_words_are_the_words(
    real: DistilledDataset, tiny_learner: Learner, toy_split: TokenizedSplit
) -> None:
    """Whatever their length, since the cosine decides."""
    real.raw["inputs_embeds"].data.mul_(torch.arange(1.0, 5.0)[:, None])
    found = nearest_tokens(real, tiny_learner, 2, 3)
    assert [len(sample) for sample in found] == [3, 3, 3]
    texts = {
        tuple(tiny_learner.tokenizer.convert_ids_to_tokens(toy_split.batch([row])["input_ids"][0].tolist())[:3])
        for row in range(len(toy_split))
    }
    for sample in found:
        assert tuple(near[0].token for near in sample) in texts
        for near in sample:
            assert near[0].cosine == pytest.approx(1.0)
            assert near[1].cosine < near[0].cosine
            assert near[1].token != near[0].token


# --- own_attention


def attention_of(model: PreTrainedModel, embeds: torch.Tensor) -> torch.Tensor:
    """As transformers has it: (N, Y, H, L, L)."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.stack(model(inputs_embeds=embeds, output_attentions=True).attentions, dim=1)


@pytest.mark.parametrize("rows", ["cls", "all"])
def test_own_attention_is_that_of_the_learner_before_and_after(
    rows: str, tiny_learner: Learner, toy_split: TokenizedSplit
) -> None:
    distilled = plain(tiny_learner, toy_split, attention_label_type=AttentionLabelType(rows), lr_init=1.0)
    fresh = tiny_learner.fresh_params(stream_seed(3, "head", "evaluation", 0))
    trained = train_learner(distilled, tiny_learner, 3, "evaluation", 0)
    before, after = (own_attention(distilled, tiny_learner, params, count=2) for params in (fresh, trained))
    assert before.shape == after.shape == (2, 2, 4, 1 if rows == "cls" else 4, 4)
    embeds, count = distilled.raw["inputs_embeds"].detach()[:2], before.size(3)
    pretrained = tiny_learner.to_model(tiny_learner.fresh_params(0))
    torch.testing.assert_close(before.exp(), attention_of(pretrained, embeds)[:, :, :, :count])
    tuned = distilled.finetune(tiny_learner, seed=3)
    torch.testing.assert_close(after.exp(), attention_of(tuned, embeds)[:, :, :, :count])
    assert (before - after).abs().max() > 1e-3


# --- unusual


def test_nothing_is_unusual(real: DistilledDataset, tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    assert find_anomalies(real) == []
    for label_type in LabelType:
        assert find_anomalies(plain(tiny_learner, toy_split, label_type=label_type)) == []


def test_embeddings_far_longer_than_others_are_unusual(real: DistilledDataset) -> None:
    embeds = real.raw["inputs_embeds"].data
    embeds /= embeds.norm(dim=-1, keepdim=True)
    embeds[2, 1] *= 2.9
    assert find_anomalies(real) == []
    embeds[0, 3] *= 3.1
    embeds[1, 2] *= 7
    assert find_anomalies(real) == [
        "2 of 12 embeddings are longer than 3 times the median; the longest, 7.0 times, is at sample 1, position 2"
    ]


def test_attention_on_one_position_is_unusual(real: DistilledDataset, tiny_learner: Learner) -> None:
    point(real, (0, 1, 2, 3), 0, 5.0)  # 0.98
    assert find_anomalies(real) == []
    point(real, (2, 0, 0, 1), 2, 6.0)  # 0.993
    point(real, (1, 1, 3, 0), 1, 50.0)
    assert find_anomalies(real) == [
        "2 of 96 attention rows put at least 0.99 on one position; textdistill show lists the strongest"
    ]


@pytest.mark.parametrize("row", [[0.0, 1.1, -0.1], [0.0, 1.0, 0.5]], ids=["negative", "sum"])
def test_hard_labels_that_are_no_probabilities_are_unusual(
    row: list[float], tiny_learner: Learner, toy_split: TokenizedSplit
) -> None:
    distilled = plain(tiny_learner, toy_split)
    distilled.raw["labels"][1] = torch.tensor(row)
    assert find_anomalies(distilled) == ["hard labels of samples [1] are no probabilities"]
    free = plain(tiny_learner, toy_split, label_type=LabelType.unrestricted)
    free.raw["labels"].data[1] = torch.tensor(row)
    assert find_anomalies(free) == []


def test_every_finding_is_told(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    distilled = plain(tiny_learner, toy_split, attention_label_type=AttentionLabelType.cls)
    distilled.raw["inputs_embeds"].data[0] *= 1e3
    distilled.raw["labels"][0] *= 2
    point(distilled, (0, 0, 0, 0), 0, 50.0)
    assert [line.split(" are ")[0].split(" put ")[0] for line in find_anomalies(distilled)] == [
        "4 of 12 embeddings",
        "1 of 24 attention rows",
        "hard labels of samples [0]",
    ]
