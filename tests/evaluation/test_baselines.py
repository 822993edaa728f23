"""Baselines: coresets through the inner loop or ordinary fine-tuning, and ordinary fine-tuning on all rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD

from textdistill.core.precision import FLOAT32, Precision
from textdistill.core.processes import Processes
from textdistill.core.seeding import generator, stream_seed
from textdistill.data.batches import stratified_sample
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.spec import LearnerTrainConfig
from textdistill.evaluation import baselines, coresets
from textdistill.evaluation.baselines import (
    INNER_LRS,
    full_data_learners,
    inner_loop_learners,
    ordinary_learners,
)
from textdistill.evaluation.coresets import DRAWS, Coreset, choose_coresets, herding, k_centers
from textdistill.evaluation.scoring import Scores, score
from textdistill.method.learner import Learner, Params
from textdistill.method.losses import task_loss
from textdistill.runs.results import Score


@pytest.fixture
def splits(toy_split: TokenizedSplit) -> dict[str, TokenizedSplit]:
    """No test split: neither baseline may look for one."""
    return {"train": toy_split, "validation": toy_split}


def script(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[Params]:
    """Makes validation losses up; returns the parameters of learner 0 whenever it is asked for one."""
    seen: list[Params] = []
    script = iter(losses)

    def scripted(train: Any, *_: Any, **__: Any) -> Scores:
        seen.append({name: tensor.clone() for name, tensor in train(0).items()})
        return Scores({"loss": Score.of([next(script)])}, np.zeros((3, 3), dtype=np.int64))

    monkeypatch.setattr(baselines, "score", scripted)
    return seen


# --- Choosing rows

CORESETS = [Coreset.random, Coreset.k_centers, Coreset.herding]


@pytest.mark.parametrize("kind", CORESETS)
def test_coresets(kind: Coreset, tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    found = choose_coresets(kind, tiny_learner, toy_split, 3, 4, seed=1)
    assert len(found) == DRAWS == 5
    for rows in found:
        assert [toy_split.labels[row] for row in rows] == [0, 1, 2] * 3
        assert len(set(rows.tolist())) == 9
    assert all(
        (a == b).all() for a, b in zip(found, choose_coresets(kind, tiny_learner, toy_split, 3, 7, 1), strict=True)
    )


@pytest.mark.parametrize("kind", [Coreset.k_centers, Coreset.herding])
def test_draws_choose_among_other_candidates(
    kind: Coreset, tiny_learner: Learner, toy_split: TokenizedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = choose_coresets(kind, tiny_learner, toy_split, 2, 4, seed=1)
    assert all(set(rows) == set(same[0]) for rows in same)
    monkeypatch.setattr(coresets, "CANDIDATES", 4)
    other = choose_coresets(kind, tiny_learner, toy_split, 2, 4, seed=1)
    assert len({tuple(sorted(rows)) for rows in other}) > 1
    # Fewer candidates than samples would leave nothing to choose.
    monkeypatch.setattr(coresets, "CANDIDATES", 1)
    assert all(len(set(rows)) == 6 for rows in choose_coresets(kind, tiny_learner, toy_split, 2, 4, seed=1))


def test_k_centers_cover() -> None:
    """The point nearest to the mean (2.4), then the farthest of what is left, one at a time."""
    points = torch.tensor([[0.0], [1.0], [2.0], [3.0], [6.0]])
    assert k_centers(points, 5) == [2, 4, 0, 1, 3]


def test_herding_follows_the_mean() -> None:
    """Against the mean of every possible next choice."""
    points = torch.randn(20, 3, generator=generator(0, "test"))
    chosen = herding(points, 20)
    assert sorted(chosen) == list(range(20))
    for count in range(1, 20):
        left = set(range(20)) - set(chosen[: count - 1])
        away = {i: (points[[*chosen[: count - 1], i]].mean(0) - points.mean(0)).norm().item() for i in left}
        assert away[chosen[count - 1]] == pytest.approx(min(away.values()))


def test_too_few_rows(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    for kind in CORESETS:
        with pytest.raises(ValueError, match="has 10 rows, fewer than the 11 to be drawn"):
            choose_coresets(kind, tiny_learner, toy_split, 11, 4, seed=0)


# --- Real samples through the inner loop


@pytest.mark.parametrize("losses", [[2.0, 1.0, 0.5, 0.7, 3.0], [math.nan, 2.0, 1.0, math.nan, math.nan]])
def test_learning_rate_has_the_lowest_validation_loss(
    losses: list[float],
    tiny_learner: Learner,
    splits: dict[str, TokenizedSplit],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script(monkeypatch, losses)
    rows = choose_coresets(Coreset.random, tiny_learner, splits["train"], 1, 10, seed=0)
    _, lr = inner_loop_learners(tiny_learner, splits, rows, LearnerTrainConfig(), 10, seed=0, processes=Processes())
    assert len(INNER_LRS) == 5
    assert lr == INNER_LRS[2]


def test_inner_loop_is_plain_gradient_descent(
    tiny_learner: Learner, splits: dict[str, TokenizedSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torch.optim.SGD on token ids; four steps go round three batches."""
    script(monkeypatch, [3.0, 2.0, 1.0, 2.0, 3.0])
    chosen = choose_coresets(Coreset.random, tiny_learner, splits["train"], 3, 10, seed=3)
    train, lr = inner_loop_learners(
        tiny_learner, splits, chosen, LearnerTrainConfig(train_step=4), 10, seed=3, processes=Processes()
    )
    for index in (0, 1, DRAWS):
        draw = generator(3, "baseline", "random", index % DRAWS)
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


