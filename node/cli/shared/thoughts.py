"""What a model thinks before it answers, on standard error: the answer alone is on standard output."""

from __future__ import annotations

from rich.text import Text

from .output import console

THINKING = Text("thinking …", style="dim")
"""Above thoughts."""


class ThoughtLines:
    """``push`` thoughts as they come, ``end`` before what is no thought. Dim where the terminal can."""

    def __init__(self) -> None:
        self._open = False

    def push(self, text: str) -> None:
        if not self._open:
            self._open = True
            console.print(THINKING)
        console.print(Text(text, style="dim"), end="")

    def end(self) -> None:
        """Leaves a line empty. Idempotent."""
        if self._open:
            self._open = False
            console.print("\n")
