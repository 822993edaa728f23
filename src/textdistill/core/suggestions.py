"""Names the known names that are nearest to a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Returns at most three known names that resemble ``name``, the nearest first."""
    # The module is needed for errors only, and every start of the command line would wait for its import.
    from difflib import get_close_matches

    by_folded = {_folded(other): other for other in known}
    return [by_folded[other] for other in get_close_matches(_folded(name), by_folded, n=3, cutoff=0.6)]


def did_you_mean(names: Sequence[str]) -> str:
    """Returns the end of an error, ``"; did you mean 'a' or 'b'?"``, or nothing without names."""
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def _folded(name: str) -> str:
    """Removes the differences that a reader overlooks: case, and hyphens for underscores."""
    return name.casefold().replace("-", "_")