# --- Real samples, ordinary fine-tuning


def test_ordinary_learns_its_samples(
    tiny_learner32: Learner, toy_split: TokenizedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "LR", 3e-3)
    rows = choose_coresets(Coreset.random, tiny_learner32, toy_split, 2, 10, seed=0)
    train = ordinary_learners(tiny_learner32, toy_split, rows, seed=0)
    params, again, other = train(1), train(1), train(0)
    assert all(torch.equal(params[name], again[name]) for name in params)
    assert not torch.equal(params["classifier.weight"], other["classifier.weight"])
    batch = toy_split.batch(rows[1])
    labels = batch.pop("labels")
    assert task_loss(tiny_learner32.to_model(params)(**batch).logits, labels) < 0.1


def test_bf16_is_close_and_not_the_same(
    tiny_learner32: Learner, splits: dict[str, TokenizedSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "STEPS", 5)
    rows = choose_coresets(Coreset.random, tiny_learner32, splits["train"], 2, 10, seed=0)
    for train in (
        lambda precision: ordinary_learners(tiny_learner32, splits["train"], rows, 0, precision),
        lambda precision: full_data_learners(tiny_learner32, splits, 10, 10, 0, Processes(), precision),
    ):
        exact, rounded = (train(precision)(0) for precision in (FLOAT32, Precision.of(bf16=True)))
        assert all(tensor.dtype is torch.float32 for tensor in rounded.values())
        assert not torch.equal(exact["classifier.weight"], rounded["classifier.weight"])
        for name, tensor in rounded.items():
            torch.testing.assert_close(tensor, exact[name], rtol=0, atol=5e-3)


def test_ordinary_takes_its_steps(
    tiny_learner32: Learner, toy_split: TokenizedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DiLM's protocol: 200 steps, and batches of 64 rows or, of fewer rows, all of them."""
    sizes: list[int] = []
    monkeypatch.setattr(baselines, "fine_tuning_step", lambda *given: sizes.append(len(given[3]["labels"])))
    rows = choose_coresets(Coreset.random, tiny_learner32, toy_split, 3, 10, seed=0)
    ordinary_learners(tiny_learner32, toy_split, rows, seed=0)(0)
    assert sizes == [9] * 200
    monkeypatch.setattr(baselines, "BATCH_SIZE", 4)
    sizes.clear()
    ordinary_learners(tiny_learner32, toy_split, rows, seed=0)(0)
    assert sizes == [4] * 200
    assert (baselines.LR, baselines.WEIGHT_DECAY) == (1e-4, 0.01)


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
    params = full_data_learners(tiny_learner32, splits, 10, 10, seed=0, processes=Processes())(0)
    # A loss that does not fall ends the training.
    assert len(seen) == len(losses)
    assert all(torch.equal(params[name], seen[best][name]) for name in params)
    assert not torch.equal(seen[0]["classifier.weight"], seen[1]["classifier.weight"])


def test_full_data_trains_every_parameter(
    tiny_learner32: Learner, splits: dict[str, TokenizedSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "FULL_LR", 3e-3)
    before = {name: tensor.clone() for name, tensor in tiny_learner32.model.state_dict().items()}
    train = full_data_learners(tiny_learner32, splits, 5, 10, seed=0, processes=Processes())
    first, again, other = train(0), train(0), train(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    moved = {name for name in first if name in before and not torch.equal(first[name], before[name])}
    assert moved == set(before) - {"bert.embeddings.position_ids", "bert.embeddings.token_type_ids"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_learner32.model.state_dict().items())
    untrained = tiny_learner32.fresh_params(stream_seed(0, "head", "evaluation", 0))

    def loss(params: Params) -> float:
        return (
            score(lambda _: params, tiny_learner32, splits["validation"], (), 1, 10, Processes()).metrics["loss"].mean
        )

    assert loss(first) < loss(untrained)
