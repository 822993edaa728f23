"""Errors of the command line: one line on standard error, and an exit status."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

# Errors that a user can correct. transformers and datasets raise OSError for a model or dataset that they cannot find.
USER_ERRORS = (ValueError, OSError, FloatingPointError)


def fail(message: str, status: int = 2) -> NoReturn:
    """Prints the message and exits."""
    # Libraries write messages of several lines.
    print(f"textdistill: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def guarded(work: Callable[..., T], *arguments: Any, debug: bool, failed: Callable[[str, int], NoReturn] = fail) -> T:
    """Runs ``work``. An error ends in ``failed`` with one line, and status 2 if the user can correct it.

    Args:
        work: the function to run.
        *arguments: its arguments.
        debug: also prints the traceback of an error.
        failed: takes the message and the exit status.

    """
    try:
        return work(*arguments)
    except KeyboardInterrupt as error:
        print(f"textdistill: {str(error) or 'interrupted'}", file=sys.stderr)
        sys.exit(128 + getattr(error, "signum", signal.SIGINT))
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        if isinstance(error, USER_ERRORS):
            failed(str(error), 2)
        failed(f"unexpected {type(error).__name__}: {error} (--debug shows where; in a run, run.log too)", 1)
