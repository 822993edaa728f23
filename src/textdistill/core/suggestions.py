"""Names the known names that are nearest to a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'a' or 'b'?"`` for the known names nearest to ``name``, or nothing without any."""
    # The module is needed for errors only, and every start of the command line would wait for its import.
    from difflib import get_close_matches

    by_folded = {folded(other): other for other in known}
    nearest = [by_folded[other] for other in get_close_matches(folded(name), by_folded, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""


def folded(name: str) -> str:
    """Returns a name without the differences that a reader overlooks: case, and hyphens for underscores."""
    return name.casefold().replace("-", "_")
