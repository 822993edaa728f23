"""The attention kernel against loops, its two ways against each other, and what recording keeps."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

from tests.support import reference
from tests.support.models import tiny_bert_config
from textdistill.method import attention
from textdistill.method.attention import AttentionLabelType, Recording, attention_kernel, recording

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
B, H, L, WIDTH = 2, 3, 7, 4


class Bidirectional(nn.Module):
    is_causal = False


class Heads(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor


def heads(dtype: torch.dtype = torch.float64) -> Heads:
    generator = torch.Generator().manual_seed(0)
    return Heads(*torch.randn(3, B, H, L, WIDTH, generator=generator, dtype=torch.float64).to(dtype).unbind())


def mask(kind: str) -> Tensor | None:
    """No mask; one that hides padding; one that lets a position see its neighbours only."""
    if kind == "none":
        return None
    if kind == "padding":
        return (torch.arange(L) < torch.tensor([[L], [4]]))[:, None, None].expand(B, 1, L, L)
    return ((torch.arange(L)[:, None] - torch.arange(L)).abs() <= 2).expand(B, 1, L, L)


def run(
    inputs: Heads, hidden: Tensor | None, label_type: AttentionLabelType, exact: bool, **kwargs: float
) -> tuple[Tensor, Recording]:
    with recording(label_type, exact) as record:
        output, weights = attention_kernel(Bidirectional(), *inputs, hidden, **kwargs)
    assert weights is None
    return output, record


@pytest.mark.parametrize("kind", ["none", "padding", "window"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("label_type", list(AttentionLabelType))
def test_kernel_is_the_reference(kind: str, exact: bool, label_type: AttentionLabelType) -> None:
    expected_output, expected_rows = reference.attention(*heads(), mask(kind), WIDTH**-0.5)
    for dtype, tolerance in TOLERANCE.items():
        output, record = run(heads(dtype), mask(kind), label_type, exact)
        torch.testing.assert_close(output.double(), expected_output, rtol=0, atol=tolerance)
        if label_type is AttentionLabelType.none:
            assert not record.log_rows
        else:
            (log_rows,) = record.log_rows
            expected = expected_rows[:, :, : label_type.rows(L)]
            torch.testing.assert_close(log_rows.exp().double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("label_type", list(AttentionLabelType))
def test_causal_attention_without_a_mask_is_that_with_one(exact: bool, label_type: AttentionLabelType) -> None:
    """The layer says that it is causal, or the call does, and the call has the last word."""
    causal = torch.ones(L, L, dtype=torch.bool).tril().expand(B, 1, L, L)
    expected_output, expected_rows = reference.attention(*heads(), causal, WIDTH**-0.5)
    bidirectional = reference.attention(*heads(), None, WIDTH**-0.5)[0]
    for module, is_causal in ((nn.Module(), None), (Bidirectional(), True), (nn.Module(), True)):
        with recording(label_type, exact, reads_last=True) as record:
            output, _ = attention_kernel(module, *heads(), None, is_causal=is_causal)
        torch.testing.assert_close(output, expected_output, rtol=0, atol=1e-12)
        (mask,) = record.masks
        assert torch.equal(mask[0, 0], causal[0, 0])
        rows = {"none": slice(0), "cls": slice(L - 1, L), "all": slice(L)}[label_type.value]
        for log_rows in record.log_rows:
            torch.testing.assert_close(log_rows.exp(), expected_rows[:, :, rows], rtol=0, atol=1e-12)
    for module, is_causal in ((Bidirectional(), None), (nn.Module(), False)):
        with recording(label_type, exact):
            output, _ = attention_kernel(module, *heads(), None, is_causal=is_causal)
        torch.testing.assert_close(output, bidirectional, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["none", "padding", "window"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_key_serves_a_group_of_query_heads(kind: str, exact: bool, groups: int) -> None:
    query, key, value = (torch.cat([tensor, tensor.flip(1)], dim=1)[:, :4] for tensor in heads())
    key, value = key[:, :groups], value[:, :groups]
    repeated = Heads(query, *(torch.stack([t[:, h * groups // 4] for h in range(4)], dim=1) for t in (key, value)))
    expected_output, expected_rows = reference.attention(*repeated, mask(kind), WIDTH**-0.5)
    output, record = run(Heads(query, key, value), mask(kind), AttentionLabelType.cls, exact)
    torch.testing.assert_close(output, expected_output, rtol=0, atol=1e-12)
    torch.testing.assert_close(record.log_rows[0].exp(), expected_rows[:, :, :1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("attention_mask", "arguments"),
    [
        (None, {"softcap": 50.0}),
        (None, {"s_aux": torch.zeros(H)}),
        (None, {"position_bias": torch.zeros(1, H, L, L)}),
        (torch.zeros(B, 1, L, L, dtype=torch.float64), {}),
    ],
)
def test_what_the_kernel_does_not_know_is_recorded(attention_mask: Tensor | None, arguments: dict[str, object]) -> None:
    for expected, hidden, given in ((False, mask("padding"), {"softcap": None}), (True, attention_mask, arguments)):
        with recording(AttentionLabelType.none, exact=False) as record:
            attention_kernel(Bidirectional(), *heads(), hidden, **given)
        assert record.foreign is expected


def test_scaling_is_used() -> None:
    expected, expected_rows = reference.attention(*heads(), None, 0.2)
    for exact in (False, True):
        output, record = run(heads(), None, AttentionLabelType.cls, exact, scaling=0.2)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(record.log_rows[0].exp(), expected_rows[:, :, :1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("label_type", list(AttentionLabelType))
def test_fused_and_exact_have_the_same_gradient(label_type: AttentionLabelType) -> None:
    gradients = []
    for exact in (False, True):
        inputs = Heads(*(tensor.requires_grad_() for tensor in heads()))
        output, record = run(inputs, mask("padding"), label_type, exact)
        loss = output.square().sum() + sum(log_rows.exp().log1p().sum() for log_rows in record.log_rows)
        gradients.append(torch.autograd.grad(loss, inputs))
    for fused, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("label_type", [AttentionLabelType.cls, AttentionLabelType.all])
def test_rows_are_taken_before_dropout(label_type: AttentionLabelType) -> None:
    for exact in (False, True):
        kept, dropped = (run(heads(), None, label_type, exact, dropout=p) for p in (0.0, 0.5))
        assert torch.equal(kept[1].log_rows[0], dropped[1].log_rows[0])
        assert not torch.allclose(kept[0], dropped[0])


def test_blocks_nest_and_end_with_an_exception() -> None:
    def call() -> None:
        attention_kernel(Bidirectional(), *heads(), None)

    def fail() -> None:
        with recording(AttentionLabelType.all, exact=False):
            raise RuntimeError("inside")

    with recording(AttentionLabelType.cls, exact=False) as outer:
        with recording(AttentionLabelType.all, exact=False) as inner:
            call()
        with pytest.raises(RuntimeError, match="inside"):
            fail()
        call()
    call()
    assert (inner.calls, outer.calls) == (1, 1)
    assert [log_rows.size(2) for log_rows in inner.log_rows + outer.log_rows] == [L, 1]


def test_only_exact_attention_has_second_derivatives() -> None:
    """The trap behind ``exact``: fused attention differentiates once, then raises."""

    def second_derivative(exact: bool) -> Tensor:
        inputs = Heads(*(tensor.requires_grad_() for tensor in heads()))
        output, _ = run(inputs, None, AttentionLabelType.cls, exact)
        (first,) = torch.autograd.grad(output.square().sum(), inputs.query, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), inputs.key)
        return second

    assert second_derivative(exact=True).abs().max() > 0
    with pytest.raises(RuntimeError, match="not implemented"):
        second_derivative(exact=False)


@pytest.mark.parametrize("kind", ["none", "padding", "window"])
@pytest.mark.parametrize("label_type", list(AttentionLabelType))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_texts_in_bfloat16_are_not_fused(
    kind: str, label_type: AttentionLabelType, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_fused(most: int) -> bool:
        """Whether fused attention is called where the plain formula is for at most so many positions."""
        calls = []
        fused = F.scaled_dot_product_attention
        monkeypatch.setattr(attention, "PLAIN_BF16_POSITIONS", most)
        with monkeypatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
            output, record = run(heads(dtype), mask(kind), label_type, exact=False)
        torch.testing.assert_close(output.double(), expected_output, rtol=0, atol=tolerance)
        for log_rows in record.log_rows:
            expected = expected_rows[:, :, : label_type.rows(L)]
            torch.testing.assert_close(log_rows.exp().double(), expected, rtol=0, atol=tolerance)
        return bool(calls)

    tolerance = 0.05 if dtype is torch.bfloat16 else TOLERANCE[dtype]
    expected_output, expected_rows = reference.attention(*heads(), mask(kind), WIDTH**-0.5)
    every_row = label_type is AttentionLabelType.all
    assert run_fused(L - 1) is not every_row
    assert run_fused(L) is (dtype is torch.float32 and not every_row)


def test_faint_attention_has_second_derivatives_in_float32() -> None:
    """Those of log(softmax), written so, are 1 / attention squared, which overflows below 1e-19."""
    query, key, value = heads(torch.float32)
    inputs = Heads((30 * query).requires_grad_(), key, value)
    _, record = run(inputs, None, AttentionLabelType.all, exact=True)
    (log_rows,) = record.log_rows
    assert log_rows.min() < -60
    (first,) = torch.autograd.grad(log_rows.sum(), inputs.query, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), inputs.query)
    assert second.isfinite().all()


def test_transformers_fused_attention_returns_no_rows() -> None:
    """The trap behind the kernel: ``output_attentions`` under sdpa gives nothing, and no error."""
    model = AutoModel.from_config(tiny_bert_config(), attn_implementation="sdpa")
    outputs = model(inputs_embeds=torch.zeros(1, L, 16), output_attentions=True)
    assert not [rows for rows in outputs.attentions or () if rows is not None]
