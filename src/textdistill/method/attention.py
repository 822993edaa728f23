"""An attention kernel for transformers that is fused and yet records the supervised attention rows.

transformers looks up the function that computes attention by name. Ours is registered as ``KERNEL``. The innermost
``recording`` block decides how it computes:

* By default it uses the fused attention of torch, which never forms the (L, L) matrix. If one row is supervised, that
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


# Arguments of some attention layers that change the result and that the kernel does not know.
FOREIGN_ARGUMENTS = ("position_bias", "s_aux", "softcap")


class AttentionLabelType(StrEnum):
    """The supervised query rows of the attention of the learner: none, the row that the classifier reads (cls) or all.

    An encoder reads row 0, and a decoder reads the last row.
    """

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
        reads_last: whether the classifier reads the last row rather than row 0.
        log_rows: the logarithm of the attention of these rows before dropout, (B, H, Q, L).
        masks: the attention masks, a causal one included; None for a layer whose rows reach every key.
        calls: the number of layers that have called the kernel.
        foreign: whether a layer has passed a mask or an argument that the kernel does not know.

    """

    label_type: AttentionLabelType
    exact: bool
    reads_last: bool = False
    log_rows: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    calls: int = 0
    foreign: bool = False

    def rows(self, length: int) -> slice:
        """Returns which of the query rows of ``length`` positions are supervised."""
        if self.label_type is AttentionLabelType.cls and self.reads_last:
            return slice(length - 1, length)
        return slice(self.label_type.rows(length))


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recording(label_type: AttentionLabelType, exact: bool, reads_last: bool = False) -> Iterator[Recording]:
    """Yields an object into which attention layers with ``KERNEL`` record inside the block."""
    token = _recording.set(record := Recording(label_type, exact, reads_last))
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
    is_causal: bool | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Computes attention, with the signature that transformers expects.

    Args:
        module: the attention layer. Its ``is_causal`` holds where the argument of this name is None.
        query: (B, H, L, D/H).
        key: of the same shape, or with fewer heads that divide H. Each of them serves a group of query heads.
        value: as key.
        attention_mask: boolean, broadcastable to (B, H, L, L), True for keys that may be attended to. With None a
            causal layer attends to no later key, and any other layer to all keys.
        dropout: the probability of dropping an attention weight. transformers passes 0 outside training.
        scaling: the factor of the scores; None for ``(D/H) ** -0.5``.
        is_causal: whether no mask means causal attention.
        **arguments: those in FOREIGN_ARGUMENTS are recorded, others do not change the result.

    Returns:
        The output, (B, L, H, D/H), and None in place of the attention, which goes to the recording.

    """
    record = _recording.get() or Recording(AttentionLabelType.none, exact=False)
    record.calls += 1
    record.foreign |= any(arguments.get(name) is not None for name in FOREIGN_ARGUMENTS)
    record.foreign |= attention_mask is not None and attention_mask.dtype is not torch.bool
    causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    mask = _causal_mask(query.size(2), query.device) if causal else attention_mask
    record.masks.append(mask)
    key, value = _for_every_head(key, query.size(1)), _for_every_head(value, query.size(1))
    scale = query.size(-1) ** -0.5 if scaling is None else scaling
    rows = record.rows(query.size(2))
    short_bf16 = query.device.type == "cpu" and query.dtype is torch.bfloat16 and key.size(2) <= PLAIN_BF16_POSITIONS
    if record.exact or record.label_type is AttentionLabelType.all or short_bf16:
        log_weights = _log_rows(query, key, mask, scale)
        if record.label_type is not AttentionLabelType.none:
            record.log_rows.append(log_weights[:, :, rows])
        output = torch.matmul(F.dropout(log_weights.exp(), dropout), value)
    else:
        if record.label_type is AttentionLabelType.cls:
            row_mask = None if mask is None else mask[:, :, rows]
            record.log_rows.append(_log_rows(query[:, :, rows], key, row_mask, scale))
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scale, is_causal=causal
        )
    return output.transpose(1, 2).contiguous(), None


def _causal_mask(length: int, device: torch.device) -> Tensor:
    return torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()


def _for_every_head(grouped: Tensor, num_heads: int) -> Tensor:
    """Repeats keys or values, (B, G, L, D/H), so that each of the H query heads has its own."""
    return grouped if grouped.size(1) == num_heads else grouped.repeat_interleave(num_heads // grouped.size(1), dim=1)


def _log_rows(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    # log(softmax(x)) would not do: its second derivative overflows float32 where attention is below 1e-19.
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.log_softmax(dim=-1)


AttentionInterface.register(KERNEL, attention_kernel)
AttentionMaskInterface.register(KERNEL, sdpa_mask)
