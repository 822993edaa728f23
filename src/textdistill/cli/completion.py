"""Completes the keys of the configuration and their values in a shell.

The keys are read from the source of the dataclasses, because importing them would take seconds at every press of tab.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import typer

PACKAGE = Path(__file__).parents[1]


def complete_setting(context: typer.Context, incomplete: str) -> list[str]:
    """Returns the keys, or the values of a key, that begin as a word does."""
    # bash takes = as the end of a word.
    before = [word for word in context.params.get("words") or () if isinstance(word, str)]
    if incomplete in ("", "=") and before and before[-1] in settings():
        return settings()[before[-1]]
    if len(before) > 1 and before[-1] == "=":
        return [value for value in settings().get(before[-2], []) if value.startswith(incomplete)]
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={choice}" for choice in settings().get(key, []) if choice.startswith(value)]
    return [f"{name}=" for name in settings() if incomplete and name.startswith(incomplete)]


@cache
def settings() -> dict[str, list[str]]:
    """Returns the keys of the configuration, with the values of those that are choices."""
    found = {"experiment": sorted(path.stem for path in (PACKAGE / "conf" / "experiment").glob("*.yaml"))}
    for group, annotation in _fields("textdistill.config", "RunConfig").items():
        module = _origin("textdistill.config", annotation)
        fields = _fields(module, annotation)
        found |= {f"{group}.{key}": _choices(module, kind) for key, kind in fields.items()}
        if not fields:
            found[group] = _choices(module, annotation)
    return found


@cache
def _module(name: str) -> ast.Module:
    path = PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _class(module: str, name: str) -> ast.ClassDef | None:
    return next((node for node in _module(module).body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _fields(module: str, name: str) -> dict[str, str]:
    """Returns the annotations of a dataclass by field."""
    body = node.body if (node := _class(module, name)) else []
    fields = (item for item in body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name))
    return {ast.unparse(item.target): ast.unparse(item.annotation) for item in fields}


def _origin(module: str, name: str) -> str:
    """Returns the module that defines a name which ``module`` uses."""
    for node in _module(module).body:
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            return node.module or module
    return module


def _choices(module: str, annotation: str) -> list[str]:
    """Returns the values of an annotation: a boolean, or an enum of the package."""
    name = annotation.removesuffix(" | None")
    if name == "bool":
        return ["true", "false"]
    origin = _origin(module, name)
    node = _class(origin, name) if origin.startswith("textdistill") else None
    if node is None or ast.unparse(node.bases[0] if node.bases else node) != "StrEnum":
        return []
    return [str(ast.literal_eval(item.value)) for item in node.body if isinstance(item, ast.Assign)]
