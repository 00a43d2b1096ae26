"""Keys that are typed while no editor reads them: before a chat begins, and while an answer comes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def held_keys(held: bool = True) -> Iterator[None]:
    """The terminal keeps what is typed for the editor, and shows none of it meanwhile. Ctrl-C still works.

    As a shell leaves the terminal, Enter would reach the editor as the line feed that begins a new line of
    a message, and the keys would be shown in the middle of what is drawn. Nothing happens without ``held``
    and where standard input is no terminal."""
    try:
        import termios

        before = termios.tcgetattr(sys.stdin) if held else None
    except (ImportError, OSError, ValueError):  # Windows; no terminal; a closed file
        before = None
    if before is None:
        yield
        return
    input_modes, output_modes, control_modes, local_modes, *others = before
    local_modes &= ~(termios.ECHO | termios.ICANON)
    quiet = [input_modes & ~termios.ICRNL, output_modes, control_modes, local_modes, *others]
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
