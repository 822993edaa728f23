"""Which split a file, a folder or a split of a dataset is, by its name."""

from __future__ import annotations

import re
from typing import NamedTuple

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation", "validation_matched"),
    "test": ("test", "testing"),
}
# Our name of a split by what it is called elsewhere.
SPLIT_NAMES = {word: split for split, words in _WORDS.items() for word in words}
_SHARD = re.compile(r"(.*?)[-_. ]*(?:part|shard)?[-_. ]*([0-9]+)(?:[-_]of[-_]([0-9]+))?(?:[-_.][0-9a-f]{8,})?")


class Shard(NamedTuple):
    """What the name of a file says, without its suffix.

    Attributes:
        base: the name without numbers: ``train`` for ``train-00000-of-00002``.
        number: the number of the shard; None for a file that is no shard.
        of: the number of shards; None if the name does not state it.

    """

    base: str
    number: int | None
    of: int | None


def parse_shard(stem: str) -> Shard:
    """Reads names such as ``train-00000-of-00002``, ``train_3`` and ``train``."""
    match = _SHARD.fullmatch(stem)
    return Shard(match[1], int(match[2]), int(match[3]) if match[3] else None) if match else Shard(stem, None, None)


def split_of_word(name: str) -> str | None:
    """Returns the split whose word a name contains: ``test`` for ``reviews-test``; None if it is none or several."""
    splits = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 else None
