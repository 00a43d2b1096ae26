"""A program in a pseudo-terminal: what it shows can be awaited, and keys typed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

CTRL_C, CTRL_D, ENTER, NEW_LINE, UP = "\x03", "\x04", "\r", "\n", "\x1b[A"
ROWS, COLUMNS = 30, 120
CURSOR_ASKED, CURSOR_TOLD = b"\x1b[6n", b"\x1b[1;1R"
_ESCAPES = re.compile(r"\x1b(\[[0-9;?>]*[A-Za-z]|\][^\x07]*\x07|[()][A-Z0-9]|[=>78]|[^A-Za-z]*$)")


class Terminal:
    """Runs ``command`` as a shell does in a window of its own. Use as a context manager."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._raw = b""
        self._from = 0  # where in the text the next wait begins

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", **environment},
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        self.theirs = theirs

    @property
    def text(self) -> str:
        """All that was shown so far, without escape sequences."""
        return _ESCAPES.sub("", self._raw.decode(errors="replace")).replace("\r", "")

    @property
    def raw(self) -> str:
        return self._raw.decode(errors="replace")

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, text: str, timeout: float = 30.0) -> str:
        """Wait until ``text`` is shown, after what was awaited before; all that was shown until then."""
        deadline = time.monotonic() + timeout
        while text not in self.text[self._from :]:
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"{text!r} was not shown. Shown was:\n{self.text}")
        shown = self.text[self._from :]
        end = shown.index(text) + len(text)
        self._from += end
        return shown[:end]

    def press_until(self, keys: str, text: str) -> None:
        """Type ``keys`` until ``text`` is shown: a signal that comes just before a program waits is only seen
        with the next key."""
        for _ in range(20):
            self.type(keys)
            with contextlib.suppress(AssertionError):
                self.wait_for(text, 1.0)
                return
        self.wait_for(text, 1.0)

    def exit_code(self, timeout: float = 30.0, *, pressing: str = "") -> int:
        """Wait until the program ends, and type ``pressing`` every second until it does."""
        deadline = time.monotonic() + timeout
        pressed = 0.0
        while self._process.poll() is None and time.monotonic() < deadline:
            if pressing and time.monotonic() - pressed > 1.0:
                pressed = time.monotonic()
                self.type(pressing)
            self._read(0.05)
        return self._process.wait(0.1)

    def echoes(self) -> bool:
        """Whether the terminal is as a shell wants it: lines, with echo."""
        mode = termios.tcgetattr(self.theirs)[3]
        return bool(mode & termios.ECHO and mode & termios.ICANON)

    def _read(self, timeout: float) -> bool:
        """Take what comes within ``timeout``; False if the other side is gone."""
        if not select.select([self._ours], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:
            return False
        for _ in range(data.count(CURSOR_ASKED)):
            os.write(self._ours, CURSOR_TOLD)
        self._raw += data
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def hang_up(self, timeout: float = 30.0) -> int:
        """Close the window; the exit code of the program."""
        for descriptor in (self.theirs, self._ours):
            os.close(descriptor)
        self._ours = self.theirs = -1
        return self._process.wait(timeout)

    def close(self) -> None:
        """End it, whatever it does. Idempotent."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for descriptor in (self._ours, self.theirs):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._ours = self.theirs = -1
