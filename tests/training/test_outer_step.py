"""One outer step, its optimiser and its real batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Adam, AdamW

from tests.support.training import BATCH, MIXED_PRECISION, SOFT, create, raw_copy
from textdistill.core.processes import Processes
from textdistill.core.seeding import stream_seed
from textdistill.data.batches import train_batches
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.spec import Init
from textdistill.method.hypergradient import Estimator, hypergradient
from textdistill.method.learner import Learner
from textdistill.method.losses import task_loss
from textdistill.training.config import OptimizerType, TrainConfig
from textdistill.training.outer_step import OuterStep, StepResult, make_optimizer

# --- One outer step


def batch_of(split: TokenizedSplit) -> dict[str, Tensor]:
    return next(train_batches(split, BATCH, seed=0, epoch=0))


def step_once(
    distilled: DistilledDataset, learner: Learner, split: TokenizedSplit, **config: Any
) -> tuple[dict[str, Tensor], StepResult]:
    """The displacement of every part by one outer step, and what the step returns."""
    rates = {"lr_inputs_embeds": 1.0, "lr_lr_scales": 1.0}
    settings = TrainConfig(**({"optimizer_type": OptimizerType.sgd} | rates | config))
    before = raw_copy(distilled)
    result = OuterStep(distilled, learner, settings, 0, Processes())([batch_of(split)], 5)
    return {name: tensor - before[name] for name, tensor in raw_copy(distilled).items()}, result


def test_heads_are_averaged(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    distilled = create(tiny_learner, toy_split, train_step=2, **SOFT)
    inputs = batch_of(toy_split)
    labels = inputs.pop("labels")
    losses, hits, grads, seed = [], [], [], stream_seed(0, "outer", 5)
    for head in range(2):
        batches = distilled.batches(stream_seed(seed, "inner", head))
        params = tiny_learner.fresh_params(stream_seed(seed, "head", head))

        def outer_loss(params: dict[str, Tensor]) -> Tensor:
            logits = tiny_learner(params, inputs).logits
            hits.append((logits.argmax(-1) == labels).float().mean().item())
            return task_loss(logits, labels)

        inner_loss = distilled.inner_loss(tiny_learner)
        loss, parts = hypergradient(Estimator.difference, inner_loss, outer_loss, params, batches)
        losses.append(loss.item())
        grads.append(distilled.pull_back(batches, parts))
    moved, (loss_of_step, accuracy, norm) = step_once(
        distilled, tiny_learner, toy_split, heads_per_step=2, max_grad_norm=None
    )
    assert moved.keys() == grads[0].keys()
    for name, tensor in moved.items():
        torch.testing.assert_close(tensor, -(grads[0][name] + grads[1][name]) / 2, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(grads[0]["inputs_embeds"], grads[1]["inputs_embeds"], rtol=0.1)
    assert loss_of_step == pytest.approx(sum(losses) / 2, rel=1e-12)
    assert accuracy == pytest.approx(sum(hits) / 2)
    assert norm == pytest.approx(math.sqrt(sum(tensor.square().sum().item() for tensor in moved.values())), rel=1e-6)


def test_estimators_agree(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    moved = {
        estimator: step_once(
            create(tiny_learner, toy_split, train_step=2, **SOFT),
            tiny_learner,
            toy_split,
            estimator=estimator,
            max_grad_norm=None,
        )[0]
        for estimator in Estimator
    }
    for name, exact in moved[Estimator.reverse].items():
        torch.testing.assert_close(moved[Estimator.forward][name], exact, rtol=1e-8, atol=1e-12)
        assert (moved[Estimator.difference][name] - exact).norm() < 1e-2 * exact.norm()


def test_gradient_is_clipped(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    def norm(moved: dict[str, Tensor]) -> float:
        return math.sqrt(sum(tensor.square().sum().item() for tensor in moved.values()))

    free = norm(step_once(create(tiny_learner, toy_split), tiny_learner, toy_split, max_grad_norm=None)[0])
    limit = free / 10
    clipped, (*_, told) = step_once(create(tiny_learner, toy_split), tiny_learner, toy_split, max_grad_norm=limit)
    assert norm(clipped) == pytest.approx(limit, rel=1e-4)
    assert told == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize("settings", MIXED_PRECISION, ids=lambda settings: next(iter(settings)))
def test_mixed_precision_is_close_on_the_cpu(
    settings: dict[str, Any], tiny_learner32: Learner, toy_split: TokenizedSplit
) -> None:
    plain, (loss, *_) = step_once(create(tiny_learner32, toy_split), tiny_learner32, toy_split)
    mixed, (mixed_loss, *_) = step_once(create(tiny_learner32, toy_split), tiny_learner32, toy_split, **settings)
    assert mixed_loss != loss
    assert mixed_loss == pytest.approx(loss, rel=0.02)
    cosine = torch.cosine_similarity(plain["inputs_embeds"].flatten(), mixed["inputs_embeds"].flatten(), dim=0)
    assert cosine > 0.95


# --- The optimiser


@pytest.mark.parametrize(
    ("kind", "moved"), [("adamw", 0.2), ("adam", 0.2), ("sgd", 0.2), ("momentum", 0.1 * (1 + 1.9))]
)
def test_optimizer_types(kind: str, moved: float, tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    """Two updates with a gradient of ones everywhere."""
    distilled = create(tiny_learner, toy_split, **SOFT)
    before = raw_copy(distilled)
    config = TrainConfig(optimizer_type=OptimizerType(kind), lr_inputs_embeds=0.1, lr_lr_scales=0.1)
    optimizer = make_optimizer(distilled, config)
    for _ in range(2):
        for tensor in distilled.raw.values():
            tensor.grad = torch.ones_like(tensor)
        optimizer.step()
    assert len(distilled.raw) == 5
    for name, tensor in raw_copy(distilled).items():
        torch.testing.assert_close(tensor, before[name] - moved, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "adam"])
@pytest.mark.parametrize(("given", "beta2"), [({}, 0.99), ({"adam_beta2": 0.5}, 0.5)])
def test_adam_beta2(
    given: dict[str, float], beta2: float, kind: str, tiny_learner: Learner, toy_split: TokenizedSplit
) -> None:
    """A step after a gradient of ones and one of zeros."""
    distilled = create(tiny_learner, toy_split, **SOFT)
    config = TrainConfig(optimizer_type=OptimizerType(kind), lr_inputs_embeds=0.1, lr_lr_scales=0.1, **given)
    optimizer = make_optimizer(distilled, config)
    for gradient in (1.0, 0.0):
        before = raw_copy(distilled)
        for tensor in distilled.raw.values():
            tensor.grad = torch.full_like(tensor, gradient)
        optimizer.step()
    moved = 0.1 * (0.9 * 0.1 / (1 - 0.9**2)) / math.sqrt(beta2 * (1 - beta2) / (1 - beta2**2))
    for name, tensor in raw_copy(distilled).items():
        torch.testing.assert_close(tensor, before[name] - moved, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        pytest.param({}, {"attention_labels": 0.05, "labels": 0.01, "lr": 0.01}, id="our defaults"),
        pytest.param(
            {"lr_inputs_embeds": 0.5},
            {"inputs_embeds": 0.5, "attention_labels": 0.5, "labels": 0.5, "lr": 0.5},
            id="the others follow",
        ),
        pytest.param(
            {"lr_inputs_embeds": 0.5, "lr_labels": 0.2, "lr_lr": 0.0},
            {"inputs_embeds": 0.5, "attention_labels": 0.5, "labels": 0.2, "lr": 0.0},
            id="unless given",
        ),
        pytest.param(
            {"lr_attention_labels": 3.0, "lr_lr_scales": 0.4},
            {"attention_labels": 3.0, "labels": 0.01, "lr": 0.01, "lr_scales": 0.4},
            id="two",
        ),
    ],
)
@pytest.mark.parametrize(("init", "share"), [("noise", 0.1), ("real", 0.2)])
def test_learning_rates(
    init: str,
    share: float,
    given: dict[str, float],
    rates: dict[str, float],
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
) -> None:
    distilled = create(tiny_learner, toy_split, init=Init(init), **SOFT)
    distilled.raw["inputs_embeds"].data.mul_(7.0)
    names = {id(tensor): name for name, tensor in distilled.raw.items()}
    groups = make_optimizer(distilled, TrainConfig(**given)).param_groups
    found = {names[id(tensor)]: group["lr"] for group in groups for tensor in group["params"]}
    scale = distilled.raw["inputs_embeds"].std().item()
    assert found == pytest.approx({"inputs_embeds": share * scale, "lr_scales": 0.05} | rates)


@pytest.mark.parametrize(("kind", "cls"), [("adamw", AdamW), ("adam", Adam)])
def test_weight_decay_is_on_embeddings_and_attention_only(
    kind: str, cls: type, tiny_learner: Learner, toy_split: TokenizedSplit
) -> None:
    distilled = create(tiny_learner, toy_split, **SOFT)
    before = raw_copy(distilled)
    optimizer = make_optimizer(
        distilled, TrainConfig(optimizer_type=OptimizerType(kind), lr_inputs_embeds=0.1, weight_decay=0.5)
    )
    assert type(optimizer) is cls
    for tensor in distilled.raw.values():
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    decayed = {name for name, tensor in distilled.raw.items() if not torch.equal(tensor, before[name])}
    assert decayed == {"inputs_embeds", "attention_labels"}
    if cls is AdamW:
        torch.testing.assert_close(distilled.raw["inputs_embeds"].detach(), before["inputs_embeds"] * 0.95)
