"""How the command line speaks: errors in one or two lines, JSON for machines, progress for people.

All that is shown goes through here, and here text of peers, files and models becomes safe to show. Code that
prints need not take care of it.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.control import Control
from rich.markup import escape
from rich.segment import ControlType, Segment

from ....swarm.errors import OutputError, ReaderGoneError, SwarmError
from ....swarm.routing.best_route import NoRouteError
from ....swarm.terminal_text import exact, json_line, visible, visible_line
from ....swarm.types import short_peer_id
from .fitted_table import FittedTable

if TYPE_CHECKING:
    from rich.table import Table

    from ....client.hops.trace import Speculated
    from ....shards.checkpoint.name_decision import NameDecision


class SafeConsole(Console):
    """A console whose own styles and cursor movements work, and in whose texts no control character and no
    link does."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control is None:
                if style is not None and style.link is not None:
                    style = style.update_link(None)
                segment = Segment(visible(text), style)
            yield segment


console = SafeConsole(stderr=True, highlight=False, soft_wrap=True)
"""The console for progress and remarks. Standard output is kept for results."""

answers = SafeConsole(highlight=False, soft_wrap=True)
"""The console for results that are tables."""

PIPE_WIDTH = 1000
"""Columns of a table that no terminal shows: nothing of it is cut."""


def print_table(table: Table) -> None:
    """To ``answers``: in the columns of a terminal, and whole where a program reads it."""
    answers.print(table, width=answers.width if answers.is_terminal else PIPE_WIDTH)


NO_NODE: Mapping[str, object] = {"peer_id": "", "maddrs": [], "model": "", "blocks": ""}
"""The keys that every event has, for an error before there is a node."""

TELLING = 1.1
"""Tokens in the time of a plain one: where guesses allow fewer, what was reached is noise of the machine."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def print_json(value: Mapping[str, object]) -> None:
    """One JSON object on one line of standard output. Characters are escaped where needed, so that it is
    exact."""
    sys.stdout.write(json_line(value, sys.stdout.encoding or "utf-8") + "\n")
    sys.stdout.flush()


def print_text(text: str) -> None:
    """A piece of generated text to standard output, at once. On a terminal, control characters are shown and
    not obeyed; a pipe or a file gets the exact text, since a program may need it and none is hurt by it."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else exact(text))
    sys.stdout.flush()


def shown(text: str) -> str:
    """Foreign text as a part of a line of ``console.print``: no markup, no line break of its own."""
    return escape(visible_line(text))


def describe_error(error: BaseException) -> tuple[str, str]:
    """Message and hint of any error; those of ours carry both."""
    error = _first(error)
    if isinstance(error, SwarmError):
        return error.message, error.hint
    text = " ".join(str(error).split()) or type(error).__name__
    if (lack := _lack_of(error, text)) is not None:
        return lack
    return (
        f"unexpected {type(error).__name__}: {text}",
        "This is a fault of swarm-node; --log-level debug shows where.",
    )


_NO_MEMORY = ("there is no more memory for this process", "Close other programs, or allow it more memory.")
_NO_FILES = ("too many open files", "Allow more: ulimit -n 1024, or LimitNOFILE=1024 in systemd.")
_NO_DISK = ("no room on the disk", "Make room in the temporary folder and in ~/.swarm-node, or name others.")
_LACKS = {
    errno.ENOMEM: _NO_MEMORY,
    errno.EMFILE: _NO_FILES,
    errno.ENFILE: _NO_FILES,
    errno.ENOSPC: _NO_DISK,
    errno.EDQUOT: _NO_DISK,
}


def _lack_of(error: BaseException, text: str) -> tuple[str, str] | None:
    """What the machine has too little of, if that is what an unexpected error is about: no fault of ours."""
    if isinstance(error, MemoryError) or "bad_alloc" in text or "not enough memory" in text:
        return _NO_MEMORY  # the last two as C++ and torch say it, in a RuntimeError
    return _LACKS.get(error.errno or 0) if isinstance(error, OSError) else None


