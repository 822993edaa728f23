"""Reads the rank of the process and chooses its log messages."""

from __future__ import annotations

import logging
import os


def quiet_logs() -> None:
    """Shows this package's log at INFO. Shows only warnings and errors of libraries."""
    import transformers

    level = logging.WARNING if rank() > 0 else logging.INFO
    logging.basicConfig(level=level, format="[%(asctime)s][%(name)s] %(message)s")
    for name in ("httpx", "httpx2", "datasets", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # MLflow's client repeats a request that failed. The failure itself is reported once.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def rank() -> int:
    """Returns the rank that torchrun gave to this process. The rank is known before torch is imported."""
    return int(os.environ.get("RANK", 0))
