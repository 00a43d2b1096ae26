"""What a chat shows: on a terminal, as plain text, or as events for machines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Any, Protocol

from rich.console import RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from ....client import Generation
from ....swarm.terminal_text import visible
from ....swarm.types import Route
from ..shared.output import (
    SafeConsole,
    console,
    describe_error,
    events,
    print_json,
    print_text,
)
from ..shared.progress import ProgressLine, SlowLine
from ..shared.thoughts import THINKING, ThoughtLines
from .markdown import LastLines, finished, rendered

FRAMES_PER_S = 10

RouteNow = Callable[[], Route | None]
"""The route of the answer that is being made, now; None before there is one."""


class Screen(Protocol):
    """One for a whole chat. ``begin``, any number of ``thought``, ``piece`` and ``repair``, and ``end`` make
    an answer."""

    def begin(self, route: RouteNow) -> None: ...

    def thought(self, text: str) -> None:
        """What the model thinks and does not say, as it comes."""

    def piece(self, text: str) -> None: ...

    def repair(self, sentence: str, details: dict[str, Any]) -> None: ...

    def end(self, result: Generation | None, apart: Mapping[str, object]) -> None:
        """``result``: None for an answer that was stopped or failed. ``apart``: ``Reply.as_dict``."""

    def progress(self, text: str) -> None:
        """What is being loaded or waited for; "" when it is over."""

    def note(self, text: str) -> None: ...

    def error(self, error: BaseException) -> None: ...

    def show(self, event: str, data: dict[str, Any], view: RenderableType) -> None:
        """What a command was asked for: ``data`` for machines, ``view`` for people."""


class JsonScreen:
    """One object a line on standard output, each with ``event``."""

    def begin(self, route: RouteNow) -> None: ...

    def thought(self, text: str) -> None:
        print_json({"event": "thinking", "text": text})

    def piece(self, text: str) -> None:
        print_json({"event": "piece", "text": text})

    def repair(self, sentence: str, details: dict[str, Any]) -> None:
        print_json({"event": "repair", "message": sentence, **details})

    def end(self, result: Generation | None, apart: Mapping[str, object]) -> None:
        if result is not None:
            print_json({"event": "answer", **result.as_dict(), **apart})

    def progress(self, text: str) -> None: ...

    def note(self, text: str) -> None:
        print_json({"event": "notice", "message": text})

    def error(self, error: BaseException) -> None:
        message, hint = describe_error(error)
        events.print({"event": "error", "message": message, "hint": hint})

    def show(self, event: str, data: dict[str, Any], view: RenderableType) -> None:
        print_json({"event": event, **data})


class PlainScreen:
    """Answers on standard output as they come, everything else on standard error, no cursor is moved."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._waiting: ProgressLine | None = None
        self._thoughts = ThoughtLines()

    def begin(self, route: RouteNow) -> None: ...

    def thought(self, text: str) -> None:
        self._thoughts.push(text)

    def piece(self, text: str) -> None:
        self._thoughts.end()
        print_text(text)

    def repair(self, sentence: str, details: dict[str, Any]) -> None:
        self.note(sentence)

    def end(self, result: Generation | None, apart: Mapping[str, object]) -> None:
        self.piece("\n")
        if result is not None and self._is_terminal:
            self.note(summary(result))

    def progress(self, text: str) -> None:
        if self._waiting is not None and text:
            self._waiting.update(text)
        elif text:
            self._waiting = SlowLine(text)
            self._waiting.start()
        elif self._waiting is not None:
            self._waiting.stop()
            self._waiting = None

    def note(self, text: str) -> None:
        console.print(escape(text))

    def error(self, error: BaseException) -> None:
        print_problem(console, error)

    def show(self, event: str, data: dict[str, Any], view: RenderableType) -> None:
        console.print(view)


