"""The inner loop against ``torch.optim.SGD`` on an ordinary copy of the model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from textdistill.method import inner_loop
from textdistill.method.attention import AttentionLabelType
from textdistill.method.inner_loop import InnerBatch, InnerLoss, fine_tune, inner_step, leaves, make_inner_loss
from textdistill.method.learner import Learner, Params

NONE, CLS, ALL = AttentionLabelType
LR = [0.3, 0.05, 0.7]


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batches(label_type: AttentionLabelType, parameters: int | None = None) -> list[InnerBatch]:
    """Three steps with other samples, labels and learning rate in each: 3 samples, 7 positions, 3 classes.

    With a number of ``parameters``, each of them has its own learning rate.
    """
    rows = label_type.rows(7)
    return [
        InnerBatch(
            randn(step, 3, 7, 16),
            randn(step + 10, 3, 3),
            randn(step + 20, 3, 2, 4, rows, 7).softmax(-1) if rows else None,
            torch.tensor(lr, dtype=torch.float64) if parameters is None else lr * randn(step + 30, parameters).exp(),
        )
        for step, lr in enumerate(LR)
    ]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("by_parameter", [False, True])
@pytest.mark.parametrize("label_type", [NONE, CLS, ALL])
def test_fine_tune_is_sgd(
    tiny_learner: Learner, label_type: AttentionLabelType, by_parameter: bool, exact: bool
) -> None:
    start = tiny_learner.fresh_params(0)
    given = batches(label_type, len(tiny_learner.trainable) if by_parameter else None)
    trained = fine_tune(make_inner_loss(tiny_learner, label_type, 0.7, exact), start, given)

    model = tiny_learner.to_model(start)
    model.set_attn_implementation("eager")
    weights = dict(model.named_parameters())
    optimizer = torch.optim.SGD([{"params": [weights[name]]} for name in tiny_learner.trainable])
    for batch in given:
        for group, lr in zip(optimizer.param_groups, batch.lr.expand(len(weights) - 1), strict=True):
            group["lr"] = float(lr)
        optimizer.zero_grad()
        outputs = model(inputs_embeds=batch.inputs_embeds, output_attentions=True)
        loss = -(batch.labels * outputs.logits.log_softmax(-1)).sum() / 3
        if batch.attention_labels is not None:
            rows = torch.stack(outputs.attentions, dim=1)[..., : label_type.rows(7), :]
            divergence = F.kl_div(rows.log(), batch.attention_labels, reduction="sum")
            loss = loss + 0.7 * divergence / rows[..., 0].numel()
        loss.backward()
        optimizer.step()

    expected = dict(model.named_parameters())
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, expected[name].detach(), rtol=0, atol=1e-12)
    assert not torch.allclose(trained["classifier.weight"], start["classifier.weight"], atol=1e-3)


def test_class_indices_are_one_hot_labels(tiny_learner: Learner) -> None:
    batch, inner_loss = batches(NONE)[0], make_inner_loss(tiny_learner, NONE, 0.0)
    params, classes = tiny_learner.fresh_params(0), torch.tensor([2, 0, 1])
    by_index = inner_step(inner_loss, params, dataclasses.replace(batch, labels=classes))
    one_hot = dataclasses.replace(batch, labels=F.one_hot(classes, 3).double())
    expected = inner_step(inner_loss, params, one_hot)
    for name in params:
        torch.testing.assert_close(by_index[name], expected[name], rtol=0, atol=1e-14)


def test_context_reaches_the_learner(tiny_learner: Learner) -> None:
    """Masked positions of real texts must not matter."""
    batch, inner_loss = batches(NONE)[0], make_inner_loss(tiny_learner, NONE, 0.0)
    params = tiny_learner.fresh_params(0)
    mask = (torch.arange(7) < 5).long().expand(3, 7)
    masked = dataclasses.replace(batch, context={"attention_mask": mask})
    cut = dataclasses.replace(batch, inputs_embeds=batch.inputs_embeds[:, :5])
    trained, expected, unmasked = (inner_step(inner_loss, params, b) for b in (masked, cut, batch))
    name = "classifier.weight"
    torch.testing.assert_close(trained[name], expected[name], rtol=0, atol=1e-12)
    assert not torch.allclose(trained[name], unmasked[name], atol=1e-6)


def test_a_step_writes_nothing_and_keeps_a_graph_only_where_asked(tiny_learner: Learner) -> None:
    inner_loss: InnerLoss = make_inner_loss(tiny_learner, NONE, 0.0, exact=True)
    params, batch = tiny_learner.fresh_params(0), batches(NONE)[0]
    before = {name: tensor.clone() for name, tensor in params.items()}
    trained = inner_step(inner_loss, params, batch)
    assert all(torch.equal(params[name], before[name]) for name in params)
    assert not any(tensor.requires_grad for tensor in trained.values())

    batch = dataclasses.replace(batch, lr=batch.lr.clone().requires_grad_())
    with_graph = inner_step(inner_loss, leaves(params), batch, create_graph=True)
    assert all(torch.equal(with_graph[name].detach(), trained[name]) for name in params)
    (slope,) = torch.autograd.grad(with_graph["classifier.bias"].sum(), batch.lr)
    step = (trained["classifier.bias"] - params["classifier.bias"]).sum()
    torch.testing.assert_close(slope, step / batch.lr.detach(), rtol=1e-9, atol=1e-12)


def test_parameters_without_a_gradient_pass_unchanged() -> None:
    params: Params = {"used": torch.tensor(1.0), "unused": torch.tensor(2.0)}
    batch = InnerBatch(torch.tensor(3.0), torch.tensor(0.0), None, torch.tensor(0.5))
    trained = fine_tune(lambda params, batch: params["used"] * batch.inputs_embeds, params, [batch, batch])
    assert trained == {"used": torch.tensor(-2.0), "unused": torch.tensor(2.0)}


def test_every_evaluation_of_a_step_has_the_same_dropout_masks(dropout_learner: Learner) -> None:
    inner_loss = make_inner_loss(dropout_learner, CLS, 1.0)
    params, batch = dropout_learner.fresh_params(0), batches(CLS)[0]
    seeded, again, other = (dataclasses.replace(batch, dropout_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(inner_loss(params, seeded), inner_loss(params, again))
    assert not torch.allclose(inner_loss(params, seeded), inner_loss(params, other))


@pytest.mark.parametrize(("bound", "sizes"), [(21, [3]), (20, [2, 1]), (14, [2, 1]), (13, [1, 1, 1]), (1, [1, 1, 1])])
def test_micro_batches_are_the_batch_in_parts_within_the_bound(
    bound: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner_loop, "MICRO_BATCH_TOKENS", bound)
    batch = dataclasses.replace(batches(CLS)[0], context={"attention_mask": torch.arange(21).view(3, 7)})
    shares, parts = zip(*batch.micro_batches(), strict=True)
    assert shares == tuple(size / 3 for size in sizes)
    assert [len(part.labels) for part in parts] == sizes
    for name, tensor in batch.learned.items():
        assert torch.equal(torch.cat([part.learned[name] for part in parts]), tensor)
    assert torch.equal(torch.cat([part.context["attention_mask"] for part in parts]), batch.context["attention_mask"])
    assert all(part.lr is batch.lr for part in parts)
    assert (parts[0] is batch) == (len(sizes) == 1)


def test_many_samples_have_micro_batches_of_almost_equal_size() -> None:
    batch = InnerBatch(torch.zeros(150, 32, 1), torch.zeros(150, 150), None, torch.tensor(0.1))
    assert [len(part.labels) for _, part in batch.micro_batches()] == [50, 50, 50]  # not 64, 64, 22


@pytest.mark.parametrize("bound", [14, 7])
@pytest.mark.parametrize("label_type", [NONE, CLS, ALL])
def test_a_step_in_micro_batches_is_the_step_on_the_whole(
    tiny_learner: Learner, label_type: AttentionLabelType, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tiny_learner.fresh_params(0)
    inner_loss = make_inner_loss(tiny_learner, label_type, 0.7)
    given = []
    for batch in batches(label_type, len(tiny_learner.trainable)):
        labels = batch.attention_labels
        weighted = None if labels is None else labels * randn(40, *labels.shape[:-1], 1).exp()
        given.append(dataclasses.replace(batch, attention_labels=weighted))
    whole = fine_tune(inner_loss, start, given)
    monkeypatch.setattr(inner_loop, "MICRO_BATCH_TOKENS", bound)
    trained = fine_tune(inner_loss, start, given)
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-10)


def test_real_texts_in_micro_batches_keep_their_masks(tiny_learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class indices and an attention mask, as the baseline on random samples passes them."""
    mask = (torch.arange(7) < torch.tensor([[7], [4], [5]])).long()
    batch = dataclasses.replace(batches(NONE)[0], labels=torch.tensor([2, 0, 1]), context={"attention_mask": mask})
    inner_loss, params = make_inner_loss(tiny_learner, NONE, 0.0), tiny_learner.fresh_params(0)
    whole = inner_step(inner_loss, params, batch)
    monkeypatch.setattr(inner_loop, "MICRO_BATCH_TOKENS", 7)
    trained = inner_step(inner_loss, params, batch)
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-10)


def test_micro_batches_have_dropout_masks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner_loop, "MICRO_BATCH_TOKENS", 7)
    batch = batches(CLS)[0]
    seeds = [[b.dropout_seed for _, b in dataclasses.replace(batch, dropout_seed=s).micro_batches()] for s in (1, 1, 2)]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 6
    assert all(part.dropout_seed is None for _, part in batch.micro_batches())
