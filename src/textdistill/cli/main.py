"""The command ``textdistill``: reads a line, runs its verb, and reports an error in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from textdistill import __version__
from textdistill.cli import app as application
from textdistill.cli import runs, sets
from textdistill.cli.errors import fail
from textdistill.core.suggestions import did_you_mean, nearest

# The verbs register when their modules are imported.
__all__ = ["main", "runs", "sets"]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the ``textdistill`` command. The exit status is 2 for an error that the user can correct."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    application.debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    if arguments[0] == "--version":
        print(f"textdistill {__version__}")
        return
    _check_verb(arguments[0])
    try:
        application.app(arguments, prog_name="textdistill", standalone_mode=False)
    except typer.TyperException as error:
        fail(_explanation(error))


@application.app.callback()
def textdistill(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error as well.")] = False,
) -> None:
    """Distils a text-classification dataset into a few learned samples that fine-tune a transformer in one step."""


def _check_verb(verb: str) -> None:
    verbs = application.verb_names()
    if verb.startswith("-") or verb in verbs:
        return
    if os.path.exists(verb):
        fail(f"the verb is missing; did you mean 'textdistill distill {verb}'?")
    hint = did_you_mean(nearest(verb, [*verbs, "--help"])) or f"; the verbs are {', '.join(verbs)}"
    fail(f"there is no verb {verb!r}{hint}")


def _explanation(error: typer.TyperException) -> str:
    """Returns the message of an error in the line, with the nearest option or the usage."""
    context: typer.Context | None = getattr(error, "ctx", None)
    if context is None:
        return _as_clause(error.format_message())
    if name := getattr(error, "option_name", ""):
        options = [option for parameter in context.command.params for option in parameter.opts]
        if name not in options:
            return application.unknown_option(context.info_name or "", name, options)
    message = error.format_message().replace("Value error, ", "")
    usage = " ".join(context.get_usage().split()).removeprefix("Usage: ")
    return f"{_as_clause(message)}; usage: {usage}"


def _as_clause(sentence: str) -> str:
    return f"{sentence[:1].lower()}{sentence[1:].rstrip('.')}"
