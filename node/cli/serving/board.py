"""The bottom of a terminal while a node runs: bars of what is loaded or fetched, and below them one line.

Both belong to one live display. Of two, rich ends the inner one with the outer.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.spinner import Spinner
from rich.text import Text

from ..shared.output import console, format_bytes, shown

_CELLS = 20
"""Characters of a bar."""


class _Bar(ProgressColumn):
    """A bar that looks empty where it is, also without colours."""

    def render(self, task: Task) -> Text:
        full = int(_CELLS * task.completed / task.total) if task.total else 0
        return Text("█" * full + "░" * (_CELLS - full))


class _Amount(ProgressColumn):
    """``12.0 MB of 98.0 MB, 5.1 MB/s``."""

    def render(self, task: Task) -> Text:
        if not task.total:
            return Text("")
        speed = f", {format_bytes(task.speed)}/s" if task.speed else ""
        return Text(f"{format_bytes(task.completed)} of {format_bytes(task.total)}{speed}")


class Board:
    """Use as a context manager. Nothing is shown if not ``speak``, or where there is no terminal. From any
    thread."""

    def __init__(self, *, speak: bool) -> None:
        self.is_shown = speak and console.is_terminal
        self._bars = Progress(TextColumn("{task.description}"), _Bar(), _Amount(), console=console)
        self._tasks: dict[str, TaskID] = {}
        self._spinner = Spinner("dots", "Starting ...")
        self._live = Live(get_renderable=self._render, console=console, transient=True, refresh_per_second=8)

    def __enter__(self) -> Board:
        if self.is_shown:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def status(self, text: str) -> None:
        """``text``: ours, without markup."""
        self._spinner.update(text=Text(text, overflow="ellipsis", no_wrap=True))

    def transfer(self, kind: str, done: int, total: int, label: str) -> None:
        """How far one of the things is that may go on side by side. ``label``: of anybody."""
        if kind not in self._tasks:
            self._tasks[kind] = self._bars.add_task(kind, total=None, visible=False)
        self._bars.update(
            self._tasks[kind],
            completed=done,
            total=total,
            description=shown(label),
            visible=done < total or not total,
        )

    def _render(self) -> RenderableType:
        return Group(self._bars, self._spinner) if any(t.visible for t in self._bars.tasks) else self._spinner
