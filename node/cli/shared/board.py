"""What a command is doing, at the bottom of a terminal: bars of what is loaded or fetched, and below them one
line.

Both belong to one live display. Of two, rich ends the inner one with the outer.
"""

from __future__ import annotations

from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.spinner import Spinner
from rich.text import Text

from ....swarm.terminal_text import visible_line
from .output import console, format_bytes, shown
from .progress import progress_line

TOLD_PARTS = 10
"""Without a terminal, a transfer is told of in at most this many lines, and one."""
_CELLS = 20
"""Characters of a bar."""


class _Bar(ProgressColumn):
    """A bar that looks empty where it is, also without colours."""

    def render(self, task: Task) -> Text:
        full = int(_CELLS * task.completed / task.total) if task.total else 0
        return Text("█" * full + "░" * (_CELLS - full))


class _Amount(ProgressColumn):
    """``12.0 MB of 98.0 MB, 5.1 MB/s, 17 s left``."""

    def render(self, task: Task) -> Text:
        parts = [f"{format_bytes(task.completed)} of {format_bytes(task.total or 0)}"]
        if task.speed:
            parts.append(f"{format_bytes(task.speed)}/s")
        if task.time_remaining:
            parts.append(f"{task.time_remaining:.0f} s left")
        return Text(", ".join(parts))


class Board:
    """Use as a context manager. Without a terminal, what is waited for is told as ``progress_line`` does, and
    a transfer in a line for each tenth. Nothing is shown if not ``speak``. All texts: of anybody. From any
    thread."""

    def __init__(self, text: str, *, speak: bool) -> None:
        self.is_live = speak and console.is_terminal
        self._speak = speak
        self._line = progress_line(text, speak=speak and not self.is_live)
        self._told: tuple[str, int] = ("", 0)
        self._bars = Progress(TextColumn("{task.description}"), _Bar(), _Amount(), console=console)
        self._tasks: dict[str, TaskID] = {}
        self._spinner = Spinner("dots", _one_line(text))
        self._live = Live(get_renderable=self._render, console=console, transient=True, refresh_per_second=8)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        if self.is_live:
            self._live.start()
        self._line.start()

    def close(self) -> None:
        """Nothing is waited for any more. Idempotent."""
        self._live.stop()
        self._line.stop()

    def status(self, text: str) -> None:
        """The line below."""
        self._spinner.update(text=_one_line(text))
        self._line.update(text)

    def stage(self, text: str) -> None:
        """The same, of what begins after all transfers."""
        for kind in self._tasks:
            self._hide(kind)
        self.status(text)

    def progress(self, done: int, total: int, label: str, kind: str = "") -> None:
        """Bytes; without a ``total`` it is a line. ``kind``: which of the things that go on side by side."""
        if not total:
            self._hide(kind)
            self.status(label)
        elif self.is_live:
            self._move(done, total, label, kind)
        elif self._speak and (part := (label, done * TOLD_PARTS // total)) != self._told:
            self._told = part
            console.print(f"{shown(label)}: {100 * done // total} % of {format_bytes(total)}")

    def _move(self, done: int, total: int, label: str, kind: str) -> None:
        if kind not in self._tasks:
            self._tasks[kind] = self._bars.add_task("", visible=False)
        self._bars.update(
            self._tasks[kind], completed=done, total=total, description=shown(label), visible=done < total
        )

    def _hide(self, kind: str) -> None:
        if kind in self._tasks:
            self._bars.update(self._tasks[kind], visible=False)

    def _render(self) -> RenderableType:
        return Group(self._bars, self._spinner) if any(t.visible for t in self._bars.tasks) else self._spinner


def _one_line(text: str) -> Text:
    return Text(visible_line(text), overflow="ellipsis", no_wrap=True)
