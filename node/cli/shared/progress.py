"""What is waited for, shown to people: by a spinner on a terminal, elsewhere in one line after a while."""

from __future__ import annotations

import threading
from typing import Protocol

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
    """One line on standard error, with what is done then."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._timer = threading.Timer(SLOW_S, self._say)
        self._timer.daemon = True

    def start(self) -> None:
        self._timer.start()

    def update(self, text: str) -> None:
        self._text = text

    def stop(self) -> None:
        self._timer.cancel()

    def _say(self) -> None:
        console.print(shown(self._text))
