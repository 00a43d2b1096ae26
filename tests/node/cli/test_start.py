"""The first seconds of a command, in which it is imported: a word at once, and Ctrl-C counts."""

from __future__ import annotations

import inspect
import io
import os
import signal
import subprocess
import sys

import pytest

from swarm_node.node.cli import __main__ as entry
from swarm_node.node.cli import main
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.shared import output
from swarm_node.node.cli.shared.output import SafeConsole, starting_line

INTERRUPTED_AT_ONCE = """
import os, signal, sys
from importlib.abc import MetaPathFinder
from swarm_node.node.cli.__main__ import main

class Interrupting(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "swarm_node.node.cli.main":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
main()
"""

CALLS = [
    ["bootstrap"],
    ["serve", "--model", "x"],
    ["generate", "hi"],
    ["gateway"],
    ["invite"],
    ["models"],
    ["plan", "--model", "x"],
    ["status"],
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: str(call[0]))
def test_a_command_is_imported_before_there_is_an_event_loop(call: list[str]) -> None:
    """In a loop Ctrl-C only cancels what waits, and imports do not."""
    command = main._command(build_parser().parse_args(call))
    try:
        assert inspect.iscoroutine(command)
        assert command.cr_code.co_filename != main.__file__
    finally:
        command.close()


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, speak: bool = True) -> str:
    written = io.StringIO()
    monkeypatch.setattr(
        output, "console", SafeConsole(file=written, force_terminal=terminal, _environ={"TERM": "xterm"})
    )
    with starting_line(speak=speak):
        assert ("Starting" in written.getvalue()) == (terminal and speak)
    return written.getvalue()


def test_a_terminal_sees_a_word_that_goes_again_and_keeps_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)
    assert text.endswith("\r\x1b[2K")
    assert "\x1b[?25l" not in text


def test_nobody_else_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=False) == shown(monkeypatch, terminal=True, speak=False) == ""


INTERRUPTED_IN_AN_IMPORT = """
import os, signal, sys, weakref
from importlib.abc import MetaPathFinder
from swarm_node.node.cli.__main__ import main

class Thing: pass

class Interrupting(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "swarm_node.node.cli.network.status":
            thing = Thing()
            weakref.finalize(thing, os.kill, os.getpid(), signal.SIGINT)
            del thing  # what is raised in a finalizer is ignored

sys.meta_path.insert(0, Interrupting())
sys.exit(main(["status", "--no-mdns", "--pure-python"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="its signals are others")
def test_ctrl_c_while_a_command_is_imported_is_never_lost() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IN_AN_IMPORT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, b"")


@pytest.mark.skipif(os.name == "nt", reason="its signals are others")
def test_ctrl_c_before_the_command_line_is_there_ends_without_a_word() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_ONCE], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, b"")


def test_an_ignored_ctrl_c_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(main, "main", lambda _: int(signal.getsignal(signal.SIGINT) is signal.SIG_IGN))
        assert entry.main() == 1
    finally:
        signal.signal(signal.SIGINT, before)
