"""Prepares learned samples for a page: attention labels, the learner's own attention, and nearest tokens."""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from textdistill.core.seeding import stream_seed
from textdistill.distilled.adapt import check_fits, train_learner
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.inspection import nearest_tokens, own_attention
from textdistill.method.learner import Learner, ModelConfig
from textdistill.method.losses import attention_divergence

logger = logging.getLogger(__name__)

# The page shows this many nearest tokens of a position, and this many of the strongest attention labels of a head.
NEAREST = 3
STRONGEST = 5


@dataclass(frozen=True)
class Limits:
    """Limits that keep a page small.

    Attributes:
        map_cells: the greatest number of probabilities in all attention maps. Each takes one byte before base64.
        tokens: the greatest number of nearest tokens.

    """

    map_cells: int = 2_000_000
    tokens: int = 30_000

    def share(self, runs: int) -> Limits:
        """Divides the limits evenly among ``runs`` runs on one page."""
        return Limits(self.map_cells // runs, self.tokens // runs)


@dataclass(frozen=True)
class TokenView:
    """Nearest tokens of the learned embeddings.

    Attributes:
        nearest: a token and its cosine similarity, by sample, position and rank.
        cosine: the median cosine similarity of the nearest token.

    """

    nearest: list[list[list[tuple[str, float]]]]
    cosine: float


@dataclass(frozen=True)
class AttentionView:
    """Attention labels and, if a learner could be loaded, its own attention before and after fine-tuning on the set.

    Attributes:
        layers: Y, the number of layers.
        heads: H, the number of heads.
        rows: the query rows that ``maps`` shows.
        maps: the attention maps, by ``label``, ``before`` and ``after``. Each map is the base64 of bytes in the shape
            (samples, Y, H, rows, L). A byte is 255 times the square root of a probability.
        divergence: KL(label || attention) by ``before`` and ``after``, then by sample, layer and head.
        mean_divergence: the mean of ``divergence``, by ``before`` and ``after``.
        strongest: the strongest labels by sample, layer, head and rank. Each entry is the query row, the key position
            and the value of each map there. If ``weighted``, the learned weight of the row follows.
        weighted: whether the set has a learned weight for each row.

    """

    layers: int
    heads: int
    rows: list[int]
    maps: dict[str, str]
    divergence: dict[str, list[list[list[float]]]]
    mean_divergence: dict[str, float]
    strongest: list[list[list[list[list[float]]]]]
    weighted: bool


@dataclass(frozen=True)
class SampleView:
    """The first samples of a set, prepared for a page.

    Attributes:
        shown: the names of the samples.
        length: L, the number of positions of a sample.
        learner: whether the learner could be loaded. Nearest tokens and the learner's own attention need it.
        tokens: the nearest tokens; None without a learner.
        attention: the attention maps; None for a set without attention labels.

    """

    shown: list[str]
    length: int
    learner: bool
    tokens: TokenView | None
    attention: AttentionView | None


def view_samples(
    distilled: DistilledDataset, settings: Mapping[str, object], seed: int, limits: Limits, device: torch.device | str
) -> SampleView:
    """Prepares as many samples as the limits allow.

    If one sample alone exceeds the limits, evenly spaced query rows of its attention maps are left out.

    Args:
        distilled: the set.
        settings: the settings of the run that made the set, by dotted key. ``model.*`` decides how the model is loaded.
        seed: the run's seed. The learner is learner 0 of ``evaluate`` with this seed.
        limits: the limits of attention maps and tokens.
        device: where the model computes attention.

    """
    learner = _load(distilled, settings, device)
    labels, length = distilled.attention_labels, distilled.config.positions
    count, stride = len(distilled), 1
    if labels is not None:
        cells = labels[0].numel() * (1 if learner is None else 3)
        stride = -(-cells // limits.map_cells)
        count = min(count, max(1, limits.map_cells * stride // cells))
    count = min(count, max(1, limits.tokens // (length * NEAREST)))
    tokens = None if learner is None else _view_tokens(distilled, learner, count)
    attention = None if labels is None else _view_attention(distilled, labels[:count], learner, seed, stride)
    return SampleView(sample_names(distilled)[:count], length, learner is not None, tokens, attention)


def sample_names(distilled: DistilledDataset) -> list[str]:
    """Returns the number and the class of each sample as a name."""
    classes = distilled.metadata.class_names
    return [f"{i}: {classes[i % len(classes)]}" for i in range(len(distilled))]


def _load(distilled: DistilledDataset, settings: Mapping[str, object], device: torch.device | str) -> Learner | None:
    """Loads the run's learner, and moves it and the set to the device.

    Returns None if the model cannot be loaded or does not fit the set.
    """
    metadata = distilled.metadata
    options = {name: settings.get(f"model.{name}") for name in ("use_pretrained_model", "disable_dropout")}
    stated: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        learner = Learner(ModelConfig(metadata.task, metadata.model.name, **stated), metadata.class_names)
        check_fits(distilled, learner)
    except (OSError, ValueError) as error:
        logger.warning(
            "the page shows no nearest tokens and no own attention, because %s cannot be loaded (%s)",
            metadata.model.name,
            error,
        )
        return None
    learner.to(device)
    distilled.to(learner.device)
    return learner


def _view_tokens(distilled: DistilledDataset, learner: Learner, count: int) -> TokenView:
    length = distilled.config.positions
    samples = nearest_tokens(distilled, learner, min(NEAREST, len(learner.tokenizer)), length)[:count]
    return TokenView(
        [[[(token, round(cosine, 3)) for token, cosine in near] for near in sample] for sample in samples],
        median(near[0].cosine for sample in samples for near in sample),
    )


def _view_attention(
    distilled: DistilledDataset, labels: Tensor, learner: Learner | None, seed: int, stride: int
) -> AttentionView:
    """Prepares attention labels of shape (samples, Y, H, Q, L). The maps show every ``stride``-th query row."""
    labels = labels.detach()
    count, layers, heads, rows, _ = labels.shape
    own: dict[str, Tensor] = {}
    if learner is not None:
        before = learner.fresh_params(stream_seed(seed, "head", "evaluation", 0))
        after = train_learner(distilled, learner, seed, "evaluation", 0)
        both = {"before": before, "after": after}
        own = {name: own_attention(distilled, learner, params, count) for name, params in both.items()}
    divergence = {name: attention_divergence(log_rows, labels).mean(-1) for name, log_rows in own.items()}
    maps = {"label": labels, **{name: log_rows.exp() for name, log_rows in own.items()}}
    weights = distilled.attention_weights
    weight = {} if weights is None else {"weight": weights.detach()[:count, ..., None].expand_as(labels)}
    return AttentionView(
        layers=layers,
        heads=heads,
        rows=list(range(0, rows, stride)),
        maps={name: _encode(probabilities[:, :, :, ::stride]) for name, probabilities in maps.items()},
        divergence={name: _rounded(values) for name, values in divergence.items()},
        mean_divergence={name: values.mean().item() for name, values in divergence.items()},
        strongest=_strongest(maps | weight),
        weighted=weights is not None,
    )


def _encode(probabilities: Tensor) -> str:
    levels = (probabilities.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)
    return base64.b64encode(levels.cpu().contiguous().numpy().tobytes()).decode()


def _rounded(values: Tensor) -> Any:
    """Returns nested lists of numbers with three decimals, which keep the JSON short."""
    if values.dim() > 1:
        return [_rounded(value) for value in values]
    return [round(value, 3) for value in values.tolist()]


def _strongest(maps: Mapping[str, Tensor]) -> Any:
    """Returns row, position and the value of each map for the strongest labels of each sample, layer and head."""
    labels = maps["label"].flatten(-2)
    indices = labels.topk(min(STRONGEST, labels.size(-1)), dim=-1).indices
    values = torch.stack([tensor.flatten(-2).gather(-1, indices) for tensor in maps.values()], dim=-1)
    length = maps["label"].size(-1)
    rows_and_positions = torch.stack([indices // length, indices % length], dim=-1)
    return _joined(rows_and_positions.tolist(), _rounded(values))


def _joined(indices: Any, values: Any) -> Any:
    """Appends each innermost list of ``values`` to the matching innermost list of ``indices``."""
    if isinstance(indices[0], list):
        return [_joined(inner, inner_values) for inner, inner_values in zip(indices, values, strict=True)]
    return [*indices, *values]
