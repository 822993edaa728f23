"""Reports errors of the command line: one line on standard error and an exit status."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

# A user can correct these errors. transformers and datasets raise OSError for a missing model or dataset.
USER_ERRORS = (ValueError, OSError, FloatingPointError)


def fail(message: str, status: int = 2) -> NoReturn:
    """Prints the message on one line and exits."""
    # Messages of libraries may have several lines.
    print(f"textdistill: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def guarded(work: Callable[..., T], *arguments: Any, debug: bool, failed: Callable[[str, int], NoReturn] = fail) -> T:
    """Runs ``work`` and passes an error to ``failed``, with status 2 if the user can correct the error.

    Args:
        work: the function to run.
        *arguments: its arguments.
        debug: whether to print the traceback of an error as well.
        failed: the function that takes the message and the exit status.

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
