"""The attention kernel registered with transformers: fused, plus only the rows that are supervised.

transformers looks up the function that computes attention by name. Ours, ``KERNEL``, does what the innermost
``recording`` block asks for:

* first-order work: torch's fused attention, which never forms the (L, L) matrix; if row 0 is supervised, that
  one row is computed beside it;
* ``exact``, or every row: the plain formula, which keeps the matrix and has derivatives of every order (CPU
  fused attention has neither a second derivative nor a forward-mode one);
* short texts in bfloat16 on a CPU: the plain formula, for speed.
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

# Up to this many positions the plain formula is faster than the CPU's fused attention in bfloat16, whose backward pass
# takes longer than that in float32 (docs/decisions.md).
PLAIN_BF16_POSITIONS = 128


class AttentionLabelType(StrEnum):
    """Which query rows of the learner's attention are supervised."""

    none = "none"
    cls = "cls"
    all = "all"

    def rows(self, length: int) -> int:
        """Q, the number of supervised query rows among ``length``."""
        return {"none": 0, "cls": 1, "all": length}[self.value]


@dataclass
class Recording:
    """What one forward pass should keep, and what it kept: an entry a layer, in the order of the layers.

    ``log_rows`` are logarithms of attention, (B, H, Q, L), before dropout.
    """

    label_type: AttentionLabelType
    exact: bool
    log_rows: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    calls: int = 0


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recording(label_type: AttentionLabelType, exact: bool) -> Iterator[Recording]:
    """Inside the block, attention layers that use ``KERNEL`` record into the yielded object."""
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
    """Attention with the signature that transformers expects.

    Args:
        module: the attention layer (unused).
        query: (B, H, L, D/H), like ``key`` and ``value``.
        key: see query.
        value: see query.
        attention_mask: boolean, broadcastable to (B, H, L, L), True where a key may be attended to; None for all.
        dropout: probability of dropping an attention weight; transformers passes 0 outside training.
        scaling: factor on the scores; None for ``(D/H) ** -0.5``.

    Returns:
        The output (B, L, H, D/H), and None: the rows go to the recording, not through transformers.

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
    # The logarithm, since the second derivative of log(softmax) overflows float32 where attention is below 1e-19.
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.log_softmax(dim=-1)


AttentionInterface.register(KERNEL, attention_kernel)
AttentionMaskInterface.register(KERNEL, sdpa_mask)
