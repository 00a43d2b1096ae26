"""What the command line prints: our own colours work, and nobody else's."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable

import pytest
from rich.live import Live
from rich.markdown import Markdown
from rich.markup import escape
from rich.panel import Panel
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from swarm_node.node.cli.shared.output import (
    SafeConsole,
    describe_error,
    print_error,
    print_json,
    print_text,
    route_table,
)
from swarm_node.swarm.errors import UsageError

HOSTILE = "evil\x1b]0;title\x07\x1b[2J\x9b31m\u202e\r"
_OURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def table_of(text: str) -> Table:
    table = Table(title=escape(text))
    table.add_column(escape(text))
    table.add_row(escape(text))
    table.add_row(Text(text))
    return table


def live(console: SafeConsole) -> None:
    with Live(Text(HOSTILE), console=console, redirect_stdout=False, redirect_stderr=False):
        pass


def status(console: SafeConsole) -> None:
    with console.status(escape(HOSTILE)):
        pass


def progress(console: SafeConsole) -> None:
    with Progress(TextColumn("{task.description}"), console=console) as shown:
        shown.add_task(escape(HOSTILE), total=1)


@pytest.mark.parametrize(
    "show",
    [
        lambda console: console.print(f"[red]{escape(HOSTILE)}[/]"),
        lambda console: console.print(HOSTILE, markup=False),
        lambda console: console.print(Text(HOSTILE, style="red"), soft_wrap=True),
        lambda console: console.print(table_of(HOSTILE)),
        lambda console: console.print(Panel(Markdown(HOSTILE))),
        lambda console: console.print(Markdown("evil [here](https://evil.example)")),
        live,
        status,
        progress,
    ],
)
def test_whatever_is_printed_no_text_controls_the_terminal(show: Callable[[SafeConsole], None]) -> None:
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=True, width=200, highlight=False)
    show(console)
    assert "evil" in out.getvalue()
    left = _OURS.sub("", out.getvalue())
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", left.replace("\r", ""))
    assert "\x1b[2J" not in out.getvalue()
    assert "\x1b]" not in out.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_generated_text_is_safe_on_a_terminal_and_exact_in_a_pipe(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stdout", out)
    for piece in HOSTILE:  # however it is cut
        print_text(piece)
    assert out.getvalue() == ("evil␛]0;title␇␛[2J\ufffd31m\ufffd␍" if is_terminal else HOSTILE)


def test_errors_and_json_carry_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(UsageError(f"no model {HOSTILE}", hint=HOSTILE), as_json=True)
    print_json({"text": HOSTILE})
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1]) == {"text": HOSTILE}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out + err)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("std::bad_alloc"), "memory"),
        (ExceptionGroup("tasks", [OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))]), "memory"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "open files"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x"), "disk"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_ours(error: BaseException, said: str) -> None:
    message, hint = describe_error(error)
    assert said in message
    assert hint
    assert "fault" not in hint


def test_other_errors_that_nobody_expected_are_faults_of_ours() -> None:
    for error in (OSError(errno.EINVAL, "Invalid argument"), OSError("no number"), RuntimeError("x")):
        assert "fault of swarm-node" in describe_error(error)[1]


def test_of_hops_in_a_chain_no_wire_is_shown() -> None:
    """It is known of all of their links together only."""
    keys = ("ms_per_token", "queue_ms", "compute_ms", "codec_ms", "wire_ms", "bytes_sent", "bytes_received")
    hop = {"peer_id": "a", "blocks": "0-4", **dict.fromkeys(keys, 1.25)}
    table = route_table([hop, {**hop, "wire_ms": 0.0}])
    (wire,) = (column for column in table.columns if column.header == "wire")
    assert list(wire.cells) == ["1.25", "-"]
