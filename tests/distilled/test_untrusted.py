"""Values of strangers: JSON as dataclasses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest

from textdistill.distilled.untrusted import parse


class Colour(StrEnum):
    red = "red"
    blue = "blue"


@dataclass
class Inner:
    count: int
    names: tuple[str, ...]


@dataclass
class Outer:
    inner: Inner
    colour: Colour
    rate: float
    flag: bool
    title: str | None
    free: dict[str, Any]


OUTER: dict[str, Any] = {
    "inner": {"count": 3, "names": ["a", "b"]},
    "colour": "blue",
    "rate": 1,
    "flag": False,
    "title": None,
    "free": {"x": [1]},
}


def test_parse() -> None:
    parsed = parse(Outer, OUTER)
    assert parsed == Outer(Inner(3, ("a", "b")), Colour.blue, 1.0, False, None, {"x": [1]})
    assert type(parsed.rate) is float
    assert type(parsed.colour) is Colour


COUNT = "inner.count must be a whole number from 1 to 2^63 - 1, got"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner": []}, "inner must be an object, got []"),
        ({"inner": {"count": 3}}, "inner must have the keys ['count', 'names']: missing ['names'], unknown []"),
        ({"inner": {"count": 3, "names": [], "x": 1}}, "missing [], unknown ['x']"),
        *(({"inner": {"count": count, "names": []}}, COUNT) for count in (True, 0, -1, 2**63, 1.0, "1", None)),
        ({"inner": {"count": 1, "names": "ab"}}, "inner.names must be a list, got 'ab'"),
        ({"inner": {"count": 1, "names": ["a", 1]}}, "inner.names[1] must be a string, got 1"),
        ({"colour": "green"}, "colour must be one of red, blue, got 'green'"),
        ({"colour": ["red"]}, "colour must be one of red, blue, got ['red']"),
        ({"rate": "1"}, "rate must be a number, got '1'"),
        ({"rate": True}, "rate must be a number, got True"),
        ({"rate": 10**400}, "rate must be a number, got 1000"),
        ({"flag": 1}, "flag must be true or false, got 1"),
        ({"title": 5}, "title must be a string, got 5"),
        ({"free": None}, "free must be an object, got None"),
        ({"title": ["x" * 10**6]}, "title must be a string, got ['xxx"),
        ({"y" * 10**6: 1}, "missing [], unknown ['yyy"),
    ],
)
def test_parse_names_key_rule_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        parse(Outer, OUTER | changes)
    assert len(str(error.value)) < 500
