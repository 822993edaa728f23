"""SIGINT and SIGTERM during training: noted when they arrive, and raised where the state of the run is complete."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM ended the training.

    Attributes:
        signum: the signal.
        whole: whether the state of the run was complete. A second signal may come in the middle of a step.

    """

    def __init__(self, signum: int, message: str = "", whole: bool = True) -> None:
        super().__init__(message)
        self.signum, self.whole = signum, whole


class Interrupts:
    """Handles SIGINT and SIGTERM inside a block: notes the first signal and raises a second one at once."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self._raise_at_once = False

    def __enter__(self) -> Interrupts:
        # Only the main thread may set handlers; in other threads signals keep their effect.
        main = threading.current_thread() is threading.main_thread()
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if kind is None and self.noted:
            self.stop()

    @property
    def noted(self) -> bool:
        """Whether a signal has arrived."""
        return self._signum is not None

    def stop(self) -> NoReturn:
        """Raises Interrupted for the signal that arrived here or in another process of the run."""
        raise Interrupted(self._signum or signal.SIGTERM)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raises a signal inside the block as soon as it arrives; the block must leave the state complete."""
        if self.noted:
            self.stop()
        self._raise_at_once = True
        try:
            yield
        finally:
            self._raise_at_once = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        second = self._signum is not None
        self._signum = signum
        if second or self._raise_at_once:
            raise Interrupted(signum, whole=self._raise_at_once)
