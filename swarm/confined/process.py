"""A program that came in a file, in a process of its own that is ended when it takes too much.

Linux keeps the bounds of memory and processor time itself. macOS has no bound on memory and Windows none at
all. There, and for time everywhere, a thread watches while a request is answered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import IO, Any, cast

from ..terminal_text import one_line
from .asking import ASKING
from .child import DONE, FAILED, HEAD_BYTES, decoded, encoded

_CHILD = Path(__file__).with_name("child.py")
_WATCHED = sys.platform != "linux"
"""True if the system does not bound the memory of a process."""
_POLL_S = 0.05
"""Seconds between looks at the memory of a child that the system does not bound."""
_KILLED_FOR_TIME = "SIGXCPU"
_KILLED_BY_OTHERS = frozenset(("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"))
"""Signals of the system, which had no memory left, or of a person. The program is not their cause."""

_GIVEN_UP = "nobody waits for it any more"


@dataclass(frozen=True, slots=True)
class Bounds:
    """``memory_bytes``: address space of the process; ``cpu_s``: its processor time for a request, whole
    seconds; ``wall_s``: how long a request may take in all, waiting for others and starting included;
    ``reply_bytes``: of one reply."""

    memory_bytes: int = 512 * 2**20
    cpu_s: int = 3
    wall_s: float = 15.0
    reply_bytes: int = 64 * 2**20


class EndedError(Exception):
    """The program gave no answer. ``str()`` says why, in one printable line: "it took more than …"."""


class _KilledError(EndedError):
    """The process was killed by others, so another process may succeed."""


class ConfinedProcess:
    """Starts when it is first needed, is ended when a request goes over its bounds or is given up
    (``asking``), and starts anew for the next one. From any thread; requests are answered one at a time.

    A process that others kill is replaced once for each request, and the request is then answered.

    ``program``: a Python file whose ``opened(opening)`` returns a reply and the function that answers
    requests; it may import ``packages`` and nothing of this project. Requests and replies are JSON values.
    """

    def __init__(
        self, program: Path, packages: Sequence[str], opening: Any, bounds: Bounds | None = None
    ) -> None:
        self.bounds = bounds or Bounds()
        self._program = program
        self._packages = packages
        self._opening = opening
        self._opened: Any = None
        self._turn = threading.Lock()
        self._child: _Child | None = None
        self._closing: weakref.finalize[..., ConfinedProcess] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, here or elsewhere, starts a process of its own."""
        return ConfinedProcess, (self._program, self._packages, self._opening, self.bounds)

    def opened(self) -> Any:
        """What the program replied to ``opening``. Raises EndedError."""
        return self._in_turn(None)

    def ask(self, request: Any) -> Any:
        """Its reply. Blocks. Raises EndedError, and ValueError for a request that is not JSON."""
        return self._in_turn(encoded(request))

    def close(self) -> None:
        """End the process, if there is one. Idempotent; also called when this object goes."""
        if self._closing is not None:
            self._closing()

    def _in_turn(self, frame: bytes | None) -> Any:
        until = monotonic() + self.bounds.wall_s
        if not self._turn.acquire(timeout=self.bounds.wall_s):
            raise EndedError("others before it took too long")
        try:
            if ASKING.get().is_given_up:
                raise EndedError(_GIVEN_UP)
            try:
                return self._exchange(frame, until)
            except _KilledError:
                return self._exchange(frame, until)
        finally:
            self._turn.release()

    def _exchange(self, frame: bytes | None, until: float) -> Any:
        try:
            if self._child is None or self._child.ended:
                self.close()  # what ended by itself
                child = _Child(self._program, self._packages, self.bounds)
                self._closing = weakref.finalize(self, child.end)
                self._child = child
                self._opened = child.exchange(encoded(self._opening), until)
            return self._opened if frame is None else self._child.exchange(frame, until)
        except BaseException:  # Ctrl-C, too: what comes next would be the answer to this request
            self.close()
            self._child = None
            raise


