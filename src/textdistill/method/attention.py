"""An attention kernel for transformers that is fused and yet records the supervised attention rows.

transformers looks up the function that computes attention by name. Ours is registered as ``KERNEL``. The innermost
``recording`` block decides how it computes:

* By default it uses the fused attention of torch, which never forms the (L, L) matrix. If row 0 is supervised, that
  row is computed in addition.
* With ``exact``, or if every row is supervised, it uses the plain formula, which forms the matrix. The plain formula
  has derivatives of every order. Fused attention on a CPU has no second and no forward-mode derivative.
* For short texts in bfloat16 on a CPU it uses the plain formula, because it is faster there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

KERNEL = "textdistill"

# Up to this many positions the plain formula is faster on a CPU than fused attention in bfloat16
# (docs/decisions.md).
PLAIN_BF16_POSITIONS = 128


class AttentionLabelType(StrEnum):
    """The supervised query rows of the attention of the learner: none, row 0 (cls) or all."""

    none = "none"
    cls = "cls"
    all = "all"

    def rows(self, length: int) -> int:
        """Returns Q, the number of supervised query rows of a sequence of ``length`` positions."""
        return {"none": 0, "cls": 1, "all": length}[self.value]


@dataclass
class Recording:
    """The rows that a forward pass should record, and its records: one entry for each layer, in order.

    Attributes:
        label_type: the rows to record.
        exact: whether the attention must have derivatives of every order.
        log_rows: the logarithm of the attention of these rows before dropout, (B, H, Q, L).
        masks: the attention masks.
        calls: the number of layers that have called the kernel.

    """

    label_type: AttentionLabelType
    exact: bool
    log_rows: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    calls: int = 0


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recording(label_type: AttentionLabelType, exact: bool) -> Iterator[Recording]:
    """Yields an object into which attention layers with ``KERNEL`` record inside the block."""
    token = _recording.set(record := Recording(label_type, exact))
    try:
        yield record
    finally:
        _recording.reset(token)


def attention_kernel(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Computes attention, with the signature that transformers expects.

    Args:
        module: the attention layer; not used.
        query: (B, H, L, D/H).
        key: of the same shape.
        value: of the same shape.
        attention_mask: boolean, broadcastable to (B, H, L, L), True for keys that may be attended to; None for all.
        dropout: the probability of dropping an attention weight. transformers passes 0 outside training.
        scaling: the factor of the scores; None for ``(D/H) ** -0.5``.

    Returns:
        The output, (B, L, H, D/H), and None in place of the attention, which goes to the recording.

    """
    record = _recording.get() or Recording(AttentionLabelType.none, exact=False)
    record.calls += 1
    record.masks.append(attention_mask)
    scale = query.size(-1) ** -0.5 if scaling is None else scaling
    short_bf16 = query.device.type == "cpu" and query.dtype is torch.bfloat16 and key.size(2) <= PLAIN_BF16_POSITIONS
    if record.exact or record.label_type is AttentionLabelType.all or short_bf16:
        log_weights = _log_rows(query, key, attention_mask, scale)
        if record.label_type is not AttentionLabelType.none:
            record.log_rows.append(log_weights[:, :, : record.label_type.rows(query.size(2))])
        output = torch.matmul(F.dropout(log_weights.exp(), dropout), value)
    else:
        if record.label_type is AttentionLabelType.cls:
            mask = None if attention_mask is None else attention_mask[:, :, :1]
            record.log_rows.append(_log_rows(query[:, :, :1], key, mask, scale))
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scale
        )
    return output.transpose(1, 2).contiguous(), None


def _log_rows(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    # log(softmax(x)) would not do: its second derivative overflows float32 where attention is below 1e-19.
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.log_softmax(dim=-1)


AttentionInterface.register(KERNEL, attention_kernel)
AttentionMaskInterface.register(KERNEL, sdpa_mask)
