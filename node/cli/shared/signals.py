"""The signals that ask a process to end: Ctrl-C, SIGTERM, and the hang-up of its terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any

HANG_UP = getattr(signal, "SIGHUP", None)
"""None on Windows, which does not have this signal."""


def _heeded(*numbers: int | None) -> list[int]:
    """The signals that are handled: a hang-up that the process was told to ignore, as by nohup, stays
    ignored."""
    ignored = HANG_UP is not None and signal.getsignal(HANG_UP) is signal.SIG_IGN
    return [number for number in numbers if number is not None and not (number == HANG_UP and ignored)]


@contextlib.contextmanager
def on_stop_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a hang-up call ``stop`` in the event loop; a second one calls it again. But a
    hang-up after another signal is nothing new: shells send several, and service managers one after SIGTERM.
    """
    told = False

    def heed(number: int) -> None:
        nonlocal told
        if not (told and number == HANG_UP):
            told = True
            stop()

    try:
        with _in_loop(_heeded(signal.SIGINT, signal.SIGTERM, HANG_UP), heed):
            yield
    finally:
        if told and HANG_UP is not None:
            signal.signal(HANG_UP, signal.SIG_IGN)  # one that is late must not change the exit code


def at_end_of_input(stop: Callable[[], object]) -> None:
    """Have ``stop`` called in the running event loop when standard input ends, as when the process that holds
    its other end is gone. What is read is thrown away."""
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()

    def wait() -> None:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the loop has ended before
            while os.read(descriptor, 4096):
                pass
            loop.call_soon_threadsafe(stop)

    threading.Thread(target=wait, name="end of input", daemon=True).start()


async def until_ended(command: Coroutine[Any, Any, int | None]) -> int:
    """Run a command in the event loop; returns its exit code, 0 unless it says another. SIGTERM and a hang-up
    cancel it, so that it closes what it opened, and their exit code is that of a program that such a signal
    ended."""
    running = asyncio.ensure_future(command)
    ended_by: list[int] = []

    def end(number: int) -> None:
        if not (ended_by and number == HANG_UP):
            ended_by.append(number)
            running.cancel()

    try:
        with _in_loop(_heeded(signal.SIGTERM, HANG_UP), end):
            return await running or 0
    except asyncio.CancelledError:
        if not ended_by:
            raise
        return 128 + ended_by[0]


@contextlib.contextmanager
def dying_of_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the process where it is, as a signal does: for times in which nothing is open. Raised as an
    exception, it could get lost in what Python does while it imports."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def exiting_on_end_signals() -> Iterator[None]:
    """The same for a command without an event loop in its main thread: SystemExit is raised there."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    with _handled(_heeded(signal.SIGTERM, HANG_UP), end):
        yield


@contextlib.contextmanager
def _in_loop(numbers: list[int], heed: Callable[[int], None]) -> Iterator[None]:
    """``heed`` is called in the running event loop for each such signal."""
    loop = asyncio.get_running_loop()

    def wake(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(heed, number)

    # Not the loop's own handlers: those of the innermost caller count, and after it those of before.
    with _handled(numbers, wake):
        yield


@contextlib.contextmanager
def _handled(numbers: list[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            if signal.getsignal(number) is handler:  # what was set meanwhile is to stay
                signal.signal(number, former)
