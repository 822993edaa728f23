"""Derives named, independent random streams from one seed.

Every random draw of the package comes from a stream with a name and, if needed, an index. An example is
``generator(seed, "head", "evaluation", 3)``. Streams do not depend on each other or on the order of their opening.
Learner 3 is therefore the same whether 10 or 100 learners are drawn.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, *name: str | int) -> int:
    """Returns the seed of the stream called ``name``, which is a hash of the run's seed and the name.

    Args:
        seed: the run's seed (``base.seed``).
        name: words and indices that name the stream; ``("head", 1)`` and ``("head1",)`` are different streams.

    Returns:
        An integer in [0, 2**63).

    """
    digest = hashlib.sha256(repr((seed, *name)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *name: str | int) -> torch.Generator:
    """Returns a CPU generator at the start of the stream called ``name``.

    The caller draws on the CPU and then moves the values. The values are therefore the same on every device.
    """
    return torch.Generator().manual_seed(stream_seed(seed, *name))
