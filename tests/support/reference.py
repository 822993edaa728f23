"""Slow, obvious versions of what the package computes: loops over Python numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def softmax(scores: Sequence[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def task_loss(logits: Tensor, labels: Tensor) -> float:
    """Cross entropy with weights (B, C) of the classes, averaged over samples."""
    total = 0.0
    for sample_logits, sample_labels in zip(logits.tolist(), labels.tolist(), strict=True):
        for probability, weight in zip(softmax(sample_logits), sample_labels, strict=True):
            total -= weight * math.log(probability)
    return total / len(logits)


def attention_loss(rows: Tensor, attention_labels: Tensor) -> float:
    """KL(labels || rows), summed over keys, averaged over all else; a key with label 0 contributes nothing."""
    total, length = 0.0, rows.size(-1)
    all_rows, all_labels = rows.reshape(-1, length).tolist(), attention_labels.reshape(-1, length).tolist()
    for row, label in zip(all_rows, all_labels, strict=True):
        for probability, target in zip(row, label, strict=True):
            if target > 0:
                total += target * (math.log(target) - math.log(probability))
    return total / len(all_rows)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Output (B, L, H, D/H) and rows (B, H, L, L) of attention with a boolean mask (B, 1, L, L)."""
    samples, heads, length, width = query.shape
    output = torch.zeros(samples, length, heads, width, dtype=query.dtype)
    rows = torch.zeros(samples, heads, length, length, dtype=query.dtype)
    for b in range(samples):
        for h in range(heads):
            for i in range(length):
                keys = [j for j in range(length) if mask is None or mask[b, 0, i, j]]
                scores = [scale * float(query[b, h, i] @ key[b, h, j]) for j in keys]
                for j, weight in zip(keys, softmax(scores), strict=True):
                    rows[b, h, i, j] = weight
                    output[b, i, h] += weight * value[b, h, j]
    return output, rows


def directional_derivative(function: Callable[[float], float], step: float = 1e-3) -> float:
    """Derivative of ``function`` at 0 by central differences of fourth order."""
    near = function(step) - function(-step)
    far = function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)
