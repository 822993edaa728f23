"""Coresets: real samples of the training split that stand in for it, as many of each class as are asked for."""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from textdistill.core.seeding import generator
from textdistill.data.batches import sorted_batches, stratified_sample
from textdistill.data.tokenized import TokenizedSplit
from textdistill.method.learner import Learner

# The number of choices of rows. Learner i trains on choice i % DRAWS.
DRAWS = 5
# k-centers and herding are deterministic. Each draw gives them this many random rows of each class to choose from.
CANDIDATES = 1000


class Coreset(StrEnum):
    """How real samples are chosen, class by class.

    ``random``: drawn evenly. ``k-centers``: the row nearest to the mean of the class, then repeatedly the row farthest
    from all chosen ones (greedy k-center; Sener and Savarese, 2018). ``herding``: repeatedly the row that brings the
    mean of the chosen ones nearest to the mean of the class (Welling, 2009). Distances are between the pooled features
    of the pretrained encoder.
    """

    random = "random"
    k_centers = "k-centers"
    herding = "herding"


def choose_coresets(
    kind: Coreset, learner: Learner, train: TokenizedSplit, per_class: int, batch_size: int, seed: int
) -> list[np.ndarray]:
    """Returns DRAWS choices of rows, each (per_class * C,). The row at position i has class i % C.

    Args:
        kind: how the rows are chosen.
        learner: computes the features.
        train: the rows to choose from.
        per_class: the number of rows of each class, at least 1.
        batch_size: the most rows of a forward pass.
        seed: the seed of the run.

    Raises:
        ValueError: a class has fewer than ``per_class`` rows.

    """
    draws = [generator(seed, "baseline", "random", draw) for draw in range(DRAWS)]
    if kind is Coreset.random:
        return [stratified_sample(train.labels, per_class, draw) for draw in draws]
    choose = k_centers if kind is Coreset.k_centers else herding
    available = int(np.bincount(train.labels).min())
    candidates = max(per_class, min(CANDIDATES, available))
    coresets = []
    for draw in draws:
        rows = stratified_sample(train.labels, candidates, draw)
        features = _features(learner, train, rows, batch_size)
        classes = [slice(label, None, learner.num_labels) for label in range(learner.num_labels)]
        coresets.append(np.stack([rows[c][choose(features[c], per_class)] for c in classes], axis=1).reshape(-1))
    return coresets


def k_centers(features: Tensor, count: int) -> list[int]:
    """Chooses the row of ``features``, (N, D), nearest to the mean, and then the row farthest from all chosen ones."""
    chosen = [int((features - features.mean(0)).norm(dim=1).argmin())]
    nearest = torch.full((len(features),), math.inf, device=features.device)
    while len(chosen) < count:
        nearest = nearest.minimum((features - features[chosen[-1]]).norm(dim=1))
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return chosen


def herding(features: Tensor, count: int) -> list[int]:
    """Chooses the row of ``features``, (N, D), that brings the mean of the chosen ones nearest to the mean of all."""
    mean, total = features.mean(0), torch.zeros_like(features[0])
    chosen: list[int] = []
    while len(chosen) < count:
        distances = ((total + features) / (len(chosen) + 1) - mean).norm(dim=1)
        distances[chosen] = math.inf
        chosen.append(int(distances.argmin()))
        total = total + features[chosen[-1]]
    return chosen


def _features(learner: Learner, train: TokenizedSplit, rows: np.ndarray, batch_size: int) -> Tensor:
    """Returns the pooled features of the pretrained encoder, (len(rows), hidden size), in the order of ``rows``."""
    features = torch.empty(len(rows), learner.model.config.hidden_size)
    bar = tqdm(total=len(rows), desc="features", unit="row", leave=False, dynamic_ncols=True, disable=None)
    for positions, batch in sorted_batches(train, batch_size, rows):
        inputs = {name: tensor.to(learner.device) for name, tensor in batch.items() if name != "labels"}
        features[torch.from_numpy(positions)] = learner.pooled(inputs).float().cpu()
        bar.update(len(positions))
    bar.close()
    return features
