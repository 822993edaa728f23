"""Baselines: random real samples through the inner loop, and ordinary fine-tuning on all rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim import SGD

from textdistill import baselines
from textdistill.baselines import RANDOM_DRAWS, RANDOM_LRS, full_data, random_samples
from textdistill.batches import stratified_sample
from textdistill.distilled import DistilledDataConfig, LearnerTrainConfig
from textdistill.evaluation import Score, score
from textdistill.learner import Learner, Params
from textdistill.losses import task_loss
from textdistill.seeding import generator, stream_seed
from textdistill.tokens import TokenizedSplit


@pytest.fixture
def splits(toy_split: TokenizedSplit) -> dict[str, TokenizedSplit]:
    """No test split: neither baseline may look for one."""
    return {"train": toy_split, "validation": toy_split}


def script(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[Params]:
    """Makes validation losses up; returns the parameters of learner 0 whenever it is asked for one."""
    seen: list[Params] = []
    script = iter(losses)

    def scripted(train: Any, *_: Any, **__: Any) -> dict[str, Score]:
        seen.append({name: tensor.clone() for name, tensor in train(0).items()})
        return {"loss": Score.of([next(script)])}

    monkeypatch.setattr(baselines, "score", scripted)
    return seen


# --- Random real samples


@pytest.mark.parametrize("losses", [[2.0, 1.0, 0.5, 0.7, 3.0], [math.nan, 2.0, 1.0, math.nan, math.nan]])
def test_learning_rate_has_the_lowest_validation_loss(
    losses: list[float],
    tiny_learner: Learner,
    splits: dict[str, TokenizedSplit],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script(monkeypatch, losses)
    _, lr = random_samples(tiny_learner, splits, DistilledDataConfig(), LearnerTrainConfig(), 10, seed=0)
    assert len(RANDOM_LRS) == 5
    assert lr == RANDOM_LRS[2]


def test_random_samples_are_plain_gradient_descent(
    tiny_learner: Learner, splits: dict[str, TokenizedSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torch.optim.SGD on token ids; four steps go round three batches."""
    script(monkeypatch, [3.0, 2.0, 1.0, 2.0, 3.0])
    shape, inner = DistilledDataConfig(data_per_label=3), LearnerTrainConfig(train_step=4)
    train, lr = random_samples(tiny_learner, splits, shape, inner, 10, seed=3)
    for index in (0, 1, RANDOM_DRAWS):
        draw = generator(3, "baseline", "random", index % RANDOM_DRAWS)
        rows = stratified_sample(splits["train"].labels, 3, draw)
        model = tiny_learner.to_model(tiny_learner.fresh_params(stream_seed(3, "head", "evaluation", index)))
        model.get_input_embeddings().requires_grad_(False)
        optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr)
        for step in range(4):
            batch = splits["train"].batch(rows[3 * (step % 3) : 3 * (step % 3 + 1)])
            assert sorted(batch["labels"].tolist()) == [0, 1, 2]
            labels = batch.pop("labels")
            optimizer.zero_grad()
            task_loss(model(**batch).logits, labels).backward()
            optimizer.step()
        expected, params = dict(model.named_parameters()), train(index)
        for name, tensor in params.items():
            torch.testing.assert_close(tensor, expected[name].detach(), rtol=1e-6, atol=1e-7)


def test_random_samples_too_few(tiny_learner: Learner, splits: dict[str, TokenizedSplit]) -> None:
    with pytest.raises(ValueError, match="has 10 rows, fewer than the 11 to be drawn"):
        random_samples(tiny_learner, splits, DistilledDataConfig(data_per_label=11), LearnerTrainConfig(), 10, seed=0)


# --- All rows


@pytest.mark.parametrize(
    ("losses", "best"), [([3.0, 2.0, 1.0], 2), ([1.0, 2.0], 0), ([2.0, 1.0, 1.0], 1), ([2.0, 1.0, 3.0], 1)]
)
def test_epoch_with_the_lowest_validation_loss_counts(
    losses: list[float],
    best: int,
    tiny_learner32: Learner,
    splits: dict[str, TokenizedSplit],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = script(monkeypatch, losses)
    params = full_data(tiny_learner32, splits, 10, 10, seed=0)(0)
    # A loss that does not fall ends the training.
    assert len(seen) == len(losses)
    assert all(torch.equal(params[name], seen[best][name]) for name in params)
    assert not torch.equal(seen[0]["classifier.weight"], seen[1]["classifier.weight"])


def test_full_data_trains_every_parameter(
    tiny_learner32: Learner, splits: dict[str, TokenizedSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "FULL_LR", 3e-3)
    before = {name: tensor.clone() for name, tensor in tiny_learner32.model.state_dict().items()}
    train = full_data(tiny_learner32, splits, 5, 10, seed=0)
    first, again, other = train(0), train(0), train(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    moved = {name for name in first if name in before and not torch.equal(first[name], before[name])}
    assert moved == set(before) - {"bert.embeddings.position_ids", "bert.embeddings.token_type_ids"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_learner32.model.state_dict().items())
    untrained = tiny_learner32.fresh_params(stream_seed(0, "head", "evaluation", 0))

    def loss(params: Params) -> float:
        return score(lambda _: params, tiny_learner32, splits["validation"], (), 1, 10)["loss"].mean

    assert loss(first) < loss(untrained)
