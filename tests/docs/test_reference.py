"""The reference pages: one entry for each public name, and the help text of each command.

After a change of the help, write the page of commands anew:

    TEXTDISTILL_WRITE_COMMANDS=1 python -m pytest tests/docs/test_reference.py
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest

import textdistill
from textdistill.cli.app import verb_names
from textdistill.cli.main import main

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
WRITE = "TEXTDISTILL_WRITE_COMMANDS"
HEAD = """# Command reference

The help text of each command, as `--help` prints it. A test compares this page with the program.
"""


def help_text(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.strip().splitlines())


def test_page_of_commands_is_the_help_of_the_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    sections = [("textdistill", help_text(capsys=capsys))]
    sections += [(f"textdistill {verb}", help_text(verb, capsys=capsys)) for verb in verb_names()]
    page = HEAD + "".join(f"\n## {name}\n\n```text\n{text}\n```\n" for name, text in sections)
    file = REFERENCE / "commands.md"
    if WRITE in os.environ:
        file.write_text(page, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == page, f"set {WRITE}=1 and run this test to write the page anew"


def test_page_of_python_has_every_public_name() -> None:
    entries = re.findall(r"^::: textdistill\.(\w+)$", (REFERENCE / "python.md").read_text(), re.MULTILINE)
    assert sorted(entries) == sorted(name for name in textdistill.__all__ if name != "__version__")