def exit_code_of(error: BaseException) -> int:
    error = _first(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return error.exit_code if isinstance(error, SwarmError) else 1


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class EventPrinter:
    """Prints a node's events as JSON lines; knows whether the error that ended it is among them.
    ``with_error``: what the error event of this process says besides."""

    def __init__(self) -> None:
        self.printed_error = False
        self.with_error: dict[str, object] = {}

    def print(self, event: Mapping[str, object]) -> None:
        self.printed_error = self.printed_error or event.get("event") == "error"
        print_json(event)


events = EventPrinter()
"""Standard output of this process has one reader, so it has one printer."""


def print_error(
    error: BaseException, *, as_json: bool, say: Callable[[str, Collection[str]], str] | None = None
) -> None:
    """To standard error for people; with ``as_json`` an ``error`` event on standard output as well. ``say``
    completes the commands that the hint names; not by way of peers that are gone."""
    error = _first(error)
    if isinstance(error, ReaderGoneError | KeyboardInterrupt):
        return  # nobody is there to be told, or knows it already
    message, hint = describe_error(error)
    if say is not None:
        hint = say(hint, error.gone if isinstance(error, NoRouteError) else ())
    if as_json and not events.printed_error and not isinstance(error, OutputError):
        with contextlib.suppress(OutputError):
            events.print({"event": "error", "message": message, "hint": hint, **NO_NODE, **events.with_error})
    sys.stderr.write(f"error: {visible_line(message)}\n")
    if hint:
        sys.stderr.write(f"       {visible_line(hint)}\n")


@contextlib.contextmanager
def starting_line(*, speak: bool) -> Iterator[None]:
    """A short line on a terminal while a command imports its modules for some seconds; it is erased after
    that. Unlike a spinner it hides no cursor, which a signal in these seconds would leave hidden."""
    if not speak or not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    console.print("Starting ...", end="")
    try:
        yield
    finally:
        console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))


def decision_line(decision: NameDecision) -> str:
    """How one of several models of a name was taken, with markup: loud where it is another than before."""
    return f"[{'bold yellow' if decision.is_change else 'yellow'}]{shown(decision.sentence)}[/]"


def plural(count: int, noun: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def route_table(hops: list[dict[str, Any]]) -> FittedTable:
    """The route an answer took, a line a hop. Hops in a chain have no ``wire``: only its sum is known."""
    table = FittedTable("Route", gap=1)
    table.add_column("peer")
    table.add_column("blocks")
    for heading in ("ms/token", "queue", "compute", "codec", "wire", "sent", "received"):
        table.add_column(heading, justify="right")
    for hop in hops:
        table.add_row(
            shown(short_peer_id(hop["peer_id"], hop.get("name", ""))),
            hop["blocks"],
            *(f"{hop[key]:.2f}" for key in ("ms_per_token", "queue_ms", "compute_ms", "codec_ms")),
            f"{hop['wire_ms']:.2f}" if hop["wire_ms"] else "-",
            format_bytes(hop["bytes_sent"]),
            format_bytes(hop["bytes_received"]),
        )
    return table


def drafts_line(drafts: Speculated, new_tokens: int, decode_s: float, *, has_draft: bool = False) -> str:
    """What drafts brought; "" if there were none, and no model to make them (``has_draft``)."""
    if not drafts.drafted:
        return "Nothing was drafted: no draft promised to save time." if has_draft else ""
    line = (
        f"{drafts.accepted} of {drafts.drafted} guesses were right: "
        f"{new_tokens - 1} tokens in {drafts.passes} passes through the peers"
    )
    reached, most = drafts.tokens_per_trip(new_tokens, decode_s), drafts.most_per_trip(new_tokens)
    if not reached or most < TELLING:
        return line
    share = min(1.0, reached / most)
    trip = f"{reached:.1f} in the time of a plain token ({drafts.trip_s * 1000:.0f} ms)"
    return f"{line}; {trip}, {share:.0%} of what these guesses allow"
