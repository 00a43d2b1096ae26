"""A child process that prints JSON events, one a line, and may be asked by lines on its standard input."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

from .child import Launch, ProcessFailedError, launch_python

STOP_SECONDS = 20.0
"""How long a process may take to leave after SIGTERM before it is killed."""

Event = dict[str, Any]


def stop_all(processes: Collection[EventProcess]) -> list[int]:
    """Stop them at once, so that their times to leave overlap. Returns their exit codes, in order."""
    for process in processes:
        process.ask_to_stop()
    return [process.stop() for process in processes]


class EventProcess:
    """One process and the events that it printed so far and somebody took. ``name``: for error messages."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: dict[str, str] | None = None,
        asked: bool = False,
        launch: Launch = launch_python,
    ) -> None:
        self.name = name
        self.events: list[Event] = []
        self._told_to_stop = False
        self._incoming: queue.Queue[Event | None] = queue.Queue()
        self._errors: list[str] = []
        self.process = launch(arguments, environment or {}, asked)
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_events(self) -> None:
        stdout = self.process.stdout
        if stdout is not None:
            for line in stdout:
                try:
                    self._incoming.put(json.loads(line))
                except json.JSONDecodeError:
                    self._errors.append(f"not JSON on standard output: {line}")
        self._incoming.put(None)

    def _read_errors(self) -> None:
        stderr = self.process.stderr
        if stderr is not None:
            self._errors.extend(stderr)

    @property
    def stderr(self) -> str:
        """What it has said on standard error so far."""
        return "".join(self._errors)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, event: str, timeout: float = 120.0) -> Event:
        """The first ``event`` not yet waited past. Raises ProcessFailedError if it ends before."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                item = self.next_event(deadline - time.monotonic())
            except TimeoutError:
                raise ProcessFailedError(self.report(f"no {event!r} within {timeout:.0f} s")) from None
            if item is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=5)
                for reader in self._readers[1:]:
                    reader.join(timeout=5)
                raise ProcessFailedError(
                    self.report(f"ended with {self.process.returncode} before {event!r}")
                )
            self.events.append(item)
            if item.get("event") == event:
                return item

    def next_event(self, timeout: float) -> Event | None:
        """The next event, which is not kept in ``events``; None after the last. Raises TimeoutError."""
        try:
            item = self._incoming.get(timeout=max(0.0, timeout))
        except queue.Empty:
            raise TimeoutError from None
        if item is None:
            self._incoming.put(None)
        return item

    def take(self) -> list[Event]:
        """The events that came meanwhile, without waiting; they are not kept in ``events``."""
        taken: list[Event] = []
        with contextlib.suppress(TimeoutError):
            while (item := self.next_event(0.0)) is not None:
                taken.append(item)
        return taken

    @property
    def has_events(self) -> bool:
        """Whether ``next_event`` returns at once."""
        return not self._incoming.empty()

    def order(self, **fields: Any) -> None:
        """``tell`` the fields as JSON; the child's ``next_order``."""
        self.tell(json.dumps(fields))

    def tell(self, line: str) -> None:
        """Write a line to its standard input. One that has ended does not hear it."""
        if self.process.stdin is None:
            raise ProcessFailedError(self.report("does not answer questions"))
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def report(self, what: str) -> str:
        """``what``, with the end of what the process has said."""
        return f"{self.name}: {what}\n{self.stderr[-2000:]}{self.events[-3:]}"

    def signal(self, number: signal.Signals) -> None:
        """Send it, unless the process has ended."""
        if self.is_running:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, as when a machine dies. A node's p2pd follows when it sees the socket close."""
        self.signal(signal.SIGKILL)
        self.process.wait(timeout=STOP_SECONDS)

    def ask_to_stop(self) -> None:
        """SIGTERM, once: a second one would tell it not to wait for its sessions."""
        if self.is_running and not self._told_to_stop:
            self._told_to_stop = True
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGCONT)  # in case somebody has stopped it

    def stop(self) -> int:
        """SIGTERM, then SIGKILL if it does not leave in time. Returns the exit code."""
        self.ask_to_stop()
        try:
            self.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        for reader in self._readers:
            reader.join(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return -1 if self.process.returncode is None else self.process.returncode

    def close(self) -> None:
        """SIGKILL it if it still runs, and let go of its pipes."""
        self.kill()
        self.stop()
