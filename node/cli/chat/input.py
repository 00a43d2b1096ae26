"""Where a chat's messages are typed: an editor with prompt_toolkit, readline without it, or a pipe.

Each source has ``read() -> str | None``: a whole message, None at the end of the input. KeyboardInterrupt
passes through.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, Protocol

from ....swarm.errors import UsageError
from ....swarm.runtime.state_files import replace_file, state_folder
from ..shared.arguments import decoded
from ..shared.output import print_text
from .commands import COMMANDS, LineJoiner

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""More text than any model's context holds; bounds what standard input may pour in."""
KEPT = 1000
"""Messages of the history that are kept."""
PROMPT, MORE = "> ", ". "


class InputSource(Protocol):
    def read(self) -> str | None: ...


class History:
    """Messages typed before, oldest first, in a file that only its owner reads; none with ``path`` None.

    A file that cannot be read or written costs the history, not the chat.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.entries: list[str] = []
        if path is None:
            return
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            self.entries = list(_entries(text.splitlines()))
            is_torn = bool(text) and not text.endswith("\n")  # a crash: the next line would join the last
            if len(self.entries) > 2 * KEPT or is_torn:
                del self.entries[:-KEPT]
                replace_file(path, "".join(json.dumps(entry) + "\n" for entry in self.entries))

    def add(self, text: str) -> None:
        if self.entries and self.entries[-1] == text:
            return
        self.entries.append(text)
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with _appended(self._path) as file:
                    file.write(json.dumps(text) + "\n")


def default_history() -> History:
    return History(state_folder() / "chat-history.jsonl")


def _entries(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(entry := json.loads(line), str):
                yield entry


def _appended(path: Path) -> IO[str]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8")


class PipeSource:
    """Standard input that is not a terminal: each line is a message, or several lines are, as ``LineJoiner``
    has it."""

    def __init__(self) -> None:
        self._joiner = LineJoiner()

    def read(self) -> str | None:
        while True:
            line = sys.stdin.buffer.readline(MAX_MESSAGE_BYTES + 1)
            if len(line) > MAX_MESSAGE_BYTES:
                raise UsageError(f"a line on standard input is over {MAX_MESSAGE_BYTES} bytes")
            if not line:
                return self._joiner.end() if self._joiner.is_open else None
            text = decoded(line, "standard input", of=" of a line")
            message = self._joiner.push(text.rstrip("\r\n"))
            if message is not None:
                return message


class ReadlineSource:
    """A terminal without prompt_toolkit: arrow keys and history where Python has readline."""

    def __init__(self, history: History) -> None:
        self._history = history
        with contextlib.suppress(ImportError):  # Python may have been built without it
            import readline

            readline.set_auto_history(False)
            for entry in history.entries[-KEPT:]:
                readline.add_history(entry)
            self._remember: Callable[[str], None] = readline.add_history
            return
        self._remember = lambda text: None

    def read(self) -> str | None:
        joiner = LineJoiner()
        while True:
            try:
                message = joiner.push(input(MORE if joiner.is_open else PROMPT))
            except EOFError:
                print_text("\n")
                return joiner.end() if joiner.is_open else None
            if message is not None:
                if message.strip():
                    self._history.add(message)
                    self._remember(message)
                return message


class EditorSource:
    """A terminal with prompt_toolkit: Enter sends, Alt-Enter or Ctrl-J begins a new line, pasted lines stay
    together, Tab completes commands. ``toolbar`` gives the line below. Raises ImportError without it."""

    def __init__(self, history: History, toolbar: Callable[[], str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("enter")
        def send(event: Any) -> None:
            event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        @keys.add("c-j")
        def new_line(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        self._history = history
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            history=InMemoryHistory(history.entries[-KEPT:]),
            multiline=True,
            prompt_continuation=MORE,
            key_bindings=keys,
            completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
            complete_while_typing=Condition(lambda: False),
            bottom_toolbar=toolbar,
            reserve_space_for_menu=4,
        )

    def read(self) -> str | None:
        try:
            message = self._session.prompt()
        except EOFError:
            return None
        if message.strip():
            self._history.add(message)
        return message
