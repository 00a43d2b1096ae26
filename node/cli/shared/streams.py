"""Standard input, output and error of a process, with any file, terminal or program at their other end.

They may be closed from the start, lead to a full disk, to a reader that left or to one that never reads, and
take only some characters. For a command whose work is its output, a standard output that cannot be written
ends it, by an error of ours. Remarks on standard error are less: what cannot be written is dropped. A node
waits for neither: a thread writes for it, from a queue of bounded size, and what is lost is counted and said
once it can be.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from ....swarm.errors import HungUpError, OutputError, ReaderGoneError
from ....swarm.terminal_text import json_line
from .output import NO_NODE

MOST_WAITING_BYTES = 256 * 1024
"""At most this many bytes of a node's output wait to be read; more is dropped."""
MOST_WAITING = 4096
"""The same, in pieces: each takes memory beyond its bytes."""
CLOSE_S = 1.0
"""Seconds that a slow reader has at the end of a node to take the rest."""

_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ESHUTDOWN, errno.ENOTCONN)

Send = Callable[[bytes], None]


def open_closed_descriptors() -> None:
    """Open what is closed of descriptors 0 to 2 on the null device. Otherwise the next file or socket gets
    such a number: libraries then write remarks into it, or fail."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            stream = os.fdopen(number, mode, encoding="utf-8", errors="replace", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


class StandardStreams:
    """While open, ``sys.stdout`` and ``sys.stderr`` never fail of a character, and fail otherwise as said
    above: ``sys.stdout`` by an OutputError, ``sys.stderr`` never. Streams that are not the process's own,
    such as a test's, are left alone."""

    def __enter__(self) -> Self:
        open_closed_descriptors()
        self._before = sys.stdout, sys.stderr
        self._queues: list[WriterQueue] = []
        self._wrapped = {name: _raw_of(getattr(sys, name)) for name in ("stdout", "stderr")}
        self._wrap("stdout", answers_to)
        self._wrap("stderr", remarks_to)
        return self

    def never_wait(self) -> None:
        """From here on this is a node: neither stream makes it wait or fail."""
        self._wrap("stdout", lambda raw: self._queue(raw, lost_event))
        self._wrap("stderr", lambda raw: self._queue(raw, lost_remark))

    def _queue(self, raw: io.RawIOBase, note: Callable[[int], bytes]) -> Send:
        queue = WriterQueue(lambda data: write_all(raw, data), note)
        self._queues.append(queue)
        return queue.put

    def _wrap(self, name: str, door: Callable[[io.RawIOBase], Send]) -> None:
        if (raw := self._wrapped[name]) is not None:
            encoding = getattr(self._before[name == "stderr"], "encoding", None) or "utf-8"
            setattr(sys, name, text_stream(raw, door(raw), encoding))

    def __exit__(self, *_: object) -> None:
        for queue in self._queues:
            queue.close()
        sys.stdout, sys.stderr = self._before


def text_stream(raw: io.RawIOBase, send: Send, encoding: str) -> io.TextIOWrapper:
    """A text layer over ``raw`` that writes by ``send``, at once."""
    door: Any = _Door(raw, send)  # what is written through needs no buffer
    return io.TextIOWrapper(door, encoding=encoding, errors="replace", write_through=True)


def answers_to(raw: io.RawIOBase) -> Send:
    """Raises ReaderGoneError if the reader has left, OutputError if it cannot be written for another
    reason."""
    terminal = raw.isatty()  # asked before it is closed: after that it says no

    def send(data: bytes) -> None:
        try:
            write_all(raw, data)
        except OSError as error:
            if terminal and error.errno == errno.EIO:
                raise HungUpError("the terminal was closed") from None
            if error.errno in _GONE:
                raise ReaderGoneError("nobody reads standard output any more") from None
            raise OutputError(
                f"cannot write standard output: {error.strerror or error}", hint="The output is not complete."
            ) from None

    return send


def remarks_to(raw: io.RawIOBase) -> Send:
    """Never raises an OSError."""

    def send(data: bytes) -> None:
        try:
            write_all(raw, data)
        except OSError:
            pass  # there is no other place to say it

    return send


def write_all(raw: io.RawIOBase, data: bytes) -> None:
    """Waits if the other end is not ready, also on a non-blocking descriptor."""
    left = memoryview(data)
    while left:
        written = raw.write(left)
        if written is None:
            select.select([], [raw], [])
        else:
            left = left[written:]


def lost_remark(lines: int) -> bytes:
    return f"({lines} lines could not be written here)\n".encode()


def lost_event(lines: int) -> bytes:
    return (json_line({"event": "events_lost", "count": lines, **NO_NODE}) + "\n").encode()


class WriterQueue:
    """``put`` hands bytes to a thread that writes them, and never waits for it nor fails. ``note``: the text
    in place of a number of lost lines. From any thread."""

    def __init__(self, write: Send, note: Callable[[int], bytes]) -> None:
        self._write = write
        self._note = note
        self._changed = (
            threading.Condition()
        )  # re-entrant: what a collector's finaliser says comes in between
        self._waiting: deque[bytes | int] = deque()  # an int: this many lines were lost here
        self._waiting_bytes = 0
        self._closing = False
        self._broken_line = False
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def put(self, data: bytes) -> None:
        with self._changed:
            full = self._waiting_bytes + len(data) > MOST_WAITING_BYTES or len(self._waiting) >= MOST_WAITING
            if self._closing:
                return
            if not full:
                self._waiting.append(data)
                self._waiting_bytes += len(data)
            elif self._waiting and isinstance(self._waiting[-1], int):
                self._waiting[-1] += data.count(b"\n")
            else:
                self._waiting.append(data.count(b"\n"))
            self._changed.notify()

    def close(self) -> None:
        """Write what is still waiting, for CLOSE_S at most. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        lost = 0
        while (piece := self._next()) is not None:
            lost += piece if isinstance(piece, int) else 0
            if lost and self._written(self._note(lost)):
                lost = 0
            if isinstance(piece, bytes) and (lost or not self._written(piece)):
                lost += piece.count(b"\n")

    def _next(self) -> bytes | int | None:
        """What comes next; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            piece = self._waiting.popleft()
            if isinstance(piece, bytes):
                self._waiting_bytes -= len(piece)
            return piece

    def _written(self, data: bytes) -> bool:
        try:
            self._write(b"\n" + data if self._broken_line else data)
        except OSError:
            self._broken_line = True  # a part of it may be there
            return False
        self._broken_line = False
        return True


class _Door(io.RawIOBase):
    """Where the text layer of a standard stream writes to. ``raw``: the stream itself."""

    def __init__(self, raw: io.RawIOBase, send: Send) -> None:
        self._raw = raw
        self._send = send

    def write(self, data: Any) -> int:
        self._send(bytes(data))
        return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()


def _raw_of(stream: Any) -> io.RawIOBase | None:
    """The unbuffered layer of a standard stream of this process; None of another stream."""
    if stream is not sys.__stdout__ and stream is not sys.__stderr__:
        return None
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw if isinstance(raw, io.RawIOBase) else None
