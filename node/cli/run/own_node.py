"""A node of our own in another process: ``swarm-node serve`` until we end it, or end ourselves."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from ....swarm.errors import SwarmError
from ....swarm.runtime.state_files import state_folder

END_S = 10.0
"""Seconds that the node has to leave the swarm; then it is killed."""
_DRAIN_S = "2"
"""Seconds that sessions of others have to end: their clients repair their routes."""

OnEvent = Callable[[dict[str, Any]], None]


class OwnNodeError(SwarmError):
    """The node ended before it was online. ``exit_code``: its own."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class OwnNode:
    """``words``: options of ``swarm-node serve``. It is in a session of its own, so that Ctrl-C at the
    terminal is the chat's alone; and it ends when this process does, however that ends."""

    def __init__(self, words: Sequence[str]) -> None:
        log = state_folder() / "run.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._command = [sys.executable, "-m", "swarm_node.node.cli", "serve", "--json", "--until-eof"]
        self._command += ["--drain-seconds", _DRAIN_S, "--log-file", str(log), *words]
        self._reading: threading.Thread | None = None
        self.maddrs: tuple[str, ...] = ()
        """Where it listens, once it is online."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._reading is not None:
            self._reading.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def wait_online(self, on_event: OnEvent) -> None:
        """Until it serves. ``on_event`` is told of each of its events. Raises OwnNodeError."""
        assert self._process.stdout is not None
        message, hint = (
            "the node ended without a word",
            f"See {self._command[self._command.index('--log-file') + 1]}",
        )
        for line in self._process.stdout:
            event = json.loads(line)
            on_event(event)
            if event["event"] == "listening":
                self.maddrs = tuple(event["maddrs"])
            if event["event"] == "error":
                message, hint = str(event["message"]), str(event["hint"])
            if event["event"] == "online":
                self._reading = threading.Thread(target=self._read_on, daemon=True)
                self._reading.start()
                return
        code = self._process.wait()
        raise OwnNodeError(message, hint=hint, exit_code=code or 1)

    def _read_on(self) -> None:
        """What nobody reads would stop it."""
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            pass
