"""Work that is given up when its result is not waited for any more.

A thread cannot be stopped; the process that it waits for can.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Asking:
    """The wait for one piece of work. Usable from any thread."""

    def __init__(self) -> None:
        self.is_given_up = False
        self._lock = threading.Lock()
        self._end: Callable[[], None] | None = None

    def give_up(self) -> None:
        """The result is not wanted any more: end what runs, and let nothing more begin."""
        with self._lock:
            self.is_given_up = True
            if self._end is not None:
                self._end()

    @contextmanager
    def waiting(self, end: Callable[[], None]) -> Iterator[None]:
        """Inside, ``end`` is called when the work is given up, or at once if it was given up before."""
        with self._lock:
            self._end = end
            if self.is_given_up:
                end()
        try:
            yield
        finally:
            with self._lock:
                self._end = None


NOBODY = Asking()
"""The asker of work that is never given up."""
ASKING: ContextVar[Asking] = ContextVar("asking", default=NOBODY)
"""The asker that the current thread works for."""
