"""Writes files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside ``path``, which replaces ``path`` at the end of the block.

    The temporary file is synced to the disk first. An error leaves an earlier file unchanged and no temporary file.
    """
    part = path.with_name(f".{path.name}.part")
    # A dead process may have left this file. A link of this name must not redirect the writing.
    part.unlink(missing_ok=True)
    try:
        yield part
        sync([part])
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync([path.parent])


def sync(paths: Iterable[Path]) -> None:
    """Waits until files, or the entries of folders, are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