class LiveScreen:
    """Markdown on a terminal. Below the growing text it shows the speed and the route."""

    def __init__(self, console: SafeConsole | None = None) -> None:
        self._console = console or SafeConsole(highlight=False)
        self._status = self._console.status("")
        self._live: Live | None = None
        self._tail = ""  # of the answer, or of thoughts, what is not printed for good
        self._thinks = False
        self._pieces = 0
        self._first_at = 0.0
        self._route: RouteNow = lambda: None
        self._waiting = ""

    def begin(self, route: RouteNow) -> None:
        self._route, self._pieces, self._first_at, self._waiting = route, 0, 0.0, ""
        self._live = Live(
            console=self._console,
            get_renderable=self._frame,
            refresh_per_second=FRAMES_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def thought(self, text: str) -> None:
        self._take(text, thinks=True)
        *lines, rest = self._tail.split("\n")
        for line in lines:
            self._console.print(Text(line, style="dim"))
        self._tail = rest

    def piece(self, text: str) -> None:
        self._take(text, thinks=False)
        if end := finished(self._tail):
            done, self._tail = self._tail[:end], self._tail[end:]
            self._console.print(rendered(done))
            self._console.print()

    def repair(self, sentence: str, details: dict[str, Any]) -> None:
        self.note(sentence)

    def end(self, result: Generation | None, apart: Mapping[str, object]) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = None
        self._print_tail()
        self._thinks = False
        if result is not None:
            self.note(summary(result))

    def progress(self, text: str) -> None:
        if self._live is not None:
            self._waiting = text
        elif text:
            self._status.update(escape(text))
            self._status.start()
        else:
            self._status.stop()

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def error(self, error: BaseException) -> None:
        print_problem(self._console, error)

    def show(self, event: str, data: dict[str, Any], view: RenderableType) -> None:
        self._console.print(view)

    def _take(self, text: str, *, thinks: bool) -> None:
        self._first_at = self._first_at or perf_counter()
        self._pieces += 1
        self._waiting = ""
        if thinks != self._thinks:
            self._print_tail()
            self._console.print(THINKING if thinks else "")
            self._thinks = thinks
        self._tail += text

    def _print_tail(self) -> None:
        """For good."""
        rest, self._tail = self._tail, ""
        if rest.strip():
            self._console.print(self._drawn(rest))

    def _drawn(self, text: str) -> RenderableType:
        return Text(text, style="dim") if self._thinks else rendered(text)

    def _frame(self) -> RenderableType:
        """From the thread that draws."""
        seconds = perf_counter() - self._first_at if self._first_at else 0.0
        speed = f"{(self._pieces - 1) / seconds:.1f} tokens/s" if self._pieces > 1 and seconds > 0 else "…"
        parts = [self._waiting or speed, str(self._route() or ""), "Ctrl-C stops"]
        footer = Text(visible("  ·  ".join(filter(None, parts))), "dim", no_wrap=True, overflow="ellipsis")
        tail = self._tail
        return LastLines(self._drawn(tail), footer) if tail.strip() else footer


def print_problem(console: SafeConsole, error: BaseException) -> None:
    """What is wrong, and what to do."""
    message, hint = describe_error(error)
    console.print(Text(f"error: {message}", style="red"), soft_wrap=True)
    if hint:
        console.print(Text(f"       {hint}"), soft_wrap=True)


def summary(result: Generation) -> str:
    """One line on an answer: its size, speed, what the peers knew already, and its route."""
    timings = result.timings
    parts = [f"{timings.new_tokens} tokens at {timings.tokens_per_s:.1f} tokens/s"]
    parts.append(f"first after {timings.first_token_s:.2f} s")
    if timings.cached_tokens:
        parts.append(
            f"{timings.cached_tokens} of {timings.prompt_tokens} prompt tokens held by the peers already"
        )
    parts.append(str(result.route))
    if result.finish_reason == "length":
        parts.append("cut off: the limit of tokens is reached (/set max_new_tokens N)")
    return "  ·  ".join(parts)


@contextlib.contextmanager
def progress_of(screen: Screen, text: str) -> Iterator[None]:
    """Show ``text`` while something takes its time."""
    screen.progress(text)
    try:
        yield
    finally:
        screen.progress("")
