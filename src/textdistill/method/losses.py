"""The task loss and the attention loss, as pure functions of tensors.

Dimensions: B samples, C classes, Y layers, H heads, Q supervised query rows, L key positions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross entropy: ``-mean_b sum_c labels[b, c] * log softmax(logits)[b, c]``.

    Args:
        logits: (B, C).
        labels: class indices, (B,), or class weights, (B, C). Weights may have any sign and sum, because unrestricted
            labels are used as they are.

    Returns:
        A scalar with a graph.

    Source: Maekawa et al. (2023), section 3.

    """
    return F.cross_entropy(logits, labels)


def attention_divergence(log_rows: Tensor, attention_labels: Tensor) -> Tensor:
    """Returns ``KL(attention_labels || exp(log_rows))`` of each row, summed over key positions.

    A key with label 0 contributes nothing, whatever the attention to it. Keys that a layer cannot attend to have
    label 0.

    Args:
        log_rows: the logarithm of the attention of the learner, (B, Y, H, Q, L).
        attention_labels: targets of the same shape. Each row holds probabilities, or probabilities times a weight w.

    Returns:
        (B, Y, H, Q) with a graph. A row of probabilities gives at least 0, up to rounding. A row with weight w gives
        ``w * KL + w * log(w)``, where the second term does not depend on the parameters of the learner.

    """
    # The floors keep the logarithm of a probability of 0, and its gradient, finite.
    tiny = torch.finfo(attention_labels.dtype).tiny
    log_ratio = attention_labels.clamp_min(tiny).log() - log_rows.clamp_min(math.log(tiny))
    return (attention_labels * log_ratio).sum(-1)


def attention_loss(log_rows: Tensor, attention_labels: Tensor) -> Tensor:
    """Returns the mean of ``attention_divergence`` over samples, layers, heads and rows: a scalar with a graph.

    Source: Maekawa et al. (2023), equation 5.
    """
    return attention_divergence(log_rows, attention_labels).mean()