class _Child:
    """One process, until its first failure."""

    def __init__(self, program: Path, packages: Sequence[str], bounds: Bounds) -> None:
        self._bounds = bounds
        self._reason = ""
        settings = {
            "program": str(program),
            "paths": sorted({_folder(package) for package in packages}),
            "memory_bytes": bounds.memory_bytes,
            "cpu_s": bounds.cpu_s,
        }
        # What Windows needs, and what time it is here.
        system = {name: os.environ[name] for name in ("SYSTEMROOT", "TZ") if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", str(_CHILD), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**system, "TOKENIZERS_PARALLELISM": "false"},
                cwd=os.path.abspath(os.sep),
                start_new_session=True,  # Ctrl-C is for this program
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise EndedError(f"no process can be started for it: {error.strerror or error}") from None
        self._pipes = cast("tuple[IO[bytes], IO[bytes]]", (self._process.stdin, self._process.stdout))

    @property
    def ended(self) -> bool:
        return bool(self._reason) or self._process.poll() is not None

    def exchange(self, frame: bytes, until: float) -> Any:
        """The reply to a request, before ``until`` of the monotonic clock. Raises EndedError."""
        answered = threading.Event()
        watching = threading.Thread(target=self._watch, args=(answered, until), daemon=True)
        watching.start()
        try:
            with ASKING.get().waiting(self._give_up):
                reply = self._reply(frame)
        except (OSError, EOFError, ValueError, RecursionError):
            raise self._why() from None
        finally:
            answered.set()
        if not isinstance(reply, dict) or DONE not in reply:
            failed = reply.get(FAILED) if isinstance(reply, dict) else "its answer has an unknown form"
            raise EndedError(f"it failed: {one_line(str(failed))}" if failed else self._too_large())
        return reply[DONE]

    def _reply(self, frame: bytes) -> Any:
        requests, replies = self._pipes
        requests.write(frame)
        requests.flush()
        length = int.from_bytes(_exactly(replies, HEAD_BYTES), "big")
        if length > self._bounds.reply_bytes:
            raise EndedError(f"its answer is larger than {_mebibytes(self._bounds.reply_bytes)}")
        return decoded(_exactly(replies, length))

    def end(self) -> None:
        """End the process, also one that is stuck. Idempotent, from any thread."""
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes:
            try:
                pipe.close()
            except OSError:
                pass  # what was still to be sent

    def _watch(self, answered: threading.Event, until: float) -> None:
        step = _POLL_S if _WATCHED else self._bounds.wall_s
        while not answered.wait(max(0.0, min(step, until - monotonic()))):
            if monotonic() >= until:
                self._reason = self._too_slow()
            elif self._memory() > self._bounds.memory_bytes:
                self._reason = self._too_large()
            if self._reason:
                self._process.kill()
                return

    def _memory(self) -> int:
        import psutil

        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def _give_up(self) -> None:
        self._reason = _GIVEN_UP
        self._process.kill()

    def _why(self) -> EndedError:
        """The error of a process that gave no reply."""
        code = self._process.wait()
        signal = _signal(code)
        if self._reason:
            return EndedError(self._reason)
        if signal == _KILLED_FOR_TIME:
            return EndedError(self._too_slow())
        kind = _KilledError if signal in _KILLED_BY_OTHERS else EndedError
        return kind(f"its process ended ({signal or f'exit code {code}'})")

    def _too_slow(self) -> str:
        return f"it took more than {self._bounds.cpu_s} s"

    def _too_large(self) -> str:
        return f"it took more than {_mebibytes(self._bounds.memory_bytes)} of memory"


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _folder(package: str) -> str:
    """Where a package is imported from, found without loading it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise EndedError(f"the package {package} is missing")
    return str(Path(spec.origin).parents[1 if spec.submodule_search_locations else 0])


def _signal(code: int) -> str:
    import signal

    try:
        return signal.Signals(-code).name
    except ValueError:
        return ""


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
