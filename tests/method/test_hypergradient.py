"""The estimators against a closed form, central differences, and each other (float64, tiny BERT).

A dropped second-order term shows from two steps on only; a stuck learning-rate index shows only where the
rates differ; hence one to three steps with unequal rates throughout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tests.support.reference import directional_derivative
from tests.support.words import CLASS_NAMES
from textdistill.core.precision import FLOAT32, Precision
from textdistill.method import inner_loop
from textdistill.method.attention import AttentionLabelType
from textdistill.method.hypergradient import Estimator, Hypergradient, Trajectory, hypergradient
from textdistill.method.inner_loop import InnerBatch, InnerLoss, fine_tune, make_inner_loss
from textdistill.method.learner import Learner, ModelConfig, Params
from textdistill.method.losses import task_loss
from textdistill.method.pretrained import MINILM, MINILM_PACKAGE

NONE, CLS, ALL = AttentionLabelType
LR = [0.3, 0.05, 0.6, 0.2, 0.4, 0.1, 0.5]
LAMBDA = 0.7
TF32 = Precision(tf32=True)

OuterLoss = Callable[[Params], Tensor]


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_batches(label_type: AttentionLabelType, steps: int, parameters: int | None = None) -> list[InnerBatch]:
    """Other samples, labels and learning rate in every step: 3 samples, 7 positions, 3 classes.

    With a number of ``parameters``, each of them has its own learning rate.
    """
    rows = label_type.rows(7)
    return [
        InnerBatch(
            randn(step, 3, 7, 16),
            randn(step + 10, 3, 3),
            randn(step + 20, 3, 2, 4, rows, 7).softmax(-1) if rows else None,
            LR[step] * (torch.ones((), dtype=torch.float64) if parameters is None else randn(step, parameters).exp()),
            dropout_seed=step,
        )
        for step in range(steps)
    ]


def make_outer_loss(learner: Learner) -> OuterLoss:
    """On three real texts, padded: parameters are reached through token ids here."""
    ids = torch.randint(5, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(9) < torch.tensor([[9], [6], [3]])).long()}
    return lambda params: task_loss(learner(params, inputs).logits, torch.tensor([0, 1, 2]))


def estimate(
    estimator: Estimator,
    learner: Learner,
    label_type: AttentionLabelType,
    batches: Sequence[InnerBatch],
    eps: float = 1e-9,
    exact: bool = False,
) -> Hypergradient:
    inner_loss = make_inner_loss(learner, label_type, LAMBDA, exact or estimator.exact)
    return hypergradient(estimator, inner_loss, make_outer_loss(learner), learner.fresh_params(0), batches, eps=eps)


def assert_same(a: Hypergradient, b: Hypergradient, tolerance: float) -> None:
    """Every part of every step, relative to its norm."""
    torch.testing.assert_close(a.outer_loss, b.outer_loss, rtol=1e-12, atol=0)
    assert [part.keys() for part in a.grads] == [part.keys() for part in b.grads]
    for part, expected in zip(a.grads, b.grads, strict=True):
        for name, tensor in part.items():
            assert tensor.shape == expected[name].shape
            assert (tensor - expected[name]).norm() <= tolerance * expected[name].norm(), name


# --- closed form


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("estimator", list(Estimator))
def test_quadratic_inner_problem_has_its_closed_form(estimator: Estimator, steps: int) -> None:
    """inner_loss = (w - x)' A (w - x) / 2 + y' w, outer_loss = |w[T] - c|^2 / 2."""
    width, factor = 4, randn(0, 4, 4)
    curvature, goal, start = factor @ factor.T / 4, randn(1, width), randn(2, width)

    def inner_loss(params: Params, batch: InnerBatch) -> Tensor:
        error = params["w"] - batch.inputs_embeds
        return error @ curvature @ error / 2 + batch.labels @ params["w"]

    def outer_loss(params: Params) -> Tensor:
        return (params["w"] - goal).square().sum() / 2

    batches = [
        InnerBatch(randn(t + 3, width), randn(t + 6, width), None, torch.tensor(LR[t], dtype=torch.float64))
        for t in range(steps)
    ]
    # Gradients are linear in w here, so a long step loses nothing.
    result = hypergradient(estimator, inner_loss, outer_loss, {"w": start}, batches, eps=1.0)

    w, gradients = start, []
    for batch in batches:
        gradients.append(curvature @ (w - batch.inputs_embeds) + batch.labels)
        w = w - batch.lr * gradients[-1]
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(result.outer_loss, (w - goal).square().sum() / 2, **close)
    v = w - goal
    for batch, gradient, part in reversed(list(zip(batches, gradients, result.grads, strict=True))):
        torch.testing.assert_close(part["lr"], -v @ gradient, **close)
        torch.testing.assert_close(part["inputs_embeds"], batch.lr * curvature @ v, **close)
        torch.testing.assert_close(part["labels"], -batch.lr * v, **close)
        v = (torch.eye(width, dtype=torch.float64) - batch.lr * curvature) @ v


# --- central differences


def outer_loss_after(inner_loss: InnerLoss, learner: Learner, batches: Sequence[InnerBatch]) -> float:
    return float(make_outer_loss(learner)(fine_tune(inner_loss, learner.fresh_params(0), batches)))


@pytest.mark.parametrize("label_type", [NONE, CLS, ALL])
@pytest.mark.parametrize(("steps", "by_parameter"), [(1, False), (1, True), (2, False), (2, True), (3, False)])
def test_exact_estimators_are_central_differences(
    tiny_learner: Learner, label_type: AttentionLabelType, steps: int, by_parameter: bool
) -> None:
    batches = some_batches(label_type, steps, len(tiny_learner.trainable) if by_parameter else None)
    inner_loss = make_inner_loss(tiny_learner, label_type, LAMBDA, exact=True)
    results = [
        estimate(estimator, tiny_learner, label_type, batches) for estimator in (Estimator.reverse, Estimator.forward)
    ]
    assert_same(*results, tolerance=1e-10)
    for t, batch in enumerate(batches):
        for name, tensor in {**batch.learned, "lr": batch.lr}.items():
            direction = randn(100 * t + len(name), *tensor.shape)
            direction /= direction.norm()

            def along(step: float) -> float:
                moved = dataclasses.replace(batch, **{name: tensor + step * direction})  # noqa: B023
                moved_batches = [*batches[:t], moved, *batches[t + 1 :]]  # noqa: B023
                return outer_loss_after(inner_loss, tiny_learner, moved_batches)

            expected = directional_derivative(along)
            for result in results:
                slope = float((result.grads[t][name] * direction).sum())
                assert slope == pytest.approx(expected, rel=1e-6, abs=1e-9), (t, name)


# --- finite differences against the exact estimator


@pytest.mark.parametrize("label_type", [NONE, CLS, ALL])
@pytest.mark.parametrize(("steps", "by_parameter"), [(1, False), (1, True), (2, False), (3, True)])
def test_difference_is_reverse(
    tiny_learner: Learner, label_type: AttentionLabelType, steps: int, by_parameter: bool
) -> None:
    batches = some_batches(label_type, steps, len(tiny_learner.trainable) if by_parameter else None)
    reverse = estimate(Estimator.reverse, tiny_learner, label_type, batches)
    assert_same(estimate(Estimator.difference, tiny_learner, label_type, batches), reverse, tolerance=1e-5)


def test_difference_is_first_order_in_eps(tiny_learner: Learner) -> None:
    """A tenth of the step, a tenth of the error."""
    batches = some_batches(CLS, 2)
    reverse = estimate(Estimator.reverse, tiny_learner, CLS, batches).grads[0]["inputs_embeds"]
    errors = [
        (estimate(Estimator.difference, tiny_learner, CLS, batches, eps).grads[0]["inputs_embeds"] - reverse).norm()
        for eps in (1e-3, 1e-4)
    ]
    assert float(errors[0] / errors[1]) == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("estimator", [Estimator.difference, Estimator.forward])
def test_dropout_masks_are_replayed(dropout_learner: Learner, estimator: Estimator) -> None:
    batches = some_batches(CLS, 2)
    # Fused and plain attention drop other weights for the same seed, so both sides are exact here.
    result, reverse = (estimate(e, dropout_learner, CLS, batches, exact=True) for e in (estimator, Estimator.reverse))
    assert_same(result, reverse, tolerance=1e-5)
    without = [dataclasses.replace(batch, dropout_seed=None) for batch in batches]
    plain = estimate(estimator, dropout_learner, CLS, without, exact=True)
    assert not torch.allclose(plain.outer_loss, result.outer_loss, atol=1e-6)


# --- micro-batches


@pytest.mark.parametrize("bound", [14, 7])
@pytest.mark.parametrize("label_type", [NONE, CLS, ALL])
@pytest.mark.parametrize("estimator", list(Estimator))
def test_micro_batches_give_the_hypergradient_of_the_whole(
    tiny_learner: Learner,
    estimator: Estimator,
    label_type: AttentionLabelType,
    bound: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two samples and one, or three times one. The difference is long, because a short one amplifies rounding."""
    batches = some_batches(label_type, 2, len(tiny_learner.trainable))
    whole = estimate(estimator, tiny_learner, label_type, batches, eps=1e-3)
    monkeypatch.setattr(inner_loop, "MICRO_BATCH_TOKENS", bound)
    assert_same(estimate(estimator, tiny_learner, label_type, batches, eps=1e-3), whole, tolerance=1e-10)


