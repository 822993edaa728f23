"""Which rows make a batch: random epochs and sorted passes, in batches of texts of similar length.

Padding costs as much as text does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from textdistill.core.seeding import generator
from textdistill.data.tokens import TokenizedSplit

POOL_BATCHES = 100  # batches grouped by length together: more means less padding and a less random epoch
MAX_PADDING = 0.1  # of the tokens of a pool, where its batches also keep the shares of the classes
# Evaluation batches hold at most batch_size * 64 tokens: most texts of the built-in tasks are shorter and
# fill their batches, and a batch of long texts needs no more memory than a full batch of those.
TOKENS_PER_ROW = 64


def steps_per_epoch(split: TokenizedSplit, batch_size: int) -> int:
    """Batches that ``train_batches`` yields."""
    return max(len(split) // batch_size, 1)


def train_batches(
    split: TokenizedSplit, batch_size: int, seed: int, epoch: int, start: int = 0, stride: int = 1
) -> Iterator[dict[str, torch.Tensor]]:
    """One epoch in random order, in batches of texts of similar length and with the pool's shares of the classes.

    All rows are shuffled and cut into pools of 100 batches; the rows of each class in a pool are ranked by
    length, the pool is sorted by rank relative to the class's size and cut into batches; the batches are
    shuffled. Where that pads more than a tenth of the tokens, because the classes differ in length or are
    many, the pool is sorted by length alone. The last, incomplete batch is dropped, as the reference does; a
    split with fewer rows than ``batch_size`` is one batch.

    Args:
        split: the rows.
        batch_size: B, rows a batch.
        seed: the run's seed.
        epoch: decides the order, together with ``seed``.
        start: batches to leave out at the start of the epoch.
        stride: of the rest, every how many-th to yield.

    """
    random = generator(seed, "order", epoch)
    steps = steps_per_epoch(split, batch_size)
    rows = torch.randperm(len(split), generator=random).numpy()[: steps * batch_size]
    pool = POOL_BATCHES * batch_size
    arranged: set[int] = set()
    for index in torch.randperm(steps, generator=random).tolist()[start::stride]:
        number = index // POOL_BATCHES
        if number not in arranged:  # each when it is first needed: an epoch begins without going through all rows
            members = rows[number * pool : (number + 1) * pool]
            members[:] = _arranged(split, members, batch_size)
            arranged.add(number)
        yield split.batch(rows[index * batch_size : (index + 1) * batch_size])


def _arranged(split: TokenizedSplit, members: np.ndarray, batch_size: int) -> np.ndarray:
    """The rows of a pool in the order in which they are cut into batches."""
    order = members[np.argsort(_ranks_within_class(split, members), kind="stable")]
    if _padding(split, order, batch_size) > MAX_PADDING:
        order = members[np.argsort(split.lengths[members], kind="stable")]
    return order


def _ranks_within_class(split: TokenizedSplit, rows: np.ndarray) -> np.ndarray:
    """Rank by length of each row among those of its class, from 0 to 1."""
    ranks = np.empty(len(rows))
    for label in np.unique(split.labels[rows]):
        (members,) = np.nonzero(split.labels[rows] == label)
        members = members[np.argsort(split.lengths[rows[members]], kind="stable")]
        ranks[members] = (np.arange(len(members)) + 0.5) / len(members)
    return ranks


def _padding(split: TokenizedSplit, rows: np.ndarray, batch_size: int) -> float:
    """Share of padding among the tokens of rows cut into batches."""
    lengths = split.lengths[rows]
    starts = np.arange(0, len(rows), batch_size)
    sizes = np.diff(starts, append=len(rows))
    return 1 - int(lengths.sum()) / int((np.maximum.reduceat(lengths, starts) * sizes).sum())


def sorted_batches(
    split: TokenizedSplit, batch_size: int, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Every row once, sorted by length, at most ``batch_size`` rows and ``batch_size * 64`` tokens a batch.

    The longest come first, so that a batch too large for memory shows at once.

    Args:
        split: the rows.
        batch_size: most rows a batch; a text longer than all the tokens allowed is a batch of its own.
        rows: (N,), the rows to take; None for all.

    Yields:
        Positions in ``rows`` (B,), which for all rows are their indices, and the batch.

    """
    lengths = split.lengths if rows is None else split.lengths[rows]
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        places = order[start : start + min(batch_size, max(batch_size * TOKENS_PER_ROW // longest, 1))]
        start += len(places)
        yield places, split.batch(places if rows is None else rows[places])


def stratified_sample(labels: np.ndarray, per_class: int, generator: torch.Generator) -> np.ndarray:
    """Rows drawn without replacement, ``per_class`` of every class.

    Args:
        labels: class indices 0..C-1, (N,).
        per_class: rows of each class, at least 1.
        generator: source of the draws.

    Returns:
        Row indices, (per_class * C,); entry i is of class i % C.

    Raises:
        ValueError: a class has fewer rows.

    """
    drawn = []
    for label, count in enumerate(np.bincount(labels)):
        if count < per_class:
            raise ValueError(
                "distilled_data.data_per_label must be at most the training rows of every class, but"
                f" class {label} has {count} rows, fewer than the {per_class} to be drawn of every class"
            )
        order = torch.randperm(int(count), generator=generator).numpy()[:per_class]
        drawn.append(np.flatnonzero(labels == label)[order])
    return np.stack(drawn, axis=1).reshape(-1)
