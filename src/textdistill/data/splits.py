"""The three splits of a task, cut from the splits of its source by a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import torch

from textdistill.core.seeding import generator
from textdistill.data.source import SourceSplit, TextSplit

# The most rows held out of train for validation if the source has a test split.
VALIDATION_ROWS = 1000


class Protocol(StrEnum):
    """Which rows choose the checkpoint, and which rows the score is reported on.

    ``clean``: "test" is the labelled test split of the source, or else its validation split. "validation" is a tenth
    of train, at most 1,000 rows, stratified and drawn by the seed. The validation split of the source never chooses
    anything. If the source has a train split only, a tenth of train is held out for each of the two.

    ``paper``, the protocol of the reference implementation: "validation" and "test" are both the validation split of
    the source, or its test split if there is no other. "train" is all of train.
    """

    clean = "clean"
    paper = "paper"


def cut_splits(
    train_source: SourceSplit,
    test_source: SourceSplit | None,
    class_labels: Sequence[str],
    protocol: Protocol,
    seed: int,
) -> tuple[dict[str, TextSplit], dict[str, str]]:
    """Cuts the splits of a task from those of its source; see ``Protocol``.

    Args:
        train_source: the train split of the source.
        test_source: the split of the source that becomes the test split; None if train is cut in three.
        class_labels: the label of each class, written as a string, in the order of the class indices.
        protocol: ``test_source`` must not be None with ``paper``.
        seed: the seed of the run.

    Returns:
        The splits "train", "validation" and "test"; and for each, in words, the rows that it holds.

    Raises:
        ValueError: labels or texts of the source cannot be used.

    """
    train, name = _all_rows(train_source, class_labels), train_source.name
    random, tenth = generator(seed, "split"), len(train) // 10
    if test_source is None:
        test, train = hold_out(train, tenth, random)
        validation, train = hold_out(train, tenth, random)
        descriptions = [f"{name} (rest)", f"{len(validation):,} of {name}", f"{len(test):,} of {name}"]
    elif protocol == Protocol.paper:
        validation = test = _all_rows(test_source, class_labels)
        descriptions = [name, test_source.name, test_source.name]
    else:
        test = _all_rows(test_source, class_labels)
        validation, train = hold_out(train, min(tenth, VALIDATION_ROWS), random)
        descriptions = [f"{name} (rest)", f"{len(validation):,} of {name}", test_source.name]
    splits = {"train": train, "validation": validation, "test": test}
    return splits, dict(zip(splits, descriptions, strict=True))


def hold_out(split: TextSplit, rows: int, random: torch.Generator) -> tuple[TextSplit, TextSplit]:
    """Draws rows in proportion to the classes, at least one of each class.

    Args:
        split: the rows to draw from.
        rows: how many to draw.
        random: the source of the draws.

    Returns:
        The drawn rows and the rest, both in the order of the source.

    """
    labels = split.labels
    counts = np.bincount(labels)
    shares = counts * rows / len(labels)
    quotas = np.floor(shares).astype(int)
    # The classes with the largest remainders get the rows that rounding down has left over.
    quotas[np.argsort(quotas - shares, kind="stable")[: rows - quotas.sum()]] += 1
    held_out = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(counts):
        drawn = torch.randperm(int(count), generator=random).numpy()[: max(quotas[label], 1)]
        held_out[np.flatnonzero(labels == label)[drawn]] = True
    return _subset(split, held_out), _subset(split, ~held_out)


def _all_rows(source: SourceSplit, class_labels: Sequence[str]) -> TextSplit:
    labels = source.class_indices(class_labels)
    source.check_texts()
    return TextSplit(source, np.ones(len(labels), dtype=bool), labels)


def _subset(split: TextSplit, mask: np.ndarray) -> TextSplit:
    """The rows of a split that ``mask``, bool (N,), selects."""
    chosen = split.chosen.copy()
    chosen[split.chosen] = mask
    return TextSplit(split.source, chosen, split.labels[mask])
