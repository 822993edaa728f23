"""The dependencies that pyproject.toml declares are the packages that the source code imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)

# Packages of these extras are loaded by another package: Hydra finds its launchers, and torch.onnx finds onnx.
LOADED_BY_OTHERS = {"sweep", "ray", "onnx"}
# Only an extra installs these packages, so the code imports them inside the function that needs them.
OPTIONAL = {"tune"}
DEVELOPMENT = {"dev", "docs"}
# Not in constraints.txt: pyproject.toml explains why the ray extra cannot be installed beside it.
UNPINNED = {"ray"}


def distribution(name: str) -> str:
    """A distribution's name in the spelling that all indexes treat as equal."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    """The distributions that requirement lines name, without versions, extras and this package itself."""
    declared = {distribution(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}
    return declared - {PROJECT["name"]}


def imported() -> set[str]:
    """The distributions that any module in src/ imports, wherever in the module the import stands."""
    packages = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                packages |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} has a relative import"
                packages.add(node.module.partition(".")[0])
    installed = packages_distributions()
    # Several distributions may fill one package; the one without a suffix is the one to declare.
    return {
        distribution(min(installed[package], key=len))
        for package in packages - sys.stdlib_module_names - {PROJECT["name"]}
    }


def test_declared_dependencies_are_those_imported() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = names(PROJECT["dependencies"])
    optional = set().union(*(names(extras[extra]) for extra in OPTIONAL))
    assert not declared & optional
    assert sorted(declared | optional) == sorted(imported())


def test_every_extra_is_imported_loaded_by_others_or_for_development() -> None:
    assert set(PROJECT["optional-dependencies"]) == LOADED_BY_OTHERS | OPTIONAL | DEVELOPMENT


def test_constraints_pin_every_dependency() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = names(PROJECT["dependencies"]).union(
        *(names(extras[extra]) for extra in extras if extra not in UNPINNED)
    )
    assert declared <= {distribution(name) for name in PINS}
