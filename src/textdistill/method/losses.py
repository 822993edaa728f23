"""Task loss and attention-label loss: pure tensor functions.

Letters: B samples, C classes, Y layers, H heads, Q supervised query rows, L key positions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, averaged over samples: ``-mean_b sum_c labels[b, c] * log softmax(logits)[b, c]``.

    Args:
        logits: (B, C).
        labels: class indices (B,), or weights (B, C) of any sign and sum: unrestricted labels are used as
            they are.

    Returns:
        A scalar with a graph.

    Source: Maekawa et al. (2023), section 3.

    """
    return F.cross_entropy(logits, labels)


def attention_divergence(log_rows: Tensor, attention_labels: Tensor) -> Tensor:
    """``KL(attention_labels || exp(log_rows))`` of each row: summed over key positions.

    A key with label 0 contributes nothing, whatever the learner's attention to it, so keys that a layer cannot
    reach drop out.

    Args:
        log_rows: logarithm of the learner's attention, (B, Y, H, Q, L).
        attention_labels: targets of the same shape, probabilities over the last dimension; or such rows times a weight
            w each, whose term is ``w * KL + w * log(w)``: what is added does not depend on the parameters.

    Returns:
        (B, Y, H, Q) with a graph; of probabilities at least 0 up to rounding.

    """
    # Where a probability is 0, its logarithm stays finite, and so do the gradients.
    tiny = torch.finfo(attention_labels.dtype).tiny
    log_ratio = attention_labels.clamp_min(tiny).log() - log_rows.clamp_min(math.log(tiny))
    return (attention_labels * log_ratio).sum(-1)


def attention_loss(log_rows: Tensor, attention_labels: Tensor) -> Tensor:
    """The mean of ``attention_divergence`` over samples, layers, heads and rows, a scalar with a graph.

    Source: Maekawa et al. (2023), equation 5.
    """
    return attention_divergence(log_rows, attention_labels).mean()
