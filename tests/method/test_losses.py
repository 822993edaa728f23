"""The two losses against loops with ``math.log``, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support import reference
from textdistill.method.losses import attention_divergence, attention_loss, task_loss

seeds = st.integers(0, 10_000)
sizes = st.integers(1, 4)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds, sizes, st.integers(2, 5))
def test_task_loss_is_the_reference_for_weights_of_any_sign_and_sum(seed: int, b: int, c: int) -> None:
    logits, labels = 3 * draw(seed, b, c), 2 * draw(seed + 1, b, c)
    expected = reference.task_loss(logits, labels)
    assert float(task_loss(logits, labels)) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_task_loss_of_class_indices_is_that_of_one_hot_weights() -> None:
    logits, labels = draw(0, 4, 3), torch.tensor([2, 0, 1, 1])
    expected = reference.task_loss(logits, F.one_hot(labels, 3).double())
    assert float(task_loss(logits, labels)) == pytest.approx(expected, rel=1e-12)


@given(seeds, st.floats(-50, 50))
def test_task_loss_ignores_a_shift_of_the_logits(seed: int, shift: float) -> None:
    logits, labels = draw(seed, 3, 4), draw(seed + 1, 3, 4)
    expected = task_loss(logits, labels)
    torch.testing.assert_close(task_loss(logits + shift, labels), expected, rtol=1e-12, atol=1e-12)


@given(seeds, sizes, sizes, sizes, sizes, st.integers(1, 6))
def test_attention_loss_is_the_reference(seed: int, b: int, y: int, h: int, q: int, length: int) -> None:
    rows = (2 * draw(seed, b, y, h, q, length)).softmax(-1)
    labels = (2 * draw(seed + 1, b, y, h, q, length)).softmax(-1)
    expected = reference.attention_loss(rows, labels)
    assert float(attention_loss(rows.log(), labels)) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_attention_divergence_is_the_loss_of_each_row() -> None:
    rows, labels = draw(0, 2, 3, 2, 2, 5).softmax(-1), draw(1, 2, 3, 2, 2, 5).softmax(-1)
    found = attention_divergence(rows.log(), labels)
    assert found.shape == (2, 3, 2, 2)
    own = (slice(1, 2), slice(2, 3), slice(0, 1), slice(1, 2))
    assert found[own].item() == pytest.approx(reference.attention_loss(rows[own], labels[own]), rel=1e-12)


@given(seeds)
def test_attention_loss_is_zero_for_the_learners_own_rows_and_positive_for_others(seed: int) -> None:
    rows, labels = draw(seed, 2, 1, 2, 1, 5).softmax(-1), draw(seed + 1, 2, 1, 2, 1, 5).softmax(-1)
    assert abs(float(attention_loss(rows.log(), rows))) < 1e-14
    assert float(attention_loss(rows.log(), labels)) > 0


def test_a_key_with_label_zero_contributes_nothing_whatever_its_row() -> None:
    labels = torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64).expand(1, 1, 1, 1, 3)
    for row in ([0.5, 0.3, 0.2], [0.5, 0.3, torch.finfo(torch.float64).tiny]):
        rows = torch.tensor(row, dtype=torch.float64).expand(1, 1, 1, 1, 3)
        expected = reference.attention_loss(rows, labels)
        assert float(attention_loss(rows.log(), labels)) == pytest.approx(expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", [-60.0, -1e4])
def test_faint_attention_leaves_loss_and_its_derivatives_finite(dtype: torch.dtype, score: float) -> None:
    """Of 1e-27, whose squared inverse float32 does not hold, and of exactly 0."""
    scores = torch.tensor([0.0, score, 1.0], dtype=dtype).expand(1, 1, 1, 1, 3).requires_grad_()
    labels = torch.tensor([0.2, 0.3, 0.5], dtype=dtype).expand(1, 1, 1, 1, 3)
    loss = attention_loss(scores.log_softmax(-1), labels)
    (gradient,) = torch.autograd.grad(loss, scores, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), scores)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert second.isfinite().all()
    if score == -60:
        torch.testing.assert_close(gradient.detach(), scores.detach().softmax(-1) - labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_label_that_is_zero_leaves_the_gradient_of_the_raw_labels_finite(dtype: torch.dtype) -> None:
    raw = torch.tensor([0.0, -1e4, 1.0], dtype=dtype, requires_grad=True)
    # A key out of reach, as the kernel records it.
    log_rows = torch.tensor([math.log(0.2), torch.finfo(dtype).min, math.log(0.8)], dtype=dtype)
    loss = attention_loss(log_rows.expand(1, 1, 1, 1, 3), raw.softmax(-1).expand(1, 1, 1, 1, 3))
    (gradient,) = torch.autograd.grad(loss, raw)
    # Without the key that has no label, the loss has the same gradient.
    kept = raw.detach()[[0, 2]].requires_grad_()
    rest = attention_loss(log_rows[[0, 2]].expand(1, 1, 1, 1, 2), kept.softmax(-1).expand(1, 1, 1, 1, 2))
    (expected,) = torch.autograd.grad(rest, kept)
    assert gradient[1] == 0
    torch.testing.assert_close(gradient[[0, 2]], expected)
