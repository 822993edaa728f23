"""Prints the structure of src/textdistill and fails where it breaks the limits below (``make lint`` runs it)."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "textdistill"
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_FLOORS, MAX_UNTYPED_LINES, MAX_README_LINES = 400, 60, 10, 25, 150
# Functions that may be longer, as "path:name", with the reason. At most five.
LONG_FUNCTIONS: dict[str, str] = {}
UNTYPED = re.compile(r"(dict|Mapping)\[str, Any\]")

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def module_name(path: Path) -> str:
    """The dotted name of a file's module."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): tree for path, tree in TREES.items()}


def functions() -> Iterator[tuple[int, str]]:
    """Lines and place of every function, methods and nested functions included."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.end_lineno - node.lineno + 1, f"{path.relative_to(PACKAGE)}:{node.name}"


def executed(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when a module is imported: none in a function or under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from executed(ast.Module(child.orelse, []))
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from executed(child)


def imported(module: str) -> set[str]:
    """The modules of the package that a module imports when it is imported."""
    names = set()
    for statement in executed(MODULES[module]):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        else:
            names |= {statement.module, *(f"{statement.module}.{alias.name}" for alias in statement.names)}
    # Empty __init__ files add no floor.
    return {name for name in names & set(MODULES) if MODULES[name].body} - {module}


@cache
def chain(module: str) -> tuple[str, ...]:
    """The longest chain of imports that starts with a module."""
    return (module, *max((chain(name) for name in sorted(imported(module))), key=len, default=()))


def main() -> int:
    """Prints the report. Returns 1 where a limit is broken, else 0."""
    broken = []
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    for path, count in lines.items():
        print(f"{count:5} {path.relative_to(PACKAGE)}")
        if count > MAX_FILE_LINES:
            broken.append(f"{path.relative_to(ROOT)} has {count} lines, at most {MAX_FILE_LINES} are allowed")
    print(f"{sum(lines.values()):5} in all\n\nLongest functions:")

    ranked = sorted(functions(), reverse=True)
    print(*(f"{count:5} {name}" for count, name in ranked[:10]), sep="\n")
    long = {name: count for count, name in ranked if count > MAX_FUNCTION_LINES}
    for name in long.keys() - LONG_FUNCTIONS.keys():
        broken.append(f"{name} has {long[name]} lines, at most {MAX_FUNCTION_LINES} are allowed")
    for name in LONG_FUNCTIONS.keys() - long.keys():
        broken.append(f"{name} is no long function; remove it from LONG_FUNCTIONS")
    if len(LONG_FUNCTIONS) > 5:
        broken.append(f"LONG_FUNCTIONS has {len(LONG_FUNCTIONS)} entries, at most 5 are allowed")

    longest = max((chain(module) for module in MODULES), key=len)
    print(f"\nLongest chain of imports, {len(longest)} floors:", *longest, sep="\n  ")
    if len(longest) > MAX_FLOORS:
        broken.append(f"the longest chain of imports has {len(longest)} floors, at most {MAX_FLOORS} are allowed")

    untyped = sum(len(UNTYPED.findall(line)) > 0 for path in FILES for line in path.read_text().splitlines())
    print(f"\nLines with dict[str, Any] or Mapping[str, Any]: {untyped}")
    if untyped > MAX_UNTYPED_LINES:
        broken.append(f"{untyped} lines have dict[str, Any] or Mapping[str, Any], at most {MAX_UNTYPED_LINES} may")

    readme = len((ROOT / "README.md").read_text().splitlines())
    print(f"Lines of README.md: {readme}")
    if readme > MAX_README_LINES:
        broken.append(f"README.md has {readme} lines, at most {MAX_README_LINES} are allowed")

    print(*(f"error: {message}" for message in broken), sep="\n", file=sys.stderr)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
