"""The process: its rank, and which log messages it shows."""

from __future__ import annotations

import logging
import os


def quiet_logs() -> None:
    """Shows the log of this package at INFO, and of libraries the warnings and errors."""
    import transformers

    level = logging.WARNING if rank() > 0 else logging.INFO
    logging.basicConfig(level=level, format="[%(asctime)s][%(name)s] %(message)s")
    for name in ("httpx", "httpx2", "datasets", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def rank() -> int:
    """The rank that torchrun gave to this process, which is known before torch is imported."""
    return int(os.environ.get("RANK", 0))
