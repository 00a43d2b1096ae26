"""What is waited for, shown to people: by a spinner on a terminal, elsewhere in one line after a while."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Protocol

from ....swarm.transport.direct.with_daemon import STARTING_P2PD
from .output import console, shown

SLOW_S = 1.0
"""Without a terminal, people are told after this many seconds what is waited for."""


class ProgressLine(Protocol):
    def start(self) -> None: ...

    def update(self, text: str) -> None:
        """``text``: of anybody; from any thread."""

    def stop(self) -> None:
        """Idempotent."""


def progress_line(text: str, *, speak: bool = True) -> ProgressLine:
    """Shows ``text`` from ``start`` to ``stop``. Nothing is shown if not ``speak``."""
    if not speak:
        return _Silence()
    return _Spinner(text) if console.is_terminal else SlowLine(text)


def repair_line(*, speak: bool) -> ProgressLine:
    """Tells what an answer that has begun waits for. On a terminal the answer's line ends before."""
    return SlowLine(before="\n" if console.is_terminal else "") if speak else _Silence()


@contextlib.contextmanager
def progress_shown(text: str, *, speak: bool) -> Iterator[ProgressLine]:
    """``progress_line``, from beginning to end of the block."""
    line = progress_line(text, speak=speak)
    line.start()
    try:
        yield line
    finally:
        line.stop()


class _Silence:
    def start(self) -> None: ...

    def update(self, text: str) -> None: ...

    def stop(self) -> None: ...


class _Spinner:
    def __init__(self, text: str) -> None:
        self._status = console.status(shown(text))
        self.start, self.stop = self._status.start, self._status.stop

    def update(self, text: str) -> None:
        self._status.update(shown(text))


class SlowLine:
    """A line on standard error for each thing that is waited for longer than SLOW_S, numbers left out of
    account; and at once where a daemon is started. After ``stop`` it goes on with the next ``update``.
    ``before``: written before a line."""

    def __init__(self, text: str = "", *, before: str = "") -> None:
        self._text = text
        self._before = before
        self._said = ""
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()  # what is loaded is told from another thread

    def start(self) -> None:
        with self._lock:
            self._begin()

    def update(self, text: str) -> None:
        with self._lock:
            is_new = self._timer is None or _kind(text) != _kind(self._text)
            self._text = text
            if is_new:
                self._begin()
        if text.startswith(STARTING_P2PD):
            self._say()

    def stop(self) -> None:
        with self._lock:
            self._said = ""
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(SLOW_S, self._say)
        self._timer.daemon = True
        self._timer.start()

    def _say(self) -> None:
        with self._lock:
            if self._timer is None or _kind(self._text) == self._said:
                return
            self._said = _kind(self._text)
            console.print(f"{self._before}{shown(self._text)}")


def _kind(text: str) -> str:
    return re.sub(r"\d+", "", text)