@pytest.mark.parametrize("estimator", [Estimator.difference, Estimator.forward])
def test_micro_batches_replay_their_dropout_masks(
    dropout_learner: Learner, estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner_loop, "MICRO_BATCH_TOKENS", 14)
    batches = some_batches(CLS, 2)
    result, reverse = (estimate(e, dropout_learner, CLS, batches, exact=True) for e in (estimator, Estimator.reverse))
    assert_same(result, reverse, tolerance=1e-5)


@pytest.mark.parametrize("estimator", list(Estimator))
def test_no_forward_pass_exceeds_the_bound(
    tiny_learner: Learner, estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = set()
    inner_loss = make_inner_loss(tiny_learner, CLS, LAMBDA, estimator.exact)

    def watched(params: Params, batch: InnerBatch) -> Tensor:
        sizes.add(len(batch.labels))
        return inner_loss(params, batch)

    monkeypatch.setattr(inner_loop, "MICRO_BATCH_TOKENS", 14)
    params = tiny_learner.fresh_params(0)
    hypergradient(estimator, watched, make_outer_loss(tiny_learner), params, some_batches(CLS, 2))
    assert sizes == {1, 2}


@pytest.mark.parametrize("estimator", list(Estimator))
def test_redrawn_word_embeddings_do_not_matter(tiny_bert: str, estimator: Estimator) -> None:
    """Under ``use_pretrained_model=False`` params hold them: the outer loss depends on them, no step does."""
    config = ModelConfig(model_name=str(tiny_bert), use_pretrained_model=False)
    learner = Learner(config, CLASS_NAMES).to(dtype=torch.float64)
    batches = some_batches(CLS, 2, len(learner.trainable))
    words = "bert.embeddings.word_embeddings.weight"
    table = learner.fresh_params(0)[words]
    inner_loss = make_inner_loss(learner, CLS, LAMBDA, exact=True)
    result = hypergradient(estimator, inner_loss, make_outer_loss(learner), learner.fresh_params(0), batches, eps=1e-7)
    # The same learner with its word embeddings out of reach.
    outer_loss = make_outer_loss(learner)
    params = {name: tensor for name, tensor in learner.fresh_params(0).items() if name != words}
    expected = hypergradient(
        Estimator.reverse, inner_loss, lambda params: outer_loss({**params, words: table}), params, batches
    )
    assert_same(result, expected, tolerance=1e-5)


@pytest.mark.parametrize("estimator", list(Estimator))
def test_nothing_is_written_and_no_graph_survives(tiny_learner: Learner, estimator: Estimator) -> None:
    batches = [
        dataclasses.replace(batch, inputs_embeds=batch.inputs_embeds.requires_grad_()) for batch in some_batches(CLS, 2)
    ]
    params = tiny_learner.fresh_params(0)
    result = hypergradient(
        estimator,
        make_inner_loss(tiny_learner, CLS, LAMBDA, exact=True),
        make_outer_loss(tiny_learner),
        params,
        batches,
    )
    assert all(torch.equal(params[name], tensor) for name, tensor in tiny_learner.fresh_params(0).items())
    assert all(batch.inputs_embeds.grad is None for batch in batches)
    assert not any(tensor.requires_grad for part in result.grads for tensor in part.values())
    assert not result.outer_loss.requires_grad


@pytest.mark.parametrize("estimator", [Estimator.difference, Estimator.forward])
@pytest.mark.parametrize(("steps", "again"), [(1, 0), (2, 0), (3, 2), (4, 2), (7, 6)])
def test_trajectories_give_the_same_bits(
    dropout_learner: Learner, estimator: Estimator, steps: int, again: int
) -> None:
    """``again`` gradients are those that ``checkpoint`` takes twice: all but those of its last segment."""
    inner_loss = make_inner_loss(dropout_learner, CLS, LAMBDA, estimator.exact)
    calls = 0

    def counted(params: Params, batch: InnerBatch) -> Tensor:
        nonlocal calls
        calls += 1
        return inner_loss(params, batch)

    found, counts = {}, {}
    for trajectory in Trajectory:
        calls, outer_loss = 0, make_outer_loss(dropout_learner)
        params, batches = dropout_learner.fresh_params(0), some_batches(CLS, steps)
        found[trajectory] = hypergradient(estimator, counted, outer_loss, params, batches, trajectory=trajectory)
        counts[trajectory] = calls
    kept = found.pop(Trajectory.keep)
    for other in found.values():
        assert torch.equal(other.outer_loss, kept.outer_loss)
        for part, expected in zip(other.grads, kept.grads, strict=True):
            assert part.keys() == expected.keys()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in part.items())
    assert counts == {"keep": 2 * steps, "offload": 2 * steps, "checkpoint": 2 * steps + again}


