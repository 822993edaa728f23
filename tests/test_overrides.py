"""Values arrive in Hydra as they were."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from textdistill.overrides import key_of, quoted


@pytest.mark.parametrize(
    "value",
    [
        *("a b", "it's", "a\\b", "a\\", "a\\'b", "{x}", "[1]", "a,b", "", "null", "1", "$x", "${x}", "\\${x}", "'${"),
        *(["a b", "c'd", "${x}"], None, 3, 0.5, True),
    ],
)
def test_quoted_value_arrives_as_it_was(value: Any) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={quoted(value)}"])
    assert OmegaConf.to_container(OmegaConf.create({"key": override.value()}), resolve=True) == {"key": value}


@pytest.mark.parametrize("override", ["a.b=1", "+a.b=1", "++a.b=c=d", "~a.b"])
def test_key_of(override: str) -> None:
    assert key_of(override) == "a.b"
