"""Ctrl-C for an answer, and not for the program that shows it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self


class StopKey:
    """While it is entered, Ctrl-C ends the answer: at once where a piece is waited for, and after what is
    being drawn otherwise, so that no half-drawn line stays. ``catches`` False leaves Ctrl-C as it is."""

    def __init__(self, catches: bool = True) -> None:
        self.pressed = False
        self._catches = catches
        self._waiting = False
        self._before: Any = None

    def until_pressed(self, pieces: Iterator[str]) -> Iterator[str]:
        while not self.pressed:
            try:
                self._waiting = True
                try:
                    piece = next(pieces)
                finally:
                    self._waiting = False
            except StopIteration:
                return
            except KeyboardInterrupt:
                if not self._catches:
                    raise
                return
            yield piece

    def __enter__(self) -> Self:
        if self._catches:
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._catches:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        if self._waiting:
            raise KeyboardInterrupt
