"""Which rows form a batch: shuffled epochs for training and one sorted pass for scoring.

A batch holds texts of similar length, because a padding token costs as much time as a token of text.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from textdistill.core.seeding import generator
from textdistill.data.tokenized import TokenizedSplit

# Batches of a pool, whose rows are grouped by length. A larger pool has less padding and makes an epoch less random.
POOL_BATCHES = 100
# A pool keeps the class shares in its batches if padding then stays below this share of its tokens.
MAX_PADDING = 0.1
# A scoring batch holds at most batch_size * 64 tokens. Texts of the built-in tasks are mostly shorter than 64 tokens
# and fill their batches. Batches of longer texts need no more memory than a full batch of 64 tokens a row.
TOKENS_PER_ROW = 64


def steps_per_epoch(split: TokenizedSplit, batch_size: int) -> int:
    """The number of batches that ``train_batches`` yields in an epoch."""
    return max(len(split) // batch_size, 1)


def train_batches(
    split: TokenizedSplit, batch_size: int, seed: int, epoch: int, start: int = 0, stride: int = 1
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields one epoch in random order, in batches of texts of similar length.

    All rows are shuffled and cut into pools of 100 batches. The rows of each class in a pool are ranked by length.
    The pool is sorted by rank relative to the size of the class and cut into batches, which keep the class shares of
    the pool. If more than a tenth of the tokens is padding then, the pool is sorted by length alone. This happens
    where the classes differ in length, or are many. The order of the batches is random.

    The last, incomplete batch is dropped, as in the reference. A split of fewer rows than ``batch_size`` is a
    single batch.

    Args:
        split: the rows.
        batch_size: B, the rows of a batch.
        seed: the seed of the run.
        epoch: the number of the epoch, from 0; decides the order together with ``seed``.
        start: the number of batches to skip at the start of the epoch.
        stride: after these, every ``stride``-th batch is yielded.

    """
    random = generator(seed, "order", epoch)
    steps = steps_per_epoch(split, batch_size)
    rows = torch.randperm(len(split), generator=random).numpy()[: steps * batch_size]
    pool = POOL_BATCHES * batch_size
    arranged: set[int] = set()
    for index in torch.randperm(steps, generator=random).tolist()[start::stride]:
        number = index // POOL_BATCHES
        if number not in arranged:  # arranged when first needed, so that an epoch starts without a pass over all rows
            members = rows[number * pool : (number + 1) * pool]
            members[:] = _arrange(split, members, batch_size)
            arranged.add(number)
        yield split.batch(rows[index * batch_size : (index + 1) * batch_size])


def _arrange(split: TokenizedSplit, members: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the rows of a pool in the order in which they are cut into batches."""
    order = members[np.argsort(_ranks_within_class(split, members), kind="stable")]
    if _padding(split, order, batch_size) > MAX_PADDING:
        order = members[np.argsort(split.lengths[members], kind="stable")]
    return order


def _ranks_within_class(split: TokenizedSplit, rows: np.ndarray) -> np.ndarray:
    """Returns the rank of each row by length among the rows of its class, from 0 to 1."""
    ranks = np.empty(len(rows))
    for label in np.unique(split.labels[rows]):
        (members,) = np.nonzero(split.labels[rows] == label)
        members = members[np.argsort(split.lengths[rows[members]], kind="stable")]
        ranks[members] = (np.arange(len(members)) + 0.5) / len(members)
    return ranks


def _padding(split: TokenizedSplit, rows: np.ndarray, batch_size: int) -> float:
    """Returns the share of padding tokens if the rows are cut into batches in this order."""
    lengths = split.lengths[rows]
    starts = np.arange(0, len(rows), batch_size)
    sizes = np.diff(starts, append=len(rows))
    return 1 - int(lengths.sum()) / int((np.maximum.reduceat(lengths, starts) * sizes).sum())


def sorted_batches(
    split: TokenizedSplit, batch_size: int, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Yields every row once, sorted by length, at most ``batch_size`` rows and ``batch_size * 64`` tokens a batch.

    The longest rows come first, so that a batch that exceeds the memory fails at once.

    Args:
        split: the rows.
        batch_size: the most rows of a batch. A text longer than all tokens of a batch is a batch of its own.
        rows: indices of the rows to take, (N,); None for all.

    Yields:
        The positions of the rows of the batch in ``rows``, (B,), which are the row indices if ``rows`` is None; and
        the batch.

    """
    lengths = split.lengths if rows is None else split.lengths[rows]
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        positions = order[start : start + min(batch_size, max(batch_size * TOKENS_PER_ROW // longest, 1))]
        start += len(positions)
        yield positions, split.batch(positions if rows is None else rows[positions])


def stratified_sample(labels: np.ndarray, per_class: int, generator: torch.Generator) -> np.ndarray:
    """Draws ``per_class`` rows of every class without replacement.

    Args:
        labels: class indices 0..C-1, (N,).
        per_class: the number of rows of each class, at least 1.
        generator: the source of the draws.

    Returns:
        Row indices, (per_class * C,). The row at position i has class i % C.

    Raises:
        ValueError: a class has fewer rows.

    """
    drawn = []
    for label, count in enumerate(np.bincount(labels)):
        if count < per_class:
            raise ValueError(
                "distilled_data.data_per_label must be at most the training rows of every class, but"
                f" class {label} has {count} rows, fewer than the {per_class} to be drawn of every class;"
                " lower it"
            )
        order = torch.randperm(int(count), generator=generator).numpy()[:per_class]
        drawn.append(np.flatnonzero(labels == label)[order])
    return np.stack(drawn, axis=1).reshape(-1)
