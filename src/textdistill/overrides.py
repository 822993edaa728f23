"""Writes Hydra overrides: values that arrive as they are, whatever characters they hold."""

from __future__ import annotations

import re
from typing import Any


def quoted(value: Any) -> str:
    """Quotes a value for Hydra's override grammar.

    Args:
        value: a string, number, boolean or None, or a list of these.

    """
    if isinstance(value, str):
        # OmegaConf reads ${ as an interpolation unless a backslash precedes it.
        value = re.sub(r"(\\*)\$\{", lambda match: f"{2 * match[1]}\\${{", value)
        # Hydra reads a backslash as an escape only before a quote.
        value = re.sub(r"(\\*)('|\Z)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), value)
        return f"'{value}'"
    if isinstance(value, list):
        return f"[{','.join(quoted(item) for item in value)}]"
    return "null" if value is None else str(value)


def key_of(override: str) -> str:
    """Returns the key of an override, without the signs that add or remove a key."""
    return override.partition("=")[0].lstrip("+~")