@pytest.mark.parametrize("estimator", list(Estimator))
def test_products_are_in_tf32_where_asked_for(estimator: Estimator, tiny_learner: Learner) -> None:
    """Forward and back: of the inner steps, of the outer loss, of neither; and as before afterwards."""

    class Spy(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(tensor: Tensor) -> Tensor:
            seen.append(torch.get_float32_matmul_precision())
            return tensor.clone()

        @staticmethod
        def setup_context(*_: object) -> None: ...

        @staticmethod
        def backward(_: object, gradient: Tensor) -> Tensor:
            seen.append(torch.get_float32_matmul_precision())
            return gradient

        @staticmethod
        def jvp(_: object, tangent: Tensor) -> Tensor:
            return tangent.clone()

    def spied(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *given: Spy.apply(loss(*given))

    inner_loss = make_inner_loss(tiny_learner, CLS, LAMBDA, estimator.exact)
    before = torch.get_float32_matmul_precision()
    outer_loss = make_outer_loss(tiny_learner)
    for spies, inner, outer in (
        ((spied(inner_loss), outer_loss), TF32, FLOAT32),
        ((inner_loss, spied(outer_loss)), FLOAT32, TF32),
        ((inner_loss, spied(outer_loss)), FLOAT32, FLOAT32),
    ):
        seen: list[str] = []
        hypergradient(
            estimator,
            *spies,
            tiny_learner.fresh_params(0),
            some_batches(CLS, 2),
            inner_precision=inner,
            outer_precision=outer,
        )
        expected = {"high" if inner.tf32 or outer.tf32 else "highest"}
        if estimator is Estimator.reverse and outer.tf32:
            expected = {"high", "highest"}
        assert set(seen) == expected
        assert torch.get_float32_matmul_precision() == before


def test_a_vanishing_outer_gradient_gives_zeros(tiny_learner: Learner) -> None:
    result = hypergradient(
        Estimator.difference,
        make_inner_loss(tiny_learner, CLS, LAMBDA),
        lambda params: 0 * params["classifier.weight"].sum(),
        tiny_learner.fresh_params(0),
        some_batches(CLS, 2),
    )
    assert all(not tensor.any() for part in result.grads for tensor in part.values())


def test_difference_is_reverse_in_float32_on_minilm() -> None:
    pytest.importorskip(MINILM_PACKAGE, reason="the package with MiniLM's weights is not installed")
    learner = Learner(ModelConfig(model_name=MINILM), ("world", "sports", "business", "science"))
    texts = [
        "leaders of the two countries meet for talks on the border after a week of protests",
        "the home side won the final with a late goal and the coach praised his young team",
        "shares fell as the bank warned that profits will miss forecasts for the second quarter",
        "a new telescope shows water in the air of a planet that circles a distant star",
    ]
    real = learner.tokenizer([f"{text} , officials say" for text in texts], return_tensors="pt", padding=True)
    ids = learner.tokenizer(texts, return_tensors="pt", padding="max_length", max_length=24)["input_ids"]
    generator = torch.Generator().manual_seed(0)
    batch = InnerBatch(
        learner.embed(ids),
        torch.eye(4),
        torch.randn(4, 6, 12, 1, 24, generator=generator).softmax(-1),
        torch.tensor(0.05),
    )
    difference, reverse = (
        hypergradient(
            estimator,
            make_inner_loss(learner, CLS, 1.0, estimator.exact),
            lambda params: task_loss(learner(params, real).logits, torch.arange(4)),
            learner.fresh_params(0),
            [batch],
        ).grads[0]
        for estimator in (Estimator.difference, Estimator.reverse)
    )
    assert difference.keys() == {"inputs_embeds", "labels", "attention_labels", "lr"}
    for name in ("inputs_embeds", "labels", "attention_labels"):
        agreement = torch.cosine_similarity(difference[name].flatten(), reverse[name].flatten(), dim=0)
        assert agreement > 0.9999, name
        assert float(difference[name].norm()) == pytest.approx(float(reverse[name].norm()), rel=0.01)
    torch.testing.assert_close(difference["lr"], reverse["lr"], rtol=1e-3, atol=0)
