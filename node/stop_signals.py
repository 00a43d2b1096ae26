"""Ctrl-C and SIGTERM, on every platform."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def on_stop_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call ``stop`` in the event loop; a second one calls it again."""
    loop = asyncio.get_running_loop()

    def wake(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number in _SIGNALS:
            loop.add_signal_handler(number, stop)
        of_loop = True
    except NotImplementedError:  # Windows: its loops know no signals
        of_loop = False
        for number in _SIGNALS:
            signal.signal(number, wake)
    try:
        yield
    finally:
        for number in _SIGNALS:
            if of_loop:
                loop.remove_signal_handler(number)
            else:
                signal.signal(number, before[number])
