"""Processes that start in a fraction of the time: one has everything imported and forks the others.

Importing a node's modules costs up to a second of a core, which is most of what a restarted node needs. The
fork server imports them once, starts no thread and opens nothing, and forks a process for each node or client
asked for: with its own p2pd, its own exit, to be killed like any other. Where there is no prctl (only Linux
has it) processes start in the usual way. They end with the fork server, and the fork server with its parent,
however that ends; even those that are stopped by a signal at that moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import IO, Any, Self

from .child import Child, ProcessFailedError, child_environment, launch_python, main_of

START_S = 60.0
MAX_MESSAGE = 1 << 17
PR_SET_PDEATHSIG = 1
CLONE_NEWNET = 0x40000000
NAMESPACE = "/proc/thread-self/ns/net"
"""The network namespace of the thread that asks: its processes are started there, too."""
PR_SET_CHILD_SUBREAPER = 36
GONE = -signal.SIGKILL
"""Exit status of a process whose fork server is gone."""
EVERYTHING = (
    "swarm_node.client.async_model",
    "swarm_node.dht.kademlia.directory",
    "swarm_node.node.cli.main",
    "swarm_node.shards.loading",
    "swarm_node.swarm.transport.p2pd.transport",
    "scripts.lab.local_node",
)
"""All that a node or a client imports."""


class ForkedProcess:
    """A process that the fork server started: the part of subprocess.Popen that is used of one."""

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str], stderr: IO[str]) -> None:
        self.pid = pid
        self.stdin: IO[str] | None = stdin
        self.stdout: IO[str] | None = stdout
        self.stderr: IO[str] | None = stderr
        self.returncode: int | None = None
        self._ended = threading.Event()

    def ended(self, status: int) -> None:
        self.returncode = status
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return GONE if self.returncode is None else self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class ForkServer:
    """``launch`` starts processes; use as a context manager. ``environment`` is of all of them, and they
    have imported ``modules``, none of which may start a thread."""

    def __init__(
        self, environment: dict[str, str] | None = None, modules: Sequence[str] = EVERYTHING
    ) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, ForkedProcess] = {}
        self._early: dict[int, int] = {}  # exit status of those that ended before their pid was known
        self._answers: list[int] = []
        self._answered = threading.Condition(self._lock)
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if not sys.platform.startswith("linux"):
            return
        self._namespace = os.readlink(NAMESPACE)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                env=child_environment(environment),
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, args=(self._socket,), daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and every process that it started and that still runs."""
        if self._socket is None or self._process is None:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=5)
        self._socket.close()

    def launch(self, arguments: Sequence[str], environment: dict[str, str], asked: bool) -> Child:
        """As ``launch_python``, for ``-m MODULE`` whose function ``main(words)`` returns the exit code."""
        if self._socket is None:
            return launch_python(arguments, environment, asked)
        flag, program, *words = arguments
        if flag != "-m":
            raise ValueError(f"not a module: {flag}")
        (in_read, in_write), (out_read, out_write), (err_read, err_write) = os.pipe(), os.pipe(), os.pipe()
        descriptors = [in_read, out_write, err_write]
        if os.readlink(NAMESPACE) != self._namespace:  # this thread is in a machine of wan_lab
            descriptors.append(os.open(NAMESPACE, os.O_RDONLY))
        request = json.dumps({"program": program, "words": words, "environment": environment}).encode()
        try:
            with self._lock:
                socket.send_fds(self._socket, [request], descriptors)
                if not self._answered.wait_for(lambda: self._answers, START_S):
                    raise ProcessFailedError("the fork server does not answer")
                pid = self._answers.pop(0)
                if pid < 0:
                    raise ProcessFailedError("the fork server has ended")
                child = ForkedProcess(pid, os.fdopen(in_write, "w"), os.fdopen(out_read), os.fdopen(err_read))
                self._running[pid] = child
                if pid in self._early:
                    self._running.pop(pid).ended(self._early.pop(pid))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return child

    def run(
        self, arguments: Sequence[str], *, environment: dict[str, str], stdin: str, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """``launch`` one, give it ``stdin`` and wait for its end, as subprocess.run does; ``timeout`` in
        seconds. Raises subprocess.TimeoutExpired, the process being killed."""
        child = self.launch(arguments, environment, True)
        if child.stdin is None or child.stdout is None or child.stderr is None:
            raise ProcessFailedError("a process without pipes")
        with ThreadPoolExecutor(2) as readers:
            output, errors = readers.submit(child.stdout.read), readers.submit(child.stderr.read)
            try:
                with contextlib.suppress(BrokenPipeError), child.stdin:
                    child.stdin.write(stdin)
                code = child.wait(timeout)
            except BaseException:
                child.send_signal(signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(list(arguments), code, output.result(), errors.result())

    def _read(self, connection: socket.socket) -> None:
        while True:
            try:
                message = connection.recv(MAX_MESSAGE)
            except OSError:
                message = b""
            with self._lock:
                if not message:
                    for child in self._running.values():
                        child.ended(GONE)
                    self._answers.append(-1)
                    self._answered.notify_all()
                    return
                told = json.loads(message)
                if "status" not in told:
                    self._answers.append(told["pid"])
                    self._answered.notify_all()
                elif told["pid"] in self._running:
                    self._running.pop(told["pid"]).ended(told["status"])
                else:  # an orphaned daemon, or one whose start nobody has taken note of yet
                    self._early[told["pid"]] = told["status"]


# Inside the fork server.


def _serve(connection: socket.socket, modules: Sequence[str]) -> None:
    """Fork a process for each request until the other side is gone; then end those that are left."""
    _import(modules)
    libc = ctypes.CDLL(None, use_errno=True)
    # Daemons that outlive their node are ours to reap, or to end.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe()
    for descriptor in (wake_read, wake_write):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    while True:
        readable, _, _ = select.select([connection, wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 4096)
            for pid, status in _ended():
                with contextlib.suppress(OSError):
                    connection.send(json.dumps({"pid": pid, "status": status}).encode())
        if connection not in readable:
            continue
        message, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 4)
        if not message:
            _end_all()
            return
        request = json.loads(message)
        fork_server = os.getpid()
        pid = os.fork()
        if not pid:
            for inherited in (connection.fileno(), wake_read, wake_write):
                os.close(inherited)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != fork_server:
                os._exit(1)
            if len(descriptors) == 4 and libc.setns(descriptors.pop(), CLONE_NEWNET):
                os._exit(1)
            _become(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(json.dumps({"pid": pid}).encode())


def _import(modules: Sequence[str]) -> None:
    from .. import skewed_clock

    skewed_clock.install()
    for module in modules:
        import_module(module)
    gc.collect()
    gc.freeze()  # pages of what is never freed stay shared


def _ended() -> list[tuple[int, int]]:
    """Pid and exit status, negative for a signal, of the children that ended, and of orphans among them."""
    found = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if not pid:
            return found
        found.append((pid, os.waitstatus_to_exitcode(status)))


def _end_all() -> None:
    """SIGKILL the processes and their p2pd, which could not end by itself if it is stopped."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """In the fork: be the ``program`` with these words, on these pipes, and never return."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.update(request["environment"])
        code = main_of(request["program"])(request["words"])
    except SystemExit as end:  # as of argparse
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - the end of a process: said, not passed on
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
