"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write beside ``path``; at the end of the block it is synced and takes the name ``path``.

    An error leaves an earlier file as it was, and no temporary file.
    """
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # left by a process that died; a link there must not be written through
    try:
        yield part
        sync([part])
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync([path.parent])


def sync(paths: Iterable[Path]) -> None:
    """Wait until files, or the entries of folders, are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
