"""Fresh processes for tests that kill or signal a run."""

from __future__ import annotations

import multiprocessing

# Such a process is forked from a server that has imported the slow packages once, so it starts in milliseconds.
FRESH = multiprocessing.get_context("forkserver")
PRELOADED = [
    "pytest",
    "textdistill.commands.evaluate",
    "textdistill.commands.tune",
    "mlflow.store.tracking.sqlalchemy_store",
]
