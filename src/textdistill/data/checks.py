"""Warnings of data that can be used, but whose scores may mislead."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from textdistill.data.source import TextSplit

logger = logging.getLogger(__name__)

# A class with more than this share of the training rows is warned of.
LARGE_SHARE = 0.8


def check_splits(splits: Mapping[str, TextSplit], sources: Mapping[str, str], class_names: Sequence[str]) -> None:
    """Warns of a class that dominates, of a class that a split lacks, and of texts that two splits share.

    Args:
        splits: "train", "validation" and "test".
        sources: for each split, in words, which rows of the source it holds.
        class_names: C names, by class index.

    Raises:
        ValueError: train lacks a class.

    """
    for name, split in splits.items():
        counts = np.bincount(split.labels, minlength=len(class_names))
        absent = [class_name for class_name, count in zip(class_names, counts, strict=True) if not count]
        if absent and name == "train":
            raise ValueError(
                f"data: {len(absent):,} of the {len(class_names):,} classes have no row in the train split "
                f"({sources[name]}), the first is {absent[0]!r}; rows are held out of train, so add rows of the class, "
                "leave it out, or name another column of labels (--label)"
            )
        if absent:
            logger.warning(
                "data: %d of the %d classes have no row in the %s split (%s), so its scores do not tell how they are "
                "learned: %s", len(absent), len(class_names), name, sources[name], ", ".join(absent[:20]),
            )  # fmt: skip
    shares = np.bincount(splits["train"].labels, minlength=len(class_names)) / len(splits["train"])
    if shares.max() > LARGE_SHARE:
        logger.warning(
            "data: %.1f %% of the training rows are of class %r: always naming that class has nearly this accuracy; "
            "compare macro_f1 or balanced_accuracy", 100 * shares.max(), class_names[int(shares.argmax())],
        )  # fmt: skip
    _warn_of_shared_texts(splits)


def _warn_of_shared_texts(splits: Mapping[str, TextSplit]) -> None:
    hashes = {name: split.source.text_hashes[split.chosen] for name, split in splits.items()}
    others = {"validation": ["train"], "test": ["train", "validation"]}
    if splits["validation"] is splits["test"]:  # the paper protocol validates on the test split
        others = {"test": ["train"]}
    for name, earlier in others.items():
        shared = int(np.isin(hashes[name], np.concatenate([hashes[other] for other in earlier])).sum())
        if shared:
            logger.warning(
                "data: %s of the %s texts of the %s split are also in %s (leakage), so its scores may be too high; "
                "remove the duplicates", f"{shared:,}", f"{len(splits[name]):,}", name, " or ".join(earlier),
            )  # fmt: skip
