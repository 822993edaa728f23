"""Reads and writes Hydra overrides: values that arrive as they are, and errors that show the right form."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from textdistill.core.suggestions import did_you_mean, nearest

# Hydra reads such a value as the string that it is.
_PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)\Z)(?:\./|/)?[a-z_][\w./-]*", re.ASCII | re.IGNORECASE)


def quoted(value: Any) -> str:
    """Writes a value in Hydra's override grammar, in quotation marks where it needs them.

    Args:
        value: a string, number, boolean or None, or a list of these.

    """
    if isinstance(value, str):
        if _PLAIN.fullmatch(value):
            return value
        # OmegaConf reads ${ as an interpolation unless a backslash precedes it.
        value = re.sub(r"(\\*)\$\{", lambda match: f"{2 * match[1]}\\${{", value)
        # Hydra reads a backslash as an escape only before a quotation mark.
        value = re.sub(r'(\\*)("|\Z)', lambda match: 2 * match[1] + ('\\"' if match[2] else ""), value)
        return f'"{value}"'
    if isinstance(value, list):
        return f"[{','.join(quoted(item) for item in value)}]"
    return "null" if value is None else str(value)


def key_of(override: str) -> str:
    """Returns the key of an override, without the signs that add or remove a key."""
    return override.partition("=")[0].lstrip("+~")


def shell_line(words: Iterable[str]) -> str:
    """Joins the words of a command to a line that sh, bash and zsh split into the same words."""
    # shlex quotes for sh. zsh replaces =name by the path of a command.
    return " ".join(f"'{word}'" if re.fullmatch(r"=[\w@%+=:,./-]*", word) else shlex.quote(word) for word in words)


def parse(override: str) -> Override:
    """Parses an override.

    Raises:
        ValueError: Hydra cannot read it; the error shows the override with its value quoted.

    """
    parser = OverridesParser.create()
    try:
        return parser.parse_override(override)
    except HydraException as error:
        key, equals, value = override.partition("=")
        if value.startswith("[") and value.endswith("]"):
            right = f"{key}={quoted([item.strip() for item in value[1:-1].split(',')])}"
        else:
            right = f"{key}={quoted(value)}"
        try:
            parser.parse_override(right)
        except HydraException:
            equals = ""
        form = f"quote the value: {shell_line([right])}" if equals else "an override is key=value, without blanks"
        raise ValueError(f"the override {override} cannot be read; {form}") from error


def check_overrides(overrides: Iterable[str], keys: Collection[str]) -> None:
    """Checks the form of overrides, and that each names a key.

    Args:
        overrides: the overrides, with single values or those of a sweep.
        keys: the keys of the configuration, with dots.

    Raises:
        ValueError: Hydra cannot read an override, or its key is unknown; the error names the nearest keys.

    """
    groups = {key.partition(".")[0] for key in keys}
    for override in overrides:
        key = parse(override).key_or_group
        # Hydra knows its own keys and the files of experiments.
        if key in keys or key in groups or re.match(r"hydra\b|experiment\b", key):
            continue
        hint = did_you_mean(nearest_keys(key, keys)) or "; textdistill distill --cfg job prints all keys"
        raise ValueError(f"there is no key {key!r}{hint}")


def nearest_keys(name: str, keys: Collection[str]) -> list[str]:
    """Returns at most three keys whose last part resembles that of ``name``, those of the same group first."""
    group, _, last = name.replace("-", "_").rpartition(".")
    same_end = sorted(key for key in keys if key.rpartition(".")[2] == last)
    if same_end:
        return same_end[:3]
    ends = nearest(last, {key.rpartition(".")[2] for key in keys})
    similar = [key for end in ends for key in sorted(keys) if key.rpartition(".")[2] == end]
    similar.sort(key=lambda key: key.rpartition(".")[0] != group)
    return similar[:3] or [key for key in sorted(keys) if len(last) > 1 and last in key][:3]


def composition_error(error: HydraException | OmegaConfBaseException) -> ValueError:
    """Returns an error of one line for an error of Hydra, with the rule that a value breaks."""
    reason = str(error).partition("\nConfig search path")[0].removeprefix("In 'config': ")
    if match := re.match(r"Error merging override (.*)", reason):
        reason = match[1]
    # The cause of the error names the rule, and on the lines after it the place in OmegaConf's tree.
    rule = str(error.__cause__).partition("\n")[0] if error.__cause__ else ""
    reason = reason.partition("\n    full_key:")[0]
    return ValueError(f"cannot compose the configuration: {' '.join(reason.split())}{': ' if rule else ''}{rule}")
